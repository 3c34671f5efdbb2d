//! GELU on a GPU.

use candle_core::{Result, Tensor};

use crate::kernels::cuda::{Arg, Grid, Module, empty, module};

const MODULE: Module = module!("gelu");

pub(super) fn gelu(x: &Tensor) -> Result<Tensor> {
    let n = x.elem_count();
    let y = empty(x.shape(), x.device())?;
    MODULE.launch("gelu", Grid::over(n), &[x.into(), (&y).into(), Arg::Size(n as u64)])?;
    Ok(y)
}

pub(super) fn gelu_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let n = x.elem_count();
    let dx = empty(x.shape(), x.device())?;
    MODULE.launch("gelu_backward", Grid::over(n), &[x.into(), dy.into(), (&dx).into(), Arg::Size(n as u64)])?;
    Ok(dx)
}
