//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) in the half-split layout of Hugging Face weights.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::storage::slice;
use super::{math, rows_per_task};

/// Rotates each head of `[T, heads · head_dim]` by the angles of its token's position.
#[derive(Debug, Clone)]
pub struct Rope {
    /// cos and sin of each token's angles: `[T, head_dim / 2]` each.
    cos: Arc<Vec<f32>>,
    sin: Arc<Vec<f32>>,
    head_dim: usize,
    /// 1 to rotate, −1 to rotate back (the gradient).
    direction: f32,
}

impl Rope {
    /// `inverse_frequencies`: `[head_dim / 2]`, radians per position.
    pub fn new(positions: &[u32], inverse_frequencies: &[f32]) -> Self {
        // Angles in f32, as the reference implementations compute them: the models were trained with those roundings.
        let angles = positions.iter().flat_map(|&p| inverse_frequencies.iter().map(move |&f| p as f32 * f));
        let (sin, cos) = angles.map(f32::sin_cos).unzip();
        Self { cos: Arc::new(cos), sin: Arc::new(sin), head_dim: inverse_frequencies.len() * 2, direction: 1.0 }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1(self.clone())
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let x = slice(storage, layout)?;
        let half = self.head_dim / 2;
        let mut y = vec![0.0f32; x.len()];
        let task = rows_per_task(rows, width);
        y.par_chunks_mut(task * width).zip(x.par_chunks(task * width)).enumerate().for_each(|(t, (y, x))| {
            math::vectorize(
                #[inline(always)]
                || {
                    for (i, (y, x)) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
                        let angles = (t * task + i) * half;
                        let (cos, sin) = (&self.cos[angles..angles + half], &self.sin[angles..angles + half]);
                        for (y, x) in y.chunks_exact_mut(self.head_dim).zip(x.chunks_exact(self.head_dim)) {
                            let ((y1, y2), (x1, x2)) = (y.split_at_mut(half), x.split_at(half));
                            for j in 0..half {
                                let s = sin[j] * self.direction;
                                y1[j] = x1[j] * cos[j] - x2[j] * s;
                                y2[j] = x2[j] * cos[j] + x1[j] * s;
                            }
                        }
                    }
                },
            )
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let back = Self { direction: -self.direction, ..self.clone() };
        Ok(Some(dy.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}
