//! β KL(p‖m) + (1 − β) KL(q‖m), m = βp + (1 − β)q: the generalised Jensen-Shannon divergence of GKD (arXiv 2306.13649, eq. 1), with
//! the mixture in probability space.

use super::terms::{Term, against_mixture, times};
use crate::kernels::{RowDivergence, math};

#[derive(Debug, Clone, Copy)]
pub struct Jsd {
    /// Strictly between 0 and 1. Towards 0 it is forward KL times β, towards 1 reverse KL times 1 − β.
    pub beta: f32,
    /// 1, or 1 / (β (1 − β)), which makes β a direction and not a learning rate.
    pub factor: f32,
}

impl Jsd {
    /// `normalize`: divide by β (1 − β).
    pub fn new(beta: f64, normalize: bool) -> Self {
        let factor = if normalize { 1.0 / (beta * (1.0 - beta)) } else { 1.0 };
        Self { beta: beta as f32, factor: factor as f32 }
    }
}

impl Term for Jsd {
    const NAME: &'static str = "jsd";

    /// e = (1 − β) q log(q/m).
    #[inline(always)]
    fn term(self, log_p: f32, log_q: f32) -> (f32, f32) {
        let (p, q) = (math::exp(log_p), math::exp(log_q));
        let (of_p, of_q) = against_mixture(self.beta, log_p, log_q);
        let e = self.factor * (1.0 - self.beta) * times(q, of_q);
        (self.factor * self.beta * times(p, of_p) + e, e)
    }

    fn of_rows(self) -> RowDivergence {
        RowDivergence::Jsd { beta: self.beta, factor: self.factor }
    }
}
