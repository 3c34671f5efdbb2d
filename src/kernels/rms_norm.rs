//! y = x / √(mean(x²) + ε) · w (Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4), over the last dimension; w stored as it
//! is, or as its distance from 1 (Gemma).

#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::linear::add_column_sums;
use super::norm_rows::normalised_times;
use super::storage::{started, tensor, with_all};
use super::{GradSlot, math, rows_per_task};

/// Weight `[width]`; frozen without a gradient slot.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    pub weight: Tensor,
    /// w = offset + weight: 0, or 1 where weights are centred at zero. Adding 0 changes no bit.
    pub offset: f32,
    pub epsilon: f64,
    pub weight_grad: Option<GradSlot>,
}

#[inline(always)]
fn reciprocal_rms(x: &[f32], epsilon: f64) -> f32 {
    let mean = math::sum_of([x], |[x]| x * x) / x.len() as f64;
    (1.0 / (mean + epsilon).sqrt()) as f32
}

impl RmsNorm {
    /// Normalises rows of the weight's width; `x` may be any shape whose last dimension is a multiple of it
    /// (heads side by side are normalised one by one).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        on_gpu!(x => cuda::forward(self, x));
        let width = self.weight.dim(0)?;
        let mut y = vec![0.0f32; x.elem_count()];
        let task = rows_per_task(y.len() / width, width) * width;
        with_all([x, &self.weight], |[x, weight]| {
            y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| {
                math::vectorize(
                    #[inline(always)]
                    || {
                        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                            let r = reciprocal_rms(x, self.epsilon);
                            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                                *y = x * r * (w + self.offset);
                            }
                        }
                    },
                )
            });
        })?;
        tensor(y, x.shape())
    }

    /// Adds the weight's gradient to its slot and returns ∂x, to which `onto` is added if given.
    /// With n = x · r: dw = Σ dy ⊙ n; dx = r (dy ⊙ w − n · mean(dy ⊙ w ⊙ n)).
    pub fn backward(&self, x: &Tensor, dy: &Tensor, onto: Option<&Tensor>) -> Result<Tensor> {
        on_gpu!(x => cuda::backward(self, x, dy, onto));
        let width = self.weight.dim(0)?;
        let mut dx = started(onto, x)?;
        let task = rows_per_task(dx.len() / width, width) * width;
        with_all([x, dy, &self.weight], |[x, dy, weight]| {
            dx.par_chunks_mut(task).zip(x.par_chunks(task).zip(dy.par_chunks(task))).for_each(|(dx, (x, dy))| {
                math::vectorize(
                    #[inline(always)]
                    || {
                        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
                        for (dx, (x, dy)) in dx.chunks_exact_mut(width).zip(rows) {
                            let r = reciprocal_rms(x, self.epsilon);
                            let dot = math::sum_of([dy, weight, x], |[dy, w, x]| dy * (w + self.offset) * x);
                            let pull = (dot * (r as f64).powi(3) / width as f64) as f32;
                            for (dx, ((dy, w), x)) in dx.iter_mut().zip(dy.iter().zip(weight).zip(x)) {
                                *dx += dy * (w + self.offset) * r - x * pull;
                            }
                        }
                    },
                )
            });
            match &self.weight_grad {
                Some(slot) => {
                    let products = normalised_times(
                        x,
                        dy,
                        width,
                        #[inline(always)]
                        |x| (0.0, reciprocal_rms(x, self.epsilon)),
                    );
                    slot.update(|grad| add_column_sums(&products, grad))
                }
                None => Ok(()),
            }
        })??;
        tensor(dx, x.shape())
    }
}
