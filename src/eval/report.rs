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
    /// What the teacher gave: "dense", "top_k", "sampled", or null without a teacher. What a stored part of the distribution
    /// cannot tell is null; of "sampled", `kl_mean` and `acceptance` are unbiased estimates.
    pub signal: Option<&'static str>,
    pub kl_mean: Option<f64>,
    /// With "top_k" alone: the mean KL of the k tokens and one bucket of all others, which is at most `kl_mean`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket_kl_mean: Option<f64>,
    /// Standard error of `bucket_kl_mean`, as `kl_stderr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket_kl_stderr: Option<f64>,
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
    /// 99th percentile of |log q(label) − log p(label)|.
    pub delta_log_p_p99: Option<f64>,
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

    /// What runs are compared by, less is better: the KL, else what is known of it, else the student's perplexity.
    pub fn score(&self) -> f64 {
        self.kl_mean.or(self.bucket_kl_mean).unwrap_or(self.student_perplexity)
    }

    /// `row_ends[r]` is the number of targets of rows 0 to r; `signal` is what the teacher gave.
    pub(super) fn new(targets: &[TargetStats], row_ends: &[usize], signal: Option<&'static str>) -> Result<Self> {
        if targets.is_empty() {
            return Err(Error::input("there is no target token to evaluate on"));
        }
        let n = targets.len() as f64;
        let mean = |f: &dyn Fn(&TargetStats) -> f64| targets.iter().map(f).sum::<f64>() / n;
        let comparisons: Option<Vec<Comparison>> = targets.iter().map(|t| t.comparison).collect();
        let known = |f: &dyn Fn(&Comparison) -> Option<f64>| -> Option<f64> {
            let all: Option<Vec<f64>> = comparisons.as_ref()?.iter().map(f).collect();
            all.map(|all| all.iter().sum::<f64>() / n)
        };
        let compared = |f: &dyn Fn(&Comparison) -> f64| known(&|c| Some(f(c)));
        let (dense, bucket) = (signal == Some("dense"), signal == Some("top_k"));
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
        let delta = |t: &TargetStats| t.comparison.map(|c| (t.nll - c.teacher_nll).abs());
        let mut deltas: Vec<f64> = targets.iter().filter_map(delta).collect();
        deltas.sort_by(f64::total_cmp);
        let percentile = |p: f64| (dense && !kls.is_empty()).then(|| percentile(&kls, p));
        let student_perplexity = mean(&|t| t.nll).exp();
        let teacher_perplexity = compared(&|c| c.teacher_nll).map(f64::exp);
        let mean_kl = compared(&|c| c.kl);
        let stderr = mean_kl.and_then(|mean| clustered_error(&row_sums, mean));
        let ratio = |sums: &RowSums| ((sums.nll - sums.teacher_nll) / sums.targets).exp();
        Ok(Self {
            rows: rows.len(),
            tokens: targets.len(),
            signal,
            kl_mean: mean_kl.filter(|_| !bucket),
            bucket_kl_mean: mean_kl.filter(|_| bucket),
            kl_stderr: stderr.filter(|_| !bucket),
            bucket_kl_stderr: stderr.filter(|_| bucket),
            kl_median: percentile(0.5),
            kl_p90: percentile(0.9),
            kl_p99: percentile(0.99),
            kl_max: percentile(1.0),
            reverse_kl_mean: known(&|c| c.reverse_kl),
            top1_agreement: known(&|c| c.top1.map(|same| same as u8 as f64)),
            top5_overlap: known(&|c| c.top5),
            acceptance: known(&|c| c.acceptance),
            student_perplexity,
            teacher_perplexity,
            perplexity_ratio: teacher_perplexity.map(|t| student_perplexity / t),
            perplexity_ratio_ci95: comparisons.as_ref().map(|_| bootstrap::interval(&row_sums, ratio)),
            rms_delta_p: compared(&|c| c.delta_p * c.delta_p).map(f64::sqrt),
            delta_log_p_p99: (!deltas.is_empty()).then(|| self::percentile(&deltas, 0.99)),
            student_exact_match: Some(exact(&|t| t.correct)),
            teacher_exact_match: known(&|c| c.teacher_correct.map(|_| 0.0))
                .map(|_| exact(&|t| t.comparison.is_some_and(|c| c.teacher_correct == Some(true)))),
            student_mass_outside: known(&|c| c.mass_outside),
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
            reverse_kl: Some(kl),
            top1: Some(correct),
            top5: Some(0.5),
            acceptance: Some(0.5),
            mass_outside: None,
            teacher_nll: 1.0,
            teacher_correct: Some(true),
            delta_p: -0.5,
        };
        TargetStats { nll, correct, comparison: Some(comparison) }
    }

    #[test]
    fn means_are_weighted_by_tokens_and_rows_are_clusters() {
        let targets = [target(1.0, 2.0, true), target(3.0, 2.0, true), target(5.0, 2.0, false)];
        let report = EvalReport::new(&targets, &[2, 3], Some("dense")).unwrap();
        assert_eq!((report.rows, report.tokens, report.kl_mean), (2, 3, Some(3.0)));
        // S = (4, 5), n = (2, 1), μ = 3: √(2 · (4 + 4)) / 3.
        assert!((report.kl_stderr.unwrap() - 4.0 / 3.0).abs() < 1e-12);
        assert_eq!((report.kl_median, report.kl_max), (Some(3.0), Some(5.0)));
        assert!((report.kl_p90.unwrap() - 4.6).abs() < 1e-12);
        assert!((report.student_perplexity - 2f64.exp()).abs() < 1e-12);
        assert!((report.perplexity_ratio.unwrap() - 1f64.exp()).abs() < 1e-12);
        assert_eq!((report.student_exact_match, report.teacher_exact_match), (Some(0.5), Some(1.0)));
        assert_eq!(report.delta_log_p_p99, Some(1.0));
    }

    #[test]
    fn a_stored_signal_has_no_percentiles_and_top_k_no_kl_but_its_own() {
        let targets = [target(1.0, 2.0, true), target(3.0, 2.0, true)];
        let of = |signal| EvalReport::new(&targets, &[1, 2], Some(signal)).unwrap();
        let (top_k, sampled) = (of("top_k"), of("sampled"));
        assert_eq!((top_k.kl_mean, top_k.bucket_kl_mean, top_k.score()), (None, Some(2.0), 2.0));
        assert_eq!((sampled.kl_mean, sampled.bucket_kl_mean, sampled.score()), (Some(2.0), None, 2.0));
        for report in [top_k, sampled] {
            let percentiles = [report.kl_median, report.kl_p90, report.kl_p99, report.kl_max];
            assert!(percentiles.iter().all(Option::is_none));
            assert_eq!(report.kl_stderr.is_some(), report.signal == Some("sampled"));
            assert_eq!(report.bucket_kl_stderr.is_some(), report.signal == Some("top_k"));
        }
    }

    #[test]
    fn without_a_teacher_only_the_students_figures_are_there() {
        let targets = [TargetStats { nll: 1.0, correct: true, comparison: None }];
        let report = EvalReport::new(&targets, &[1], None).unwrap();
        assert_eq!((report.kl_mean, report.teacher_perplexity, report.signal), (None, None, None));
    }

    #[test]
    fn no_target_is_an_input_error() {
        assert_eq!(EvalReport::new(&[], &[], None).unwrap_err().class(), crate::error::Class::Input);
    }
}
