//! The figures of an evaluation, from its targets.

use serde::Serialize;

use super::bootstrap::{self, Interval};
use super::row::{Comparison, TargetStats};
use crate::error::{Error, Result};

/// Sums over the targets of one row: what the clustered error and the bootstrap resample.
#[derive(Debug, Clone, Copy, Default)]
pub struct RowSums {
    pub targets: f64,
    pub kl: f64,
    pub nll: f64,
    pub teacher_nll: f64,
}

/// Token-weighted means over target tokens at temperature 1, in nats; fractions from 0 to 1. What needs a teacher is
/// null without one.
#[derive(Debug, Clone, Default, Serialize)]
pub struct EvalReport {
    pub rows: usize,
    pub tokens: usize,
    /// What the teacher gave: "dense", or null without a teacher.
    pub signal: Option<&'static str>,
    pub kl_mean: Option<f64>,
    /// Standard error of `kl_mean`, clustered by row.
    pub kl_stderr: Option<f64>,
    pub kl_median: Option<f64>,
    pub kl_p90: Option<f64>,
    pub kl_p99: Option<f64>,
    pub kl_max: Option<f64>,
    pub reverse_kl_mean: Option<f64>,
    pub top1_agreement: Option<f64>,
    pub top5_overlap: Option<f64>,
    pub acceptance: Option<f64>,
    pub student_perplexity: f64,
    pub teacher_perplexity: Option<f64>,
    /// Student over teacher.
    pub perplexity_ratio: Option<f64>,
    pub perplexity_ratio_ci95: Option<Interval>,
    pub rms_delta_p: Option<f64>,
    /// Share of rows whose every target the student ranks first: what greedy decoding answers exactly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student_exact_match: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_exact_match: Option<f64>,
    /// Mean student probability of ids beyond the teacher's vocabulary; only when there are such ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student_mass_outside: Option<f64>,
    #[serde(skip)]
    pub row_sums: Vec<RowSums>,
}

impl EvalReport {
    /// Leaves the exact matches out, for runs whose answers are free text.
    pub fn without_exact_match(self) -> Self {
        Self { student_exact_match: None, teacher_exact_match: None, ..self }
    }

    /// `row_ends[r]` is the number of targets of rows 0 to r.
    pub(super) fn new(targets: &[TargetStats], row_ends: &[usize]) -> Result<Self> {
        if targets.is_empty() {
            return Err(Error::input("there is no target token to evaluate on"));
        }
        let n = targets.len() as f64;
        let mean = |f: &dyn Fn(&TargetStats) -> f64| targets.iter().map(f).sum::<f64>() / n;
        let comparisons: Option<Vec<Comparison>> = targets.iter().map(|t| t.comparison).collect();
        let compared =
            |f: &dyn Fn(&Comparison) -> f64| comparisons.as_ref().map(|all| all.iter().map(f).sum::<f64>() / n);
        let rows: Vec<&[TargetStats]> = row_ends
            .iter()
            .scan(0, |start, &end| Some(&targets[std::mem::replace(start, end)..end]))
            .filter(|row| !row.is_empty())
            .collect();
        let row_sums: Vec<RowSums> = rows.iter().map(|row| sums(row)).collect();
        let exact = |right: &dyn Fn(&TargetStats) -> bool| {
            rows.iter().filter(|row| row.iter().all(right)).count() as f64 / rows.len() as f64
        };
        let mut kls: Vec<f64> = comparisons.iter().flatten().map(|c| c.kl).collect();
        kls.sort_by(f64::total_cmp);
        let percentile = |p: f64| comparisons.as_ref().map(|_| percentile(&kls, p));
        let student_perplexity = mean(&|t| t.nll).exp();
        let teacher_perplexity = compared(&|c| c.teacher_nll).map(f64::exp);
        let kl_mean = compared(&|c| c.kl);
        let ratio = |sums: &RowSums| ((sums.nll - sums.teacher_nll) / sums.targets).exp();
        let outside: Option<Vec<f64>> =
            comparisons.as_ref().and_then(|all| all.iter().map(|c| c.mass_outside).collect());
        Ok(Self {
            rows: rows.len(),
            tokens: targets.len(),
            signal: comparisons.as_ref().map(|_| "dense"),
            kl_mean,
            kl_stderr: kl_mean.and_then(|mean| clustered_error(&row_sums, mean)),
            kl_median: percentile(0.5),
            kl_p90: percentile(0.9),
            kl_p99: percentile(0.99),
            kl_max: kls.last().copied(),
            reverse_kl_mean: compared(&|c| c.reverse_kl),
            top1_agreement: compared(&|c| c.top1 as u8 as f64),
            top5_overlap: compared(&|c| c.top5),
            acceptance: compared(&|c| c.acceptance),
            student_perplexity,
            teacher_perplexity,
            perplexity_ratio: teacher_perplexity.map(|t| student_perplexity / t),
            perplexity_ratio_ci95: comparisons.as_ref().map(|_| bootstrap::interval(&row_sums, ratio)),
            rms_delta_p: compared(&|c| c.delta_p * c.delta_p).map(f64::sqrt),
            student_exact_match: Some(exact(&|t| t.correct)),
            teacher_exact_match: comparisons
                .as_ref()
                .map(|_| exact(&|t| t.comparison.is_some_and(|c| c.teacher_correct))),
            student_mass_outside: outside.map(|all| all.iter().sum::<f64>() / n),
            row_sums,
        })
    }
}

fn sums(row: &[TargetStats]) -> RowSums {
    let sum = |f: &dyn Fn(&Comparison) -> f64| row.iter().filter_map(|t| t.comparison.as_ref()).map(f).sum();
    RowSums {
        targets: row.len() as f64,
        kl: sum(&|c| c.kl),
        nll: row.iter().map(|t| t.nll).sum(),
        teacher_nll: sum(&|c| c.teacher_nll),
    }
}

/// √(R/(R−1) · Σ_r (S_r − μ n_r)²) / Σ n_r: tokens of a row are dependent. None for a single row.
fn clustered_error(rows: &[RowSums], mean: f64) -> Option<f64> {
    let r = rows.len() as f64;
    let tokens: f64 = rows.iter().map(|row| row.targets).sum();
    let squares: f64 = rows.iter().map(|row| (row.kl - mean * row.targets).powi(2)).sum();
    (rows.len() > 1).then(|| (r / (r - 1.0) * squares).sqrt() / tokens)
}

/// Linear interpolation between the order statistics of `sorted`.
fn percentile(sorted: &[f64], p: f64) -> f64 {
    let at = p * (sorted.len() - 1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (at - low as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(kl: f64, nll: f64, correct: bool) -> TargetStats {
        let comparison = Comparison {
            kl,
            reverse_kl: kl,
            top1: correct,
            top5: 0.5,
            acceptance: 0.5,
            mass_outside: None,
            teacher_nll: 1.0,
            teacher_correct: true,
            delta_p: -0.5,
        };
        TargetStats { nll, correct, comparison: Some(comparison) }
    }

    #[test]
    fn means_are_weighted_by_tokens_and_rows_are_clusters() {
        let targets = [target(1.0, 2.0, true), target(3.0, 2.0, true), target(5.0, 2.0, false)];
        let report = EvalReport::new(&targets, &[2, 3]).unwrap();
        assert_eq!((report.rows, report.tokens, report.kl_mean), (2, 3, Some(3.0)));
        // S = (4, 5), n = (2, 1), μ = 3: √(2 · (4 + 4)) / 3.
        assert!((report.kl_stderr.unwrap() - 4.0 / 3.0).abs() < 1e-12);
        assert_eq!((report.kl_median, report.kl_max), (Some(3.0), Some(5.0)));
        assert!((report.kl_p90.unwrap() - 4.6).abs() < 1e-12);
        assert!((report.student_perplexity - 2f64.exp()).abs() < 1e-12);
        assert!((report.perplexity_ratio.unwrap() - 1f64.exp()).abs() < 1e-12);
        assert_eq!((report.student_exact_match, report.teacher_exact_match), (Some(0.5), Some(1.0)));
    }

    #[test]
    fn without_a_teacher_only_the_students_figures_are_there() {
        let targets = [TargetStats { nll: 1.0, correct: true, comparison: None }];
        let report = EvalReport::new(&targets, &[1]).unwrap();
        assert_eq!((report.kl_mean, report.teacher_perplexity, report.signal), (None, None, None));
    }

    #[test]
    fn no_target_is_an_input_error() {
        assert_eq!(EvalReport::new(&[], &[]).unwrap_err().class(), crate::error::Class::Input);
    }
}
