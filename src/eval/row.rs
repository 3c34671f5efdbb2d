//! What one target says about how close the student is to the teacher, at temperature 1.

use crate::kernels::math;
use crate::loss::{Divergence, ForwardKl, LogitRow};
use crate::signal::{SampledRow, TopKRow};

/// Comparison of one target's distributions; nats and probabilities. None is what a stored signal does not tell.
#[derive(Debug, Clone, Copy)]
pub struct Comparison {
    /// Of the k likeliest tokens and one bucket of all others, which is no more than the whole; of draws, an estimate.
    pub kl: f64,
    /// Over the teacher's support, both renormalised there.
    pub reverse_kl: Option<f64>,
    /// Both rank the same token first.
    pub top1: Option<bool>,
    /// Share of the teacher's five likeliest tokens that are among the student's five.
    pub top5: Option<f64>,
    /// Σ min(p, q): the chance that speculative decoding accepts the student's token.
    pub acceptance: Option<f64>,
    /// Student probability of ids beyond the teacher's vocabulary; None where there are none.
    pub mass_outside: Option<f64>,
    /// −log p(label).
    pub teacher_nll: f64,
    /// The teacher ranks the label first.
    pub teacher_correct: Option<bool>,
    /// q(label) − p(label).
    pub delta_p: f64,
}

/// The teacher's word on a target at temperature 1; a stored one comes with log p of the label.
#[derive(Clone, Copy)]
pub enum Word<'a> {
    Logits(LogitRow<'a>),
    TopK(TopKRow<'a>, f32),
    Sampled(SampledRow<'a>, f32),
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
    /// The teacher's logits may be fewer than the student's, never more.
    pub fn new(teacher: Option<Word<'_>>, student: LogitRow<'_>, label: u32) -> Self {
        let label = label as usize;
        let first = argmax(student.logits);
        let comparison = teacher.map(|teacher| match teacher {
            Word::Logits(teacher) => compare(teacher, student, label),
            Word::TopK(teacher, log_p) => compare_top_k(teacher, log_p, student, label, first),
            Word::Sampled(teacher, log_p) => compare_sampled(teacher, log_p, student, label),
        });
        Self { nll: -(student.log_probability(label) as f64), correct: first == label, comparison }
    }
}

/// What the label alone tells.
fn of_label(kl: f64, log_p: f32, student: LogitRow<'_>, label: usize) -> Comparison {
    Comparison {
        kl,
        reverse_kl: None,
        top1: None,
        top5: None,
        acceptance: None,
        mass_outside: None,
        teacher_nll: -(log_p as f64),
        teacher_correct: None,
        delta_p: (student.log_probability(label) as f64).exp() - (log_p as f64).exp(),
    }
}

fn compare_top_k(teacher: TopKRow<'_>, log_p: f32, student: LogitRow<'_>, label: usize, first: usize) -> Comparison {
    let ids = teacher.ids;
    let kl = ForwardKl.top_k_row(teacher, student, None);
    let q_top = top(student.logits, 5);
    let five = ids.get(..5).map(|five| five.iter().filter(|&&id| q_top.contains(&(id as usize))).count() as f64 / 5.0);
    Comparison {
        top1: ids.first().map(|&id| id as usize == first),
        top5: five,
        teacher_correct: ids.first().map(|&id| id as usize == label),
        ..of_label(kl, log_p, student, label)
    }
}

fn compare_sampled(teacher: SampledRow<'_>, log_p: f32, student: LogitRow<'_>, label: usize) -> Comparison {
    let kl = ForwardKl.sampled_row(teacher, student, None);
    // Σ min(p, q) = Σ p · min(1, q / p).
    let draws = teacher.ids.iter().zip(teacher.log_probabilities).zip(teacher.weights);
    let accepted = draws.map(|((&id, &log_p), &weight)| {
        weight as f64 * ((student.log_probability(id as usize) - log_p) as f64).min(0.0).exp()
    });
    Comparison { acceptance: Some(accepted.sum()), ..of_label(kl, log_p, student, label) }
}

fn compare(teacher: LogitRow<'_>, student: LogitRow<'_>, label: usize) -> Comparison {
    let shared = teacher.logits.len();
    let inside = LogitRow::new(&student.logits[..shared], student.inverse_temperature);
    let (p_top, q_top) = (top(teacher.logits, 5), top(student.logits, 5));
    let log_p = |i: usize| if i < shared { teacher.log_probability(i) as f64 } else { f64::NEG_INFINITY };
    Comparison {
        kl: ForwardKl.row(teacher, student, None),
        reverse_kl: Some(ForwardKl.row(inside, teacher, None)),
        top1: Some(p_top[0] == q_top[0]),
        top5: Some(p_top.iter().filter(|i| q_top.contains(i)).count() as f64 / p_top.len() as f64),
        acceptance: Some(math::vectorize(
            #[inline(always)]
            || {
                math::sum_of([teacher.logits, &student.logits[..shared]], |[y, z]| {
                    math::exp(teacher.log_probability_of(y).min(student.log_probability_of(z)))
                })
            },
        )),
        mass_outside: (student.logits.len() > shared)
            .then(|| 1.0 - ((inside.log_sum_exp - student.log_sum_exp) as f64).exp()),
        teacher_nll: -log_p(label),
        teacher_correct: Some(p_top[0] == label),
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
        let teacher = Word::Logits(LogitRow::new(teacher, 1.0));
        TargetStats::new(Some(teacher), LogitRow::new(student, 1.0), label).comparison.unwrap()
    }

    #[test]
    fn equal_rows_agree_in_everything() {
        let row = [0.5, -1.0, 2.0, 0.0, 0.3, 1.0, -2.0];
        let c = stats(&row, &row, 2);
        assert_eq!((c.kl, c.reverse_kl, c.top1, c.top5, c.delta_p), (0.0, Some(0.0), Some(true), Some(1.0), 0.0));
        assert!((c.acceptance.unwrap() - 1.0).abs() < 1e-6 && c.mass_outside.is_none());
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
        assert!((c.reverse_kl.unwrap() - reverse).abs() < 1e-6 && (c.acceptance.unwrap() - accepted).abs() < 1e-6);
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
        assert!((c.mass_outside.unwrap() - 0.5).abs() < 1e-6 && c.reverse_kl.unwrap().abs() < 1e-6);
    }

    #[test]
    fn what_was_stored_of_a_teacher_says_what_it_can_and_no_more() {
        let (z, y) = ([2.0f32, 1.0, 0.0, -1.0, 0.5, -3.0], [1.0f32, 1.5, 0.5, -0.5, 0.0, -1.0]);
        let (p, q) = (LogitRow::new(&z, 1.0), LogitRow::new(&y, 1.0));
        let ids: Vec<u32> = vec![0, 1, 4, 2, 3, 5];
        let log_p: Vec<f32> = ids.iter().map(|&id| p.log_probability(id as usize)).collect();
        let whole = stats(&z, &y, 1);
        let of = |word| TargetStats::new(Some(word), q, 1).comparison.unwrap();

        let row = TopKRow {
            ids: &ids[..2],
            log_probabilities: &log_p[..2],
            log_tail: Some((1.0 - log_p[0].exp() - log_p[1].exp()).ln()),
        };
        let c = of(Word::TopK(row, log_p[1]));
        assert!(c.kl > 0.0 && c.kl < whole.kl);
        assert_eq!((c.top1, c.top5, c.teacher_correct), (Some(false), None, Some(false)));
        assert!(c.reverse_kl.is_none() && c.acceptance.is_none());
        assert!((c.teacher_nll - whole.teacher_nll).abs() < 1e-6 && (c.delta_p - whole.delta_p).abs() < 1e-6);
        let row = TopKRow { ids: &ids, log_probabilities: &log_p, log_tail: Some(f32::NEG_INFINITY) };
        let c = of(Word::TopK(row, log_p[1]));
        assert!((c.kl - whole.kl).abs() < 1e-6 && c.top5 == whole.top5, "{c:?} {whole:?}");

        // Weights of p itself are a draw of every token.
        let weights: Vec<f32> = log_p.iter().map(|p| p.exp()).collect();
        let c = of(Word::Sampled(SampledRow { ids: &ids, log_probabilities: &log_p, weights: &weights }, log_p[1]));
        assert!((c.kl - whole.kl).abs() < 1e-6 && (c.acceptance.unwrap() - whole.acceptance.unwrap()).abs() < 1e-6);
        assert_eq!((c.top1, c.top5, c.teacher_correct, c.reverse_kl), (None, None, None, None));
    }
}
