//! [`Linear`] on a GPU: products by cuBLAS, bias and column sums by kernels.

use candle_core::{Result, Tensor};

use super::{Linear, Weight};
use crate::kernels::Precision;
use crate::kernels::cuda::{Arg, Grid, Module, Operand, empty, module, multiply};

const MODULE: Module = module!("linear");

impl Weight {
    /// The matrix as an operand: a frozen bf16 one has a precision of its own, which is returned.
    fn operand(&self, precision: Precision) -> Result<(Operand, Precision)> {
        match self {
            Self::Half(weight) => Ok((Operand::new(weight, Precision::Bf16)?, Precision::Bf16)),
            _ => Ok((Operand::new(self.dense()?, precision)?, precision)),
        }
    }

    /// `y ← x Wᵀ`, or `y ← y + x Wᵀ`.
    fn project_on_gpu(&self, x: &Tensor, y: &Tensor, precision: Precision, accumulate: bool) -> Result<()> {
        let (weight, precision) = self.operand(precision)?;
        multiply(&Operand::new(x, precision)?, &weight.t(), y, accumulate)
    }
}

/// As [`Weight::logits`].
pub(super) fn logits(weight: &Weight, x: &Tensor) -> Result<Tensor> {
    let y = empty((x.dim(0)?, weight.dims()[0]), x.device())?;
    weight.project_on_gpu(x, &y, Precision::F32, false)?;
    Ok(y)
}

/// `residual + x Wᵀ + b`, without the correction; None: no residual.
pub(super) fn forward(layer: &Linear, x: &Tensor, residual: Option<&Tensor>, precision: Precision) -> Result<Tensor> {
    let (rows, outer) = (x.dim(0)?, layer.weight.dims()[0]);
    let y = match (&layer.bias, residual) {
        (Some(bias), residual) => {
            let y = empty((rows, outer), x.device())?;
            let onto = residual.unwrap_or(&y);
            let args = [onto.into(), bias.into(), (&y).into(), rows.into(), outer.into(), residual.is_some().into()];
            MODULE.launch("add_bias", Grid::over(rows * outer), &args)?;
            y
        }
        (None, Some(residual)) => residual.copy()?,
        (None, None) => empty((rows, outer), x.device())?,
    };
    layer.weight.project_on_gpu(x, &y, precision, residual.is_some() || layer.bias.is_some())?;
    Ok(y)
}

/// As [`Linear::backward`], without the correction.
pub(super) fn backward(
    layer: &Linear,
    x: &Tensor,
    dy: &Tensor,
    onto: Option<Tensor>,
    precision: Precision,
) -> Result<Tensor> {
    let (weight, precision) = layer.weight.operand(precision)?;
    let gradient = Operand::new(dy, precision)?;
    let accumulate = onto.is_some();
    let dx = match onto {
        Some(dx) => dx,
        None => empty(x.shape(), x.device())?,
    };
    multiply(&gradient, &weight, &dx, accumulate)?;
    if let Some(slot) = &layer.bias_grad {
        add_column_sums(dy, slot.tensor())?;
    }
    if let Some(slot) = &layer.weight_grad {
        multiply(&gradient.t(), &Operand::new(x, precision)?, slot.tensor(), true)?;
    }
    Ok(dx)
}

/// Rows that one block adds up, of so many: a grid has 65,535 blocks that way at most.
pub(in crate::kernels) fn rows_per_block(rows: usize) -> usize {
    rows.div_ceil(65_535).max(64)
}

/// Adds the sum of all rows of `[rows, width]` to `sums`, `[width]`, in an order that depends on nothing but the shape.
pub(in crate::kernels) fn add_column_sums(rows: &Tensor, sums: &Tensor) -> Result<()> {
    const THREADS: usize = 128;
    let (mut rows, width) = (rows.clone(), sums.elem_count());
    let columns = width.div_ceil(THREADS);
    let launch = |rows: &Tensor, sums: &Tensor, blocks: usize, per_block: usize, accumulate: bool| {
        let args: [Arg; 6] =
            [rows.into(), sums.into(), rows.dim(0)?.into(), width.into(), per_block.into(), accumulate.into()];
        MODULE.launch("column_sums", Grid::new(columns, blocks, THREADS as u32), &args)
    };
    loop {
        let per_block = rows_per_block(rows.dim(0)?);
        let blocks = rows.dim(0)?.div_ceil(per_block);
        if blocks <= 1 {
            return launch(&rows, sums, blocks, per_block, true);
        }
        let partial = empty((blocks, width), rows.device())?;
        launch(&rows, &partial, blocks, per_block, false)?;
        rows = partial;
    }
}
