//! AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) in one pass over a tensor, and the norm that clipping asks for.

#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::math;
use super::storage::{overwrite, with_f32};

/// Elements a parallel task takes. Sums are added block by block, so they do not depend on the thread count.
const BLOCK: usize = 1 << 16;

/// The numbers of one step, the same for every tensor but for `keep`.
#[derive(Debug, Clone, Copy)]
pub struct AdamWUpdate {
    pub beta1: f32,
    pub beta2: f32,
    /// Gradients are multiplied by it as they are read (clipping).
    pub gradient_scale: f32,
    /// Learning rate / (1 − β₁ᵗ).
    pub step_size: f32,
    /// 1 / √(1 − β₂ᵗ).
    pub inverse_correction2: f32,
    pub epsilon: f32,
    /// 1 − learning rate · weight decay.
    pub keep: f32,
}

impl AdamWUpdate {
    /// Moves `weight` and the running means `first` of its gradient and `second` of the gradient's square; all f32, of one
    /// shape, on one device.
    pub fn apply(&self, weight: &Tensor, gradient: &Tensor, first: &Tensor, second: &Tensor) -> Result<()> {
        on_gpu!(weight => cuda::apply(self, [weight, gradient, first, second]));
        let update = |g: &[f32]| {
            overwrite(weight, |w| overwrite(first, |m| overwrite(second, |v| self.move_slices(w, g, m, v))))
        };
        with_f32(gradient, update)???
    }

    fn move_slices(&self, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let Self { beta1, beta2, gradient_scale, step_size, inverse_correction2, epsilon, keep } = *self;
        let state = m.par_chunks_mut(BLOCK).zip(v.par_chunks_mut(BLOCK));
        w.par_chunks_mut(BLOCK).zip(g.par_chunks(BLOCK)).zip(state).for_each(|((w, g), (m, v))| {
            math::vectorize(
                #[inline(always)]
                || {
                    for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                        let g = g * gradient_scale;
                        *m = beta1 * *m + (1.0 - beta1) * g;
                        *v = beta2 * *v + (1.0 - beta2) * g * g;
                        *w = *w * keep - step_size * *m / (v.sqrt() * inverse_correction2 + epsilon);
                    }
                },
            )
        });
    }
}

/// Σ x² of each tensor; all on one device.
pub fn sums_of_squares(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    let Some(first) = tensors.first() else { return Ok(vec![]) };
    on_gpu!(first => cuda::sums_of_squares(tensors));
    let square = |block: &[f32]| {
        math::vectorize(
            #[inline(always)]
            || math::sum_of([block], |[x]| x * x),
        )
    };
    let of_slice = |values: &[f32]| values.par_chunks(BLOCK).map(square).collect::<Vec<f64>>().iter().sum();
    tensors.iter().map(|tensor| with_f32(tensor, of_slice)).collect()
}
