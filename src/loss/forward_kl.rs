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
            if let Some((gradient, scale)) = gradient {
                let scale = scale * student.inverse_temperature;
                for (i, g) in gradient[..shared].iter_mut().enumerate() {
                    let (p, q) = (math::exp(teacher.log_probability(i)), math::exp(student.log_probability(i)));
                    *g += scale * (q - p);
                }
                for (i, g) in gradient.iter_mut().enumerate().skip(shared) {
                    *g += scale * math::exp(student.log_probability(i));
                }
            }
            math::sum_by(shared, |i| {
                let log_p = teacher.log_probability(i);
                let p = math::exp(log_p);
                // 0 · log 0 = 0: log p may be −∞ here.
                if p > 0.0 { p * (log_p - student.log_probability(i)) } else { 0.0 }
            })
        })
    }
}
