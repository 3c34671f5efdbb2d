//! −log q(label) at T = 1: what hard labels teach.

use super::row::LogitRow;
use crate::kernels::math;

/// Returns −log q(label). With `gradient = (g, scale)` it also adds scale · (q − 1[label]) to g.
/// `student` must be at temperature 1.
pub fn cross_entropy_row(student: LogitRow<'_>, label: u32, gradient: Option<(&mut [f32], f32)>) -> f64 {
    if let Some((gradient, scale)) = gradient {
        math::vectorize(
            #[inline(always)]
            || {
                for (g, &z) in gradient.iter_mut().zip(student.logits) {
                    *g += scale * math::exp(student.log_probability_of(z));
                }
            },
        );
        gradient[label as usize] -= scale;
    }
    -(student.log_probability(label as usize) as f64)
}
