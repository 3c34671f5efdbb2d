//! Where gradients are summed.

use candle_core::{DType, Result, Tensor};

use super::storage::overwrite;

/// The gradient of one trainable tensor, f32, with its shape and on its device. Every clone is the same gradient.
#[derive(Debug, Clone)]
pub struct GradSlot(Tensor);

impl GradSlot {
    /// A zero gradient for `tensor`.
    pub fn of(tensor: &Tensor) -> Result<Self> {
        Ok(Self(Tensor::zeros(tensor.shape(), DType::F32, tensor.device())?))
    }

    /// The gradient itself: kernels write into it.
    pub fn tensor(&self) -> &Tensor {
        &self.0
    }

    /// Lends a gradient on the CPU for writing.
    pub fn update(&self, f: impl FnOnce(&mut [f32])) -> Result<()> {
        overwrite(&self.0, f)
    }

    /// Forgets what was summed.
    pub fn clear(&self) -> Result<()> {
        self.0.zero_set()
    }
}
