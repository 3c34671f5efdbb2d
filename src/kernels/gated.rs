//! g · s(g) ⊙ up, the gated MLPs of Shazeer 2020 (arXiv 2002.05202), with s computed again in the backward pass: the sigmoid
//! of g (SwiGLU), or the one that GELU multiplies by (GeGLU).

#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::storage::{tensor, with_all};
use super::{gelu, math};

/// Elements a parallel task takes.
const TASK: usize = 16 * 1024;

/// What a gate is multiplied by to open.
trait Gate {
    /// s(g).
    fn open(g: f32) -> f32;
    /// `by` times the derivative of g · s(g), given s = s(g).
    fn slope(by: f32, g: f32, s: f32) -> f32;
}

struct Silu;

impl Gate for Silu {
    #[inline(always)]
    fn open(g: f32) -> f32 {
        1.0 / (1.0 + math::exp(-g))
    }

    #[inline(always)]
    fn slope(by: f32, g: f32, s: f32) -> f32 {
        by * s * (1.0 + g * (1.0 - s))
    }
}

struct Gelu;

impl Gate for Gelu {
    #[inline(always)]
    fn open(g: f32) -> f32 {
        gelu::open(g)
    }

    #[inline(always)]
    fn slope(by: f32, g: f32, s: f32) -> f32 {
        by * gelu::slope(g, s)
    }
}

/// gate and up: `[T, F]` each.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    on_gpu!(gate => cuda::forward("swiglu", gate, up));
    gated::<Silu>(gate, up)
}

/// ∂gate and ∂up.
pub fn swiglu_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    on_gpu!(gate => cuda::backward("swiglu_backward", gate, up, dy));
    gated_backward::<Silu>(gate, up, dy)
}

/// gate and up: `[T, F]` each.
pub fn geglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    on_gpu!(gate => cuda::forward("geglu", gate, up));
    gated::<Gelu>(gate, up)
}

/// ∂gate and ∂up of [`geglu`].
pub fn geglu_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    on_gpu!(gate => cuda::backward("geglu_backward", gate, up, dy));
    gated_backward::<Gelu>(gate, up, dy)
}

fn gated<G: Gate>(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let mut y = vec![0.0f32; gate.elem_count()];
    with_all([gate, up], |[gate, up]| {
        y.par_chunks_mut(TASK).zip(gate.par_chunks(TASK)).zip(up.par_chunks(TASK)).for_each(|((y, gate), up)| {
            math::vectorize(
                #[inline(always)]
                || {
                    for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
                        *y = g * G::open(g) * u;
                    }
                },
            )
        });
    })?;
    tensor(y, gate.shape())
}

fn gated_backward<G: Gate>(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
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
                    for ((dgate, dup), ((&g, u), dy)) in dgate.iter_mut().zip(dup).zip(inputs) {
                        let s = G::open(g);
                        *dup = dy * g * s;
                        *dgate = G::slope(dy * u, g, s);
                    }
                },
            )
        });
    })?;
    Ok((tensor(dgate, gate.shape())?, tensor(dup, gate.shape())?))
}
