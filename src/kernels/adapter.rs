//! A low-rank correction of a frozen matrix: y = x Wᵀ + s (x Aᵀ) Bᵀ (LoRA: Hu et al. 2021, arXiv 2106.09685, equation 3).

use candle_core::{Result, Tensor};

use super::{Linear, Precision, Weight};

/// The factors of s B A. W itself stays as it is: only they learn.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// A, `[rank, in]`.
    pub down: Linear,
    /// B, `[out, rank]`.
    pub up: Linear,
    /// s = α / rank.
    pub scale: f64,
}

impl Adapter {
    /// `y + s (x Aᵀ) Bᵀ`: x `[n, in]`, y `[n, out]`.
    pub(super) fn forward_onto(&self, x: &Tensor, y: &Tensor, precision: Precision) -> Result<Tensor> {
        self.up.forward_onto(&self.inner(x, precision)?, y, precision)
    }

    /// Adds the gradients of A and B to their slots and `s (∂y B) A` to `dx`, which nobody else may need any more.
    pub(super) fn backward(&self, x: &Tensor, dy: &Tensor, dx: Tensor, precision: Precision) -> Result<Tensor> {
        // As wide as the rank: cheaper to compute again than to keep.
        let inner = self.inner(x, precision)?;
        let d_inner = self.up.backward(&inner, dy, None, precision)?.affine(self.scale, 0.0)?;
        self.down.backward(x, &d_inner, Some(dx), precision)
    }

    /// `s x Aᵀ`, `[n, rank]`.
    fn inner(&self, x: &Tensor, precision: Precision) -> Result<Tensor> {
        self.down.forward(x, precision)?.affine(self.scale, 0.0)
    }

    /// `W + s B A` in f32, `[out, in]`: the matrix that does both at once.
    pub fn merged(&self, weight: &Tensor) -> Result<Tensor> {
        let a = Linear::frozen(Weight::Dense(self.down.weight.dense()?.t()?.contiguous()?));
        weight + a.forward(self.up.weight.dense()?, Precision::F32)?.affine(self.scale, 0.0)?
    }
}
