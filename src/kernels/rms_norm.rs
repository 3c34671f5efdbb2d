//! y = x / √(mean(x²) + ε) · w (Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4), over the last dimension.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::storage::{slice, with_f32};
use super::{GradSlot, math, rows_per_task};

/// Weight `[width]`; frozen without a gradient slot.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    pub weight: Tensor,
    pub epsilon: f64,
    pub weight_grad: Option<GradSlot>,
}

impl RmsNorm {
    /// Normalises rows of the weight's width; `x` may be any shape whose last dimension is a multiple of it
    /// (heads side by side are normalised one by one).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1(self.clone())
    }
}

#[inline(always)]
fn reciprocal_rms(x: &[f32], epsilon: f64) -> f32 {
    let mean = math::sum_of([x], |[x]| x * x) / x.len() as f64;
    (1.0 / (mean + epsilon).sqrt()) as f32
}

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(storage, layout)?;
        let width = self.weight.dim(0)?;
        let mut y = vec![0.0f32; x.len()];
        let task = rows_per_task(x.len() / width, width) * width;
        with_f32(&self.weight, |weight| {
            y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| {
                math::vectorize(
                    #[inline(always)]
                    || {
                        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                            let r = reciprocal_rms(x, self.epsilon);
                            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                                *y = x * r * w;
                            }
                        }
                    },
                )
            });
        })?;
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    /// With n = x · r: dw = Σ dy ⊙ n; dx = r (dy ⊙ w − n · mean(dy ⊙ w ⊙ n)).
    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let width = self.weight.dim(0)?;
        let dy = dy.contiguous()?;
        let mut dx = vec![0.0f32; x.elem_count()];
        // Normalised rows times dy, only when the weight learns: its columns are then summed in row order.
        let mut dyn_ = vec![0.0f32; if self.weight_grad.is_some() { dx.len() } else { 0 }];
        let task = rows_per_task(dx.len() / width, width) * width;
        let learns = self.weight_grad.is_some();
        with_f32(x, |x| {
            with_f32(&dy, |dy| {
                with_f32(&self.weight, |weight| {
                    let rows = |dx: &mut [f32], x: &[f32], dy: &[f32], mut products: Option<&mut [f32]>| {
                        math::vectorize(
                            #[inline(always)]
                            || {
                                for (i, dx) in dx.chunks_exact_mut(width).enumerate() {
                                    let (x, dy) = (&x[i * width..][..width], &dy[i * width..][..width]);
                                    let r = reciprocal_rms(x, self.epsilon);
                                    let dot = math::sum_of([dy, weight, x], |[dy, w, x]| dy * w * x);
                                    let pull = (dot * (r as f64).powi(3) / width as f64) as f32;
                                    for (dx, ((dy, w), x)) in dx.iter_mut().zip(dy.iter().zip(weight).zip(x)) {
                                        *dx = dy * w * r - x * pull;
                                    }
                                    if let Some(products) = products.as_deref_mut() {
                                        for (p, (x, dy)) in
                                            products[i * width..][..width].iter_mut().zip(x.iter().zip(dy))
                                        {
                                            *p = x * r * dy;
                                        }
                                    }
                                }
                            },
                        )
                    };
                    let inputs = x.par_chunks(task).zip(dy.par_chunks(task));
                    if learns {
                        dx.par_chunks_mut(task)
                            .zip(dyn_.par_chunks_mut(task))
                            .zip(inputs)
                            .for_each(|((dx, p), (x, dy))| rows(dx, x, dy, Some(p)));
                    } else {
                        dx.par_chunks_mut(task).zip(inputs).for_each(|(dx, (x, dy))| rows(dx, x, dy, None));
                    }
                })
            })
        })???;
        if let Some(slot) = &self.weight_grad {
            super::linear::add_column_sums(&dyn_, &mut slot.lock());
        }
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
