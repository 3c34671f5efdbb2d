//! Skewed divergences of DistiLLM (arXiv 2402.03898), as true divergences: the other side is mixed with a little of one's own.

use super::terms::{Term, against_mixture, times};
use crate::kernels::{RowDivergence, math};

/// KL(p ‖ λp + (1 − λ)q).
#[derive(Debug, Clone, Copy)]
pub struct SkewKl {
    /// Strictly between 0 and 1.
    pub lambda: f32,
}

impl Term for SkewKl {
    const NAME: &'static str = "skew_kl";
    const OF_DRAWS: bool = true;

    /// φ = p log(p/m); e = −(1 − λ) p q/m.
    #[inline(always)]
    fn term(self, log_p: f32, log_q: f32) -> (f32, f32) {
        let p = math::exp(log_p);
        let (of_p, of_q) = against_mixture(self.lambda, log_p, log_q);
        (times(p, of_p), -(1.0 - self.lambda) * p * math::exp(of_q))
    }

    fn of_rows(self) -> RowDivergence {
        RowDivergence::SkewKl { lambda: self.lambda }
    }
}

/// KL(q ‖ (1 − λ)p + λq).
#[derive(Debug, Clone, Copy)]
pub struct SkewReverseKl {
    /// Strictly between 0 and 1.
    pub lambda: f32,
}

impl Term for SkewReverseKl {
    const NAME: &'static str = "skew_reverse_kl";

    /// φ = q log(q/m); e = φ + q − λ q q/m.
    #[inline(always)]
    fn term(self, log_p: f32, log_q: f32) -> (f32, f32) {
        let q = math::exp(log_q);
        let (_, of_q) = against_mixture(1.0 - self.lambda, log_p, log_q);
        let value = times(q, of_q);
        (value, value + q * (1.0 - self.lambda * math::exp(of_q)))
    }

    fn of_rows(self) -> RowDivergence {
        RowDivergence::SkewReverseKl { lambda: self.lambda }
    }
}
