//! Fused operations on f32 slices, and their candle ops with gradients.
//!
//! Weights are fields of an op, never operands: candle then builds no gradient for a frozen one, and the gradient of a
//! trainable one is added straight into its [`GradSlot`], so that micro-batches accumulate without a copy.

mod attention;
mod embedding;
mod gemm;
mod linear;
pub mod math;
mod packed;
mod rms_norm;
mod rope;
mod seed;
mod simd;
mod storage;
mod swiglu;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard};

pub use attention::{Attention, AttentionShape, Span};
pub use embedding::{add_rows, gather_rows};
pub use gemm::{Mat, MatMut, matmul, matmul_serial};
pub use linear::{Linear, Weight};
pub use packed::PackedBf16;
pub use rms_norm::RmsNorm;
pub use rope::Rope;
pub use seed::backward_from;
pub use simd::Simd;
pub use storage::{overwrite, with_f32};
pub use swiglu::SwiGlu;

/// Where the gradient of one trainable tensor is summed, shaped as the tensor, row-major.
#[derive(Debug, Clone)]
pub struct GradSlot(Arc<Mutex<Vec<f32>>>);

impl GradSlot {
    pub fn zeros(len: usize) -> Self {
        Self(Arc::new(Mutex::new(vec![0.0; len])))
    }

    /// The gradient itself. A poisoned lock means that a kernel panicked: the panic goes on.
    pub fn lock(&self) -> MutexGuard<'_, Vec<f32>> {
        self.0.lock().expect("a kernel panicked while it held this gradient")
    }
}

/// Rows a parallel task takes at least, so that tiny models are not slowed by scheduling.
pub(crate) fn rows_per_task(rows: usize, row_len: usize) -> usize {
    const ELEMENTS: usize = 16 * 1024;
    (ELEMENTS / row_len.max(1)).clamp(1, rows.max(1))
}
