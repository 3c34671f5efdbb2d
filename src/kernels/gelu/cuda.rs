//! GELU and GeGLU on a GPU.

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

pub(super) fn geglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let n = gate.elem_count();
    let y = empty(gate.shape(), gate.device())?;
    MODULE.launch("geglu", Grid::over(n), &[gate.into(), up.into(), (&y).into(), Arg::Size(n as u64)])?;
    Ok(y)
}

pub(super) fn geglu_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let n = gate.elem_count();
    let (d_gate, d_up) = (empty(gate.shape(), gate.device())?, empty(gate.shape(), gate.device())?);
    let args = [gate.into(), up.into(), dy.into(), (&d_gate).into(), (&d_up).into(), Arg::Size(n as u64)];
    MODULE.launch("geglu_backward", Grid::over(n), &args)?;
    Ok((d_gate, d_up))
}
