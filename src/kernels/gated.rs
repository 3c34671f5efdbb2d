//! silu(gate) ⊙ up (Shazeer 2020, arXiv 2002.05202), with the sigmoid computed again in the backward pass.

#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::math;
use super::storage::{tensor, with_all};

/// Elements a parallel task takes.
const TASK: usize = 16 * 1024;

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + math::exp(-x))
}

/// gate and up: `[T, F]` each.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    on_gpu!(gate => cuda::forward(gate, up));
    let mut y = vec![0.0f32; gate.elem_count()];
    with_all([gate, up], |[gate, up]| {
        y.par_chunks_mut(TASK).zip(gate.par_chunks(TASK)).zip(up.par_chunks(TASK)).for_each(|((y, gate), up)| {
            math::vectorize(
                #[inline(always)]
                || {
                    for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
                        *y = g * sigmoid(g) * u;
                    }
                },
            )
        });
    })?;
    tensor(y, gate.shape())
}

/// ∂gate and ∂up.
pub fn swiglu_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    on_gpu!(gate => cuda::backward(gate, up, dy));
    let mut dgate = vec![0.0f32; gate.elem_count()];
    let mut dup = vec![0.0f32; gate.elem_count()];
    with_all([gate, up, dy], |[gate, up, dy]| {
        let outputs = dgate.par_chunks_mut(TASK).zip(dup.par_chunks_mut(TASK));
        let inputs = gate.par_chunks(TASK).zip(up.par_chunks(TASK)).zip(dy.par_chunks(TASK));
        outputs.zip(inputs).for_each(|((dgate, dup), ((gate, up), dy))| {
            math::vectorize(
                #[inline(always)]
                || {
                    let inputs = gate.iter().zip(up).zip(dy);
                    for ((dgate, dup), ((g, u), dy)) in dgate.iter_mut().zip(dup).zip(inputs) {
                        let s = sigmoid(*g);
                        *dup = dy * g * s;
                        *dgate = dy * u * s * (1.0 + g * (1.0 - s));
                    }
                },
            )
        });
    })?;
    Ok((tensor(dgate, gate.shape())?, tensor(dup, gate.shape())?))
}
