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
        math::vectorize(
            #[inline(always)]
            || {
                let shared = teacher.logits.len();
                let (inside, outside) = student.logits.split_at(shared);
                let term = |y: f32, z: f32| {
                    let (log_p, log_q) = (teacher.log_probability_of(y), student.log_probability_of(z));
                    let p = math::exp(log_p);
                    // 0 · log 0 = 0: log p may be −∞ here.
                    (p, log_q, if p > 0.0 { p * (log_p - log_q) } else { 0.0 })
                };
                let Some((gradient, scale)) = gradient else {
                    return math::sum_of([teacher.logits, inside], |[y, z]| term(y, z).2);
                };
                let scale = scale * student.inverse_temperature;
                let (gradient, beyond) = gradient.split_at_mut(shared);
                for (g, &z) in beyond.iter_mut().zip(outside) {
                    *g += scale * math::exp(student.log_probability_of(z));
                }
                math::sum_into(gradient, [teacher.logits, inside], |g, [y, z]| {
                    let (p, log_q, term) = term(y, z);
                    *g += scale * (math::exp(log_q) - p);
                    term
                })
            },
        )
    }
}
