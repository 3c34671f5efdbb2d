//! [`RmsNorm`] on a GPU.

use candle_core::{Result, Tensor};

use super::RmsNorm;
use crate::kernels::cuda::{Grid, Module, empty, module, rows_and_width};
use crate::kernels::linear::cuda::{add_column_sums, rows_per_block};

const MODULE: Module = module!("rms_norm");
/// Of the pass over columns.
const THREADS: usize = 128;

pub(super) fn forward(norm: &RmsNorm, x: &Tensor) -> Result<Tensor> {
    let (rows, width) = rows_and_width(&norm.weight, x)?;
    let y = empty(x.shape(), x.device())?;
    let args = [
        x.into(),
        (&norm.weight).into(),
        (&y).into(),
        rows.into(),
        width.into(),
        norm.offset.into(),
        (norm.epsilon as f32).into(),
    ];
    MODULE.launch("rms_norm", Grid::of_warps(rows), &args)?;
    Ok(y)
}

pub(super) fn backward(norm: &RmsNorm, x: &Tensor, dy: &Tensor, onto: Option<&Tensor>) -> Result<Tensor> {
    let (rows, width) = rows_and_width(&norm.weight, x)?;
    let (dx, reciprocals) = (empty(x.shape(), x.device())?, empty(rows, x.device())?);
    let args = [
        x.into(),
        (&norm.weight).into(),
        dy.into(),
        onto.unwrap_or(x).into(),
        (&dx).into(),
        (&reciprocals).into(),
        rows.into(),
        width.into(),
        norm.offset.into(),
        (norm.epsilon as f32).into(),
        onto.is_some().into(),
    ];
    MODULE.launch("rms_norm_backward", Grid::of_warps(rows), &args)?;
    if let Some(slot) = &norm.weight_grad {
        let per_block = rows_per_block(rows);
        let blocks = rows.div_ceil(per_block);
        let partial = empty((blocks, width), x.device())?;
        let args = [
            x.into(),
            dy.into(),
            (&reciprocals).into(),
            (&partial).into(),
            rows.into(),
            width.into(),
            per_block.into(),
        ];
        MODULE.launch("rms_norm_weight", Grid::new(width.div_ceil(THREADS), blocks, THREADS as u32), &args)?;
        add_column_sums(&partial, slot.tensor())?;
    }
    Ok(dx)
}
