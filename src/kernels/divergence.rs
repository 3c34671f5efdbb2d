//! A chunk of targets' logits on a GPU: each row of the student's is replaced by its gradient, a thread block per row.
//!
//! On the CPU the same is done row by row by [`crate::loss`]'s divergences, which are the reference.

#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Result, Tensor, bail};

/// What rows are multiplied by.
#[derive(Debug, Clone, Copy)]
pub struct RowScales {
    /// 1 / T.
    pub inverse_temperature: f32,
    /// Of the divergence's gradient.
    pub divergence: f32,
    /// Of the cross-entropy's gradient; 0: it is only reported.
    pub label: f32,
}

/// The divergence that rows are of; the formulas are in [`crate::loss`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RowDivergence {
    ForwardKl,
    ReverseKl,
    /// `beta`: the teacher's share in the mixture; `factor`: what value and gradient are multiplied by.
    Jsd {
        beta: f32,
        factor: f32,
    },
    SkewKl {
        lambda: f32,
    },
    SkewReverseKl {
        lambda: f32,
    },
    TotalVariation,
}

/// The teacher's word on the rows of a chunk.
#[derive(Debug)]
pub enum TeacherRows {
    /// Logits `[n, V]`, of which the first min(V, student's V) count.
    Logits(Tensor),
    /// `[n, k]` token ids (u32) and log-probabilities at temperature 1, and `[n]` logs of what all others hold at the
    /// loss's; None: both sides are renormalised over the k tokens.
    TopK { ids: Tensor, log_probabilities: Tensor, log_tails: Option<Tensor> },
    /// `[n, m]` token ids (u32), log-probabilities at the loss's temperature and weights, 0 for padding.
    Sampled { ids: Tensor, log_probabilities: Tensor, weights: Tensor },
}

/// What the rows said.
#[derive(Debug)]
pub struct RowSums {
    /// `[n, 2]`: divergence and cross-entropy of each row, in nats.
    pub sums: Tensor,
    /// `[n]`: the teacher's log Σ exp (y / T), where it gave logits.
    pub teacher_log_sum_exp: Option<Tensor>,
}

/// `student` `[n, V]` (f32, for forward KL also bf16 and f16; the teacher's logits alike) becomes scales.divergence · ∂D/∂z +
/// scales.label · (q₁ − label); `labels` `[n]`, u32. Of a sampled teacher for expectations under p alone.
#[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
pub fn divergence_rows(
    divergence: RowDivergence,
    teacher: &TeacherRows,
    student: &Tensor,
    labels: &Tensor,
    scales: RowScales,
) -> Result<RowSums> {
    on_gpu!(student => cuda::divergence(divergence, teacher, student, labels, scales));
    bail!("rows on the CPU go through the loss's own functions")
}

/// Cross-entropy alone: `student` becomes scale · (q − label).
#[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
pub fn cross_entropy_rows(student: &Tensor, labels: &Tensor, scale: f32) -> Result<RowSums> {
    on_gpu!(student => cuda::cross_entropy(student, labels, scale));
    bail!("rows on the CPU go through the loss's own functions")
}
