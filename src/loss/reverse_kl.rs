//! KL(q‖p): mode-seeking, as MiniLLM has it (arXiv 2306.08543).

use super::terms::{Term, times};
use crate::kernels::{RowDivergence, math};

#[derive(Debug, Clone, Copy)]
pub struct ReverseKl;

impl Term for ReverseKl {
    const NAME: &'static str = "reverse_kl";
    const NEEDS_SUPPORT: bool = true;

    /// φ = q log(q/p); e = φ + q.
    #[inline(always)]
    fn term(self, log_p: f32, log_q: f32) -> (f32, f32) {
        let q = math::exp(log_q);
        let value = times(q, log_q - log_p);
        (value, value + q)
    }

    fn of_rows(self) -> RowDivergence {
        RowDivergence::ReverseKl
    }
}
