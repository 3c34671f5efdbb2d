//! KL(p‖q) = Σ p (log p − log q): the distillation loss of Hinton et al. 2015 (arXiv 1503.02531), as a true divergence.

use super::row::{Divergence, LogitRow};
use crate::kernels::math;
use crate::signal::Needs;

/// Zero exactly when p = q. Student tokens beyond the teacher's row have p = 0: they cost nothing themselves, and their
/// share of q pushes them down.
pub struct ForwardKl;

impl Divergence for ForwardKl {
    fn name(&self) -> &'static str {
        "forward_kl"
    }

    fn needs(&self) -> Needs {
        Needs { full_distribution: true }
    }

    /// ∂D/∂z = (q − p) / T.
    fn row(&self, teacher: LogitRow<'_>, student: LogitRow<'_>, gradient: Option<(&mut [f32], f32)>) -> f64 {
        math::vectorize(|| {
            let shared = teacher.logits.len();
            let term = |i: usize| {
                let (log_p, log_q) = (teacher.log_probability(i), student.log_probability(i));
                let p = math::exp(log_p);
                // 0 · log 0 = 0: log p may be −∞ here.
                (p, log_q, if p > 0.0 { p * (log_p - log_q) } else { 0.0 })
            };
            let Some((gradient, scale)) = gradient else { return math::sum_by(shared, |i| term(i).2) };
            let scale = scale * student.inverse_temperature;
            let (inside, outside) = gradient.split_at_mut(shared);
            for (i, g) in outside.iter_mut().enumerate() {
                *g += scale * math::exp(student.log_probability(shared + i));
            }
            math::sum_into(inside, |i, g| {
                let (p, log_q, term) = term(i);
                *g += scale * (math::exp(log_q) - p);
                term
            })
        })
    }
}
