//! [`Rope`] on a GPU.

use candle_core::{Result, Tensor};

use super::Rope;
use crate::kernels::cuda::{Grid, Module, empty, module};

const MODULE: Module = module!("rope");

pub(super) fn rotate(rope: &Rope, x: &Tensor, direction: f32) -> Result<Tensor> {
    let ((rows, width), half) = (x.dims2()?, rope.cos.dim(1)?);
    let y = empty(x.shape(), x.device())?;
    let args = [
        x.into(),
        (&rope.cos).into(),
        (&rope.sin).into(),
        (&y).into(),
        rows.into(),
        (width / (2 * half)).into(),
        half.into(),
        direction.into(),
    ];
    MODULE.launch("rope", Grid::over(rows * width / 2), &args)?;
    Ok(y)
}
