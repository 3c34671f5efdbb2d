//! What the program promises of its numbers, checked on this machine: losses against their definitions in f64, fused kernels
//! against naive loops.

mod kernels;
mod losses;
mod numbers;
mod reference;
mod rows;
#[cfg(test)]
mod tests;

use candle_core::Device;

use crate::error::Result;

/// One promise: the largest error that was met, and what it may be.
#[derive(Debug, Clone)]
pub struct Check {
    pub name: String,
    pub cases: usize,
    /// NaN where a result was none.
    pub worst: f64,
    pub limit: f64,
}

impl Check {
    fn new(name: impl Into<String>, limit: f64) -> Self {
        Self { name: name.into(), cases: 0, worst: 0.0, limit }
    }

    fn met(&mut self, error: f64) {
        self.cases += 1;
        if error.is_nan() || error > self.worst {
            self.worst = error;
        }
    }

    /// Whether something was compared, and was near enough.
    pub fn passed(&self) -> bool {
        self.cases > 0 && self.worst <= self.limit
    }
}

/// Every check, on `device`.
pub fn run(device: &Device) -> Result<Vec<Check>> {
    let mut checks = losses::checks(device, &losses::subjects())?;
    checks.extend(kernels::checks(device)?);
    Ok(checks)
}
