//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) in the half-split layout of Hugging Face weights.

#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::storage::{tensor, with_all};
use super::{math, rows_per_task};

/// Rotates each head of `[T, heads · head_dim]` by the angles of its token's position.
#[derive(Debug, Clone)]
pub struct Rope {
    /// cos and sin of each token's angles: `[T, head_dim / 2]` each.
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// `inverse_frequencies`: `[head_dim / 2]`, radians per position. For tensors on `device`.
    pub fn new(positions: &[u32], inverse_frequencies: &[f32], device: &Device) -> Result<Self> {
        // Angles in f32, as the reference implementations compute them: the models were trained with those roundings.
        let angles = positions.iter().flat_map(|&p| inverse_frequencies.iter().map(move |&f| p as f32 * f));
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
        let shape = (positions.len(), inverse_frequencies.len());
        Ok(Self { cos: Tensor::from_vec(cos, shape, device)?, sin: Tensor::from_vec(sin, shape, device)? })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.rotate(x, 1.0)
    }

    /// ∂x: rotated back.
    pub fn backward(&self, dy: &Tensor) -> Result<Tensor> {
        self.rotate(dy, -1.0)
    }

    fn rotate(&self, x: &Tensor, direction: f32) -> Result<Tensor> {
        on_gpu!(x => cuda::rotate(self, x, direction));
        let (rows, width) = x.dims2()?;
        let half = self.cos.dim(1)?;
        let mut y = vec![0.0f32; rows * width];
        let task = rows_per_task(rows, width);
        with_all([x, &self.cos, &self.sin], |[x, cos, sin]| {
            y.par_chunks_mut(task * width).zip(x.par_chunks(task * width)).enumerate().for_each(|(t, (y, x))| {
                math::vectorize(
                    #[inline(always)]
                    || {
                        for (i, (y, x)) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
                            let angles = (t * task + i) * half;
                            let (cos, sin) = (&cos[angles..angles + half], &sin[angles..angles + half]);
                            for (y, x) in y.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
                                let ((y1, y2), (x1, x2)) = (y.split_at_mut(half), x.split_at(half));
                                let (x, y) = (x1.iter().zip(x2), y1.iter_mut().zip(y2));
                                for (((y1, y2), (x1, x2)), (cos, sin)) in y.zip(x).zip(cos.iter().zip(sin)) {
                                    let sin = sin * direction;
                                    *y1 = x1 * cos - x2 * sin;
                                    *y2 = x2 * cos + x1 * sin;
                                }
                            }
                        }
                    },
                )
            })
        })?;
        tensor(y, (rows, width))
    }
}
