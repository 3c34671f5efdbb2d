//! What one target says about how close the student is to the teacher, at temperature 1.

use crate::kernels::math;
use crate::loss::{Divergence, ForwardKl, LogitRow};

/// Comparison of one target's distributions; nats and probabilities.
#[derive(Debug, Clone, Copy)]
pub struct Comparison {
    pub kl: f64,
    /// Over the teacher's support, both renormalised there.
    pub reverse_kl: f64,
    /// Both rank the same token first.
    pub top1: bool,
    /// Share of the teacher's five likeliest tokens that are among the student's five.
    pub top5: f64,
    /// Σ min(p, q): the chance that speculative decoding accepts the student's token.
    pub acceptance: f64,
    /// Student probability of ids beyond the teacher's vocabulary; None where there are none.
    pub mass_outside: Option<f64>,
    /// −log p(label).
    pub teacher_nll: f64,
    /// The teacher ranks the label first.
    pub teacher_correct: bool,
    /// q(label) − p(label).
    pub delta_p: f64,
}

/// What one target says about the student, and about the teacher if there is one.
#[derive(Debug, Clone, Copy)]
pub struct TargetStats {
    /// −log q(label).
    pub nll: f64,
    /// The student ranks the label first.
    pub correct: bool,
    pub comparison: Option<Comparison>,
}

impl TargetStats {
    /// `teacher` may be shorter than the student's row, never longer.
    pub fn new(teacher: Option<LogitRow<'_>>, student: LogitRow<'_>, label: u32) -> Self {
        let label = label as usize;
        let nll = -(student.log_probability(label) as f64);
        Self {
            nll,
            correct: argmax(student.logits) == label,
            comparison: teacher.map(|teacher| compare(teacher, student, label)),
        }
    }
}

fn compare(teacher: LogitRow<'_>, student: LogitRow<'_>, label: usize) -> Comparison {
    let shared = teacher.logits.len();
    let inside = LogitRow::new(&student.logits[..shared], student.inverse_temperature);
    let (p_top, q_top) = (top(teacher.logits, 5), top(student.logits, 5));
    let log_p = |i: usize| if i < shared { teacher.log_probability(i) as f64 } else { f64::NEG_INFINITY };
    Comparison {
        kl: ForwardKl.row(teacher, student, None),
        reverse_kl: ForwardKl.row(inside, teacher, None),
        top1: p_top[0] == q_top[0],
        top5: p_top.iter().filter(|i| q_top.contains(i)).count() as f64 / p_top.len() as f64,
        acceptance: math::vectorize(
            #[inline(always)]
            || {
                math::sum_of([teacher.logits, &student.logits[..shared]], |[y, z]| {
                    math::exp(teacher.log_probability_of(y).min(student.log_probability_of(z)))
                })
            },
        ),
        mass_outside: (student.logits.len() > shared)
            .then(|| 1.0 - ((inside.log_sum_exp - student.log_sum_exp) as f64).exp()),
        teacher_nll: -log_p(label),
        teacher_correct: p_top[0] == label,
        delta_p: (student.log_probability(label) as f64).exp() - log_p(label).exp(),
    }
}

/// The index of the largest logit; the lowest on ties.
pub fn argmax(logits: &[f32]) -> usize {
    let largest = math::vectorize(
        #[inline(always)]
        || math::max(logits),
    );
    logits.iter().position(|&x| x == largest).unwrap_or(0)
}

/// Indices of the `k` largest logits, largest first; the lowest index first on ties.
fn top(logits: &[f32], k: usize) -> Vec<usize> {
    let mut best: Vec<usize> = Vec::with_capacity(k + 1);
    for (i, &x) in logits.iter().enumerate() {
        if best.len() == k && x <= logits[best[k - 1]] {
            continue;
        }
        let at = best.partition_point(|&b| logits[b] >= x);
        best.insert(at, i);
        best.truncate(k);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(teacher: &[f32], student: &[f32], label: u32) -> Comparison {
        TargetStats::new(Some(LogitRow::new(teacher, 1.0)), LogitRow::new(student, 1.0), label).comparison.unwrap()
    }

    #[test]
    fn equal_rows_agree_in_everything() {
        let row = [0.5, -1.0, 2.0, 0.0, 0.3, 1.0, -2.0];
        let c = stats(&row, &row, 2);
        assert_eq!((c.kl, c.reverse_kl, c.top1, c.top5, c.delta_p), (0.0, 0.0, true, 1.0, 0.0));
        assert!((c.acceptance - 1.0).abs() < 1e-6 && c.mass_outside.is_none());
    }

    #[test]
    fn figures_equal_their_definitions() {
        let (z, y) = ([2.0f32, 1.0, 0.0, -1.0], [1.0f32, 1.0, 0.5, -0.5]);
        let softmax = |z: &[f32]| {
            let total: f64 = z.iter().map(|&x| (x as f64).exp()).sum();
            z.iter().map(|&x| (x as f64).exp() / total).collect::<Vec<_>>()
        };
        let (p, q) = (softmax(&z), softmax(&y));
        let c = stats(&z, &y, 1);
        let reverse: f64 = p.iter().zip(&q).map(|(p, q)| q * (q / p).ln()).sum();
        let accepted: f64 = p.iter().zip(&q).map(|(p, q)| p.min(*q)).sum();
        assert!((c.reverse_kl - reverse).abs() < 1e-6 && (c.acceptance - accepted).abs() < 1e-6);
        assert!((c.teacher_nll + p[1].ln()).abs() < 1e-6 && (c.delta_p - (q[1] - p[1])).abs() < 1e-6);
    }

    #[test]
    fn ties_go_to_the_lowest_id() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
        assert_eq!(top(&[1.0, 3.0, 3.0, 0.0, 3.0, 2.0, 2.0], 5), [1, 2, 4, 5, 6]);
    }

    #[test]
    fn a_longer_student_row_reports_its_mass_outside() {
        let c = stats(&[0.0, 0.0], &[0.0, 0.0, 0.0, 0.0], 0);
        assert!((c.mass_outside.unwrap() - 0.5).abs() < 1e-6 && c.reverse_kl.abs() < 1e-6);
    }
}
