//! GELU in its tanh form (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2). ½ (1 + tanh u) is the sigmoid of 2u, which
//! is computed again in the backward pass. As a gate it is in [`super::gated`].

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
pub(super) fn open(x: f32) -> f32 {
    1.0 / (1.0 + math::exp(-LINEAR * (x + CUBIC * x * x * x)))
}

/// The derivative of x · s, s = [`open`] x.
#[inline(always)]
pub(super) fn slope(x: f32, s: f32) -> f32 {
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
                        *y = x * open(x);
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
                        *dx = dy * slope(x, open(x));
                    }
                },
            )
        });
    })?;
    tensor(dx, x.shape())
}
