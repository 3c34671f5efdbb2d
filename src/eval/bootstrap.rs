//! Confidence intervals of ratios by resampling rows (Efron 1979), with a fixed seed so that a report is reproducible.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::report::RowSums;

const RESAMPLES: usize = 1000;
const SEED: u64 = 20_140_531;

/// The 2.5th and 97.5th percentile.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval(pub f64, pub f64);

/// The interval of `statistic` of the summed rows.
pub(super) fn interval(rows: &[RowSums], statistic: impl Fn(&RowSums) -> f64) -> Interval {
    resample(rows.len(), |draw| {
        let mut total = RowSums::default();
        for &i in draw {
            total.targets += rows[i].targets;
            total.kl += rows[i].kl;
            total.nll += rows[i].nll;
            total.teacher_nll += rows[i].teacher_nll;
        }
        statistic(&total)
    })
}

/// 1 − KL(student) / KL(baseline), with its interval; the two are resampled in pairs, so they must hold the same rows.
pub fn gap_closed(student: &[RowSums], baseline: &[RowSums]) -> (f64, Interval) {
    let closed = |draw: &[usize]| {
        let kl = |rows: &[RowSums]| draw.iter().map(|&i| rows[i].kl).sum::<f64>();
        1.0 - kl(student) / kl(baseline)
    };
    let all: Vec<usize> = (0..student.len().min(baseline.len())).collect();
    (closed(&all), resample(all.len(), closed))
}

fn resample(rows: usize, statistic: impl Fn(&[usize]) -> f64) -> Interval {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut draw = vec![0; rows];
    let mut values: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            draw.iter_mut().for_each(|i| *i = rng.random_range(0..rows));
            statistic(&draw)
        })
        .collect();
    values.sort_by(f64::total_cmp);
    let at = |p: f64| values[(p * (RESAMPLES - 1) as f64).round() as usize];
    Interval(at(0.025), at(0.975))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_of_pairs_that_keep_their_ratio_has_no_spread() {
        let row = |kl: f64| RowSums { targets: 3.0, kl, nll: 1.0, teacher_nll: 1.0 };
        let baseline: Vec<RowSums> = (1..20).map(|i| row(i as f64)).collect();
        let student: Vec<RowSums> = (1..20).map(|i| row(i as f64 / 4.0)).collect();
        let (gap, Interval(low, high)) = gap_closed(&student, &baseline);
        assert!((gap - 0.75).abs() < 1e-12 && (low - 0.75).abs() < 1e-12 && (high - 0.75).abs() < 1e-12);
    }
}
