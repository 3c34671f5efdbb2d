//! [`LayerNorm`] on a GPU.

use candle_core::{Result, Tensor};

use super::LayerNorm;
use crate::kernels::cuda::{Grid, Module, empty, module, rows_and_width};
use crate::kernels::linear::cuda::add_column_sums;

const MODULE: Module = module!("layer_norm");

pub(super) fn forward(norm: &LayerNorm, x: &Tensor) -> Result<Tensor> {
    let (rows, width) = rows_and_width(&norm.weight, x)?;
    let y = empty(x.shape(), x.device())?;
    let args = [
        x.into(),
        (&norm.weight).into(),
        (&norm.bias).into(),
        (&y).into(),
        rows.into(),
        width.into(),
        (norm.epsilon as f32).into(),
    ];
    MODULE.launch("layer_norm", Grid::of_warps(rows), &args)?;
    Ok(y)
}

pub(super) fn backward(norm: &LayerNorm, x: &Tensor, dy: &Tensor, onto: Option<&Tensor>) -> Result<Tensor> {
    let (rows, width) = rows_and_width(&norm.weight, x)?;
    let (dx, products) = (empty(x.shape(), x.device())?, empty((rows, width), x.device())?);
    let args = [
        x.into(),
        (&norm.weight).into(),
        dy.into(),
        onto.unwrap_or(x).into(),
        (&dx).into(),
        (&products).into(),
        rows.into(),
        width.into(),
        (norm.epsilon as f32).into(),
        onto.is_some().into(),
    ];
    MODULE.launch("layer_norm_backward", Grid::of_warps(rows), &args)?;
    if let Some(slot) = &norm.weight_grad {
        add_column_sums(&products, slot.tensor())?;
    }
    if let Some(slot) = &norm.bias_grad {
        add_column_sums(&dy.reshape((rows, width))?, slot.tensor())?;
    }
    Ok(dx)
}
