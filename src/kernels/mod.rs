//! Fused operations, each with its gradient, over tensors on the CPU or on an NVIDIA GPU.
//!
//! An op has a forward and a backward function; what the second needs is handed to it by whoever ran the first, so nothing
//! is kept that could be computed again cheaply, and no graph is built. The gradient of a weight is added straight into
//! its [`GradSlot`], so that micro-batches accumulate without a copy and a frozen weight costs nothing. An op's `.rs` is
//! its contract and its CPU path, which borrows slices through `storage`; its folder holds the GPU's: `cuda.rs` launches
//! the kernels of `OP.cu`.

/// Leaves with what `cuda` says where the tensor lives on a GPU. Without the feature no tensor does.
macro_rules! on_gpu {
    ($tensor:expr => $cuda:expr) => {
        let _ = &$tensor;
        #[cfg(feature = "cuda")]
        if $tensor.device().is_cuda() {
            return $cuda;
        }
    };
}

mod adamw;
mod adapter;
mod attention;
#[cfg(feature = "cuda")]
mod cuda;
mod divergence;
mod embedding;
mod gated;
mod gelu;
mod gemm;
mod grad_slot;
mod layer_norm;
mod linear;
pub mod math;
mod norm_rows;
mod quantised;
mod rms_norm;
mod rope;
mod simd;
mod soft_cap;
mod storage;
#[cfg(test)]
mod tests;

pub use adamw::{AdamWUpdate, sums_of_squares};
pub use adapter::Adapter;
pub use attention::{AttentionShape, QUERY_BLOCK, Span, Spans};
pub use divergence::{RowDivergence, RowScales, RowSums, TeacherRows, cross_entropy_rows, divergence_rows};
pub use embedding::{add_rows, gather};
pub use gated::{geglu, geglu_backward, swiglu, swiglu_backward};
pub use gelu::{gelu, gelu_backward};
pub use gemm::{Mat, MatMut, Panels, Precision, Right, matmul};
pub use grad_slot::GradSlot;
pub use layer_norm::LayerNorm;
pub use linear::{Linear, Weight};
pub use quantised::Quantised;
pub use rms_norm::RmsNorm;
pub use rope::Rope;
pub use simd::Simd;
pub use soft_cap::SoftCap;
pub use storage::{overwrite, with_f32};

/// Rows a parallel task takes at least, so that tiny models are not slowed by scheduling.
pub(crate) fn rows_per_task(rows: usize, row_len: usize) -> usize {
    const ELEMENTS: usize = 16 * 1024;
    (ELEMENTS / row_len.max(1)).clamp(1, rows.max(1))
}
