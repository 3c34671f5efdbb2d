//! SwiGLU and GeGLU on a GPU.

use candle_core::{Result, Tensor};

use crate::kernels::cuda::{Arg, Grid, Module, empty, module};

const MODULE: Module = module!("gated");

pub(super) fn forward(kernel: &str, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let n = gate.elem_count();
    let y = empty(gate.shape(), gate.device())?;
    MODULE.launch(kernel, Grid::over(n), &[gate.into(), up.into(), (&y).into(), Arg::Size(n as u64)])?;
    Ok(y)
}

pub(super) fn backward(kernel: &str, gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let n = gate.elem_count();
    let (d_gate, d_up) = (empty(gate.shape(), gate.device())?, empty(gate.shape(), gate.device())?);
    let args = [gate.into(), up.into(), dy.into(), (&d_gate).into(), (&d_up).into(), Arg::Size(n as u64)];
    MODULE.launch(kernel, Grid::over(n), &args)?;
    Ok((d_gate, d_up))
}
