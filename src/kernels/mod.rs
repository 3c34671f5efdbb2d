//! Fused operations, each with its gradient, over tensors on the CPU.
//!
//! An op has a forward and a backward function; what the second needs is handed to it by whoever ran the first, so nothing
//! is kept that could be computed again cheaply, and no graph is built. The gradient of a weight is added straight into
//! its [`GradSlot`], so that micro-batches accumulate without a copy and a frozen weight costs nothing. Ops read and write
//! slices through `storage`, the place where another device will branch off.

mod adamw;
mod attention;
mod embedding;
mod gemm;
mod grad_slot;
mod linear;
pub mod math;
mod rms_norm;
mod rope;
mod simd;
mod storage;
mod swiglu;
#[cfg(test)]
mod tests;

pub use adamw::{AdamWUpdate, sums_of_squares};
pub use attention::{AttentionShape, QUERY_BLOCK, Span, Spans};
pub use embedding::{add_rows, gather};
pub use gemm::{Mat, MatMut, Panels, Precision, Right, matmul};
pub use grad_slot::GradSlot;
pub use linear::{Linear, Weight};
pub use rms_norm::RmsNorm;
pub use rope::Rope;
pub use simd::Simd;
pub use storage::{overwrite, with_f32};
pub use swiglu::{swiglu, swiglu_backward};

/// Rows a parallel task takes at least, so that tiny models are not slowed by scheduling.
pub(crate) fn rows_per_task(rows: usize, row_len: usize) -> usize {
    const ELEMENTS: usize = 16 * 1024;
    (ELEMENTS / row_len.max(1)).clamp(1, rows.max(1))
}
