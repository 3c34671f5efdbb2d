//! Fused operations, each with its gradient, over tensors on the CPU.
//!
//! An op has a forward and a backward function; what the second needs is handed to it by whoever ran the first, so nothing
//! is kept that could be computed again cheaply, and no graph is built. The gradient of a weight is added straight into
//! its [`GradSlot`], so that micro-batches accumulate without a copy and a frozen weight costs nothing. Ops read and write
//! slices through `storage`, the place where another device will branch off.

mod attention;
mod embedding;
mod gemm;
mod linear;
pub mod math;
mod rms_norm;
mod rope;
mod simd;
mod storage;
mod swiglu;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard};

pub use attention::{AttentionShape, QUERY_BLOCK, Span};
pub use embedding::{add_rows, gather_rows};
pub use gemm::{Mat, MatMut, Panels, Precision, Right, matmul};
pub use linear::{Linear, Weight};
pub use rms_norm::RmsNorm;
pub use rope::Rope;
pub use simd::Simd;
pub use storage::{overwrite, with_f32};
pub use swiglu::{swiglu, swiglu_backward};

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
