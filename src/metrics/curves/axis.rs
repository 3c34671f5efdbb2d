//! An axis: from values to a place between 0 and 1, and the round values to label on the way.

use crate::units::{Count, Rounded};

/// Linear, or logarithmic (base 10), over a range that is never empty.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    /// Of steps, from the start of the run.
    pub(super) fn steps(last: f64) -> Self {
        Self { low: 0.0, high: last.max(1.0), log: false }
    }

    /// Of values, with some room around them; logarithmic where the greatest is more than 20 times the least.
    pub(super) fn values(values: impl Iterator<Item = f64> + Clone) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        if low > high {
            return Self { low: 0.0, high: 1.0, log: false };
        }
        if low > 0.0 && high > 20.0 * low {
            let room = 0.05 * (high.log10() - low.log10());
            return Self { low: low.log10() - room, high: high.log10() + room, log: true };
        }
        let span = if high > low { high - low } else { high.abs().max(1e-3) };
        // Zero stays the floor of what is never negative: a curve near it should look near it.
        let floor = if low >= 0.0 && low < 0.5 * span { 0.0 } else { low - 0.06 * span };
        Self { low: floor, high: high + 0.06 * span, log: false }
    }

    pub(super) fn is_log(&self) -> bool {
        self.log
    }

    /// 0 at the low end, 1 at the high end.
    pub(super) fn place(&self, value: f64) -> f64 {
        let value = if self.log { value.max(f64::MIN_POSITIVE).log10() } else { value };
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// Round values inside the range, about `wanted`.
    pub(super) fn ticks(&self, wanted: usize) -> Vec<f64> {
        if self.log {
            let decades = self.high - self.low;
            let every = (decades / wanted as f64).ceil().max(1.0) as i32;
            let parts: &[f64] = if decades < 3.2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
            let exponents = (self.low.floor() as i32..=self.high.ceil() as i32).filter(|e| e % every == 0);
            return exponents
                .flat_map(|e| parts.iter().map(move |part| part * 10f64.powi(e)))
                .filter(|tick| (self.low..=self.high).contains(&tick.log10()))
                .collect();
        }
        let rough = (self.high - self.low) / wanted as f64;
        let unit = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * unit).into_iter().find(|step| *step >= rough).unwrap_or(rough);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(|n| n as f64 * step).collect()
    }

    /// The tick's label, with as many decimals as tell it from its neighbour.
    pub(super) fn label(&self, tick: f64, ticks: &[f64]) -> String {
        let gap = match (self.log, ticks) {
            (false, [first, second, ..]) => second - first,
            _ => tick.abs(),
        };
        let size = tick.abs().max(gap);
        if size != 0.0 && !(1e-4..1e6).contains(&size) {
            return format!("{tick:.0e}");
        }
        let decimals = if gap > 0.0 { (-gap.log10().floor()).max(0.0) as usize } else { 0 };
        format!("{tick:.decimals$}")
    }
}

/// A step's label on an axis up to `last`: exact, and in thousands or millions on a long one.
pub(super) fn step_label(step: f64, last: f64) -> String {
    let step = step as u64;
    if last >= 100_000.0 && step.is_multiple_of(1000) { Rounded(step).to_string() } else { Count(step).to_string() }
}
