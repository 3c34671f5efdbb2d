//! GELU in its tanh form (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2), alone and as a gate (Shazeer 2020, arXiv
//! 2002.05202). ½ (1 + tanh u) is the sigmoid of 2u, which is computed again in the backward pass.

#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::math;
use super::storage::{tensor, with_all};

/// Elements a parallel task takes.
const TASK: usize = 16 * 1024;
/// 2 √(2/π), so that 2u = LINEAR · (x + CUBIC · x³).
const LINEAR: f32 = 1.595_769_2;
const CUBIC: f32 = 0.044_715;

/// The sigmoid that x is multiplied by.
#[inline(always)]
fn gate_of(x: f32) -> f32 {
    1.0 / (1.0 + math::exp(-LINEAR * (x + CUBIC * x * x * x)))
}

/// The derivative of x · s, s = [`gate_of`] x.
#[inline(always)]
fn slope(x: f32, s: f32) -> f32 {
    s + x * s * (1.0 - s) * LINEAR * (1.0 + 3.0 * CUBIC * x * x)
}

/// gelu(x), of any shape.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    on_gpu!(x => cuda::gelu(x));
    let mut y = vec![0.0f32; x.elem_count()];
    with_all([x], |[x]| {
        y.par_chunks_mut(TASK).zip(x.par_chunks(TASK)).for_each(|(y, x)| {
            math::vectorize(
                #[inline(always)]
                || {
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = x * gate_of(x);
                    }
                },
            )
        });
    })?;
    tensor(y, x.shape())
}

/// ∂x of [`gelu`].
pub fn gelu_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    on_gpu!(x => cuda::gelu_backward(x, dy));
    let mut dx = vec![0.0f32; x.elem_count()];
    with_all([x, dy], |[x, dy]| {
        dx.par_chunks_mut(TASK).zip(x.par_chunks(TASK)).zip(dy.par_chunks(TASK)).for_each(|((dx, x), dy)| {
            math::vectorize(
                #[inline(always)]
                || {
                    for ((dx, &x), dy) in dx.iter_mut().zip(x).zip(dy) {
                        *dx = dy * slope(x, gate_of(x));
                    }
                },
            )
        });
    })?;
    tensor(dx, x.shape())
}

/// gelu(gate) ⊙ up; gate and up: `[T, F]` each.
pub fn geglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    on_gpu!(gate => cuda::geglu(gate, up));
    let mut y = vec![0.0f32; gate.elem_count()];
    with_all([gate, up], |[gate, up]| {
        y.par_chunks_mut(TASK).zip(gate.par_chunks(TASK)).zip(up.par_chunks(TASK)).for_each(|((y, gate), up)| {
            math::vectorize(
                #[inline(always)]
                || {
                    for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
                        *y = g * gate_of(g) * u;
                    }
                },
            )
        });
    })?;
    tensor(y, gate.shape())
}

/// ∂gate and ∂up of [`geglu`].
pub fn geglu_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    on_gpu!(gate => cuda::geglu_backward(gate, up, dy));
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
                    for ((dgate, dup), ((&g, &u), &dy)) in dgate.iter_mut().zip(dup).zip(inputs) {
                        let s = gate_of(g);
                        *dup = dy * g * s;
                        *dgate = dy * u * slope(g, s);
                    }
                },
            )
        });
    })?;
    Ok((tensor(dgate, gate.shape())?, tensor(dup, gate.shape())?))
}
