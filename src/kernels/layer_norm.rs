//! y = (x − mean x) / √(var x + ε) · w + b (Ba et al. 2016, arXiv 1607.06450), over the last dimension.

#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::linear::add_column_sums;
use super::norm_rows::normalised_times;
use super::storage::{started, tensor, with_all};
use super::{GradSlot, math, rows_per_task};

/// Weight and bias `[width]`; frozen without gradient slots.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    pub weight: Tensor,
    pub bias: Tensor,
    pub epsilon: f64,
    pub weight_grad: Option<GradSlot>,
    pub bias_grad: Option<GradSlot>,
}

/// Mean and 1 / √(variance + ε) of a row; deviations are squared after the mean is known, or large means would cancel.
#[inline(always)]
fn moments(x: &[f32], epsilon: f64) -> (f32, f32) {
    let mean = (math::sum_of([x], |[x]| x) / x.len() as f64) as f32;
    let variance = math::sum_of([x], |[x]| (x - mean) * (x - mean)) / x.len() as f64;
    (mean, (1.0 / (variance + epsilon).sqrt()) as f32)
}

impl LayerNorm {
    /// Normalises rows `[…, width]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        on_gpu!(x => cuda::forward(self, x));
        let width = self.weight.dim(0)?;
        let mut y = vec![0.0f32; x.elem_count()];
        let task = rows_per_task(y.len() / width, width) * width;
        with_all([x, &self.weight, &self.bias], |[x, weight, bias]| {
            y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| {
                math::vectorize(
                    #[inline(always)]
                    || {
                        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                            let (mean, r) = moments(x, self.epsilon);
                            for ((y, x), (w, b)) in y.iter_mut().zip(x).zip(weight.iter().zip(bias)) {
                                *y = (x - mean) * r * w + b;
                            }
                        }
                    },
                )
            });
        })?;
        tensor(y, x.shape())
    }

    /// Adds the weight's and the bias's gradients to their slots and returns ∂x, to which `onto` is added if given.
    /// With n = (x − mean x) r and g = dy ⊙ w: dw = Σ dy ⊙ n; db = Σ dy; dx = r (g − mean g − n · mean(g ⊙ n)).
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
                            let (mean, r) = moments(x, self.epsilon);
                            let n = 1.0 / width as f64;
                            let level = (math::sum_of([dy, weight], |[dy, w]| dy * w) * n) as f32;
                            let dot = math::sum_of([dy, weight, x], |[dy, w, x]| dy * w * (x - mean));
                            let pull = (dot * n * (r as f64).powi(2)) as f32;
                            for (dx, ((dy, w), x)) in dx.iter_mut().zip(dy.iter().zip(weight).zip(x)) {
                                *dx += r * (dy * w - level - (x - mean) * pull);
                            }
                        }
                    },
                )
            });
            if let Some(slot) = &self.weight_grad {
                let products = normalised_times(
                    x,
                    dy,
                    width,
                    #[inline(always)]
                    |x| moments(x, self.epsilon),
                );
                slot.update(|grad| add_column_sums(&products, grad))?;
            }
            match &self.bias_grad {
                Some(slot) => slot.update(|grad| add_column_sums(dy, grad)),
                None => Ok(()),
            }
        })??;
        tensor(dx, x.shape())
    }
}
