//! −log q(label) at T = 1: what hard labels teach.

use super::row::LogitRow;

/// Returns −log q(label). With `gradient = (g, scale)` it also adds scale · (q − 1[label]) to g.
/// `student` must be at temperature 1.
pub fn cross_entropy_row(student: LogitRow<'_>, label: u32, gradient: Option<(&mut [f32], f32)>) -> f64 {
    if let Some((gradient, scale)) = gradient {
        student.add_softmax(gradient, scale);
        gradient[label as usize] -= scale;
    }
    -(student.log_probability(label as usize) as f64)
}
