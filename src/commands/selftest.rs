//! `distill selftest`: what the program promises of its numbers, checked where it runs.

use super::{Outcome, out};
use crate::cli::SelftestArgs;
use crate::device;
use crate::error::{Error, Result};
use crate::kernels::Simd;
use crate::selftest::{self, Check};

pub fn run(args: &SelftestArgs) -> Result<Outcome> {
    let opened = device::open(args.device.choice)?;
    let checks = selftest::run(&opened.device)?;
    out::write(&format!("device {}, instructions of the CPU {}\n\n", opened.description, Simd::level().name()))?;
    out::write(&table(&checks))?;
    verdict(&checks)
}

fn table(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let mut text = format!("{:<width$}  {:>5}  {:>11}  {:>8}\n", "check", "cases", "worst error", "limit");
    for check in checks {
        let Check { name, cases, worst, limit } = check;
        let verdict = if check.passed() { "pass" } else { "FAIL" };
        text += &format!("{name:<width$}  {cases:>5}  {worst:>11.1e}  {limit:>8.0e}  {verdict}\n");
    }
    text
}

/// A failed check is a failed run: exit 1.
fn verdict(checks: &[Check]) -> Result<Outcome> {
    let failed: Vec<&str> = checks.iter().filter(|check| !check.passed()).map(|check| check.name.as_str()).collect();
    match failed.as_slice() {
        [] => Ok(Outcome::Done),
        _ => Err(Error::run(format!(
            "{} of {} checks failed ({}): do not trust what this program computes on this machine",
            failed.len(),
            checks.len(),
            failed.join("; ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;

    #[test]
    fn a_check_beyond_its_limit_is_shown_and_fails_the_command() {
        let check = |name: &str, worst| Check { name: name.into(), cases: 3, worst, limit: 1e-6 };
        let good = [check("a", 1e-7), check("b", 0.0)];
        assert_eq!(verdict(&good).unwrap(), Outcome::Done);
        for worst in [2e-6, f64::NAN] {
            let bad = [check("a", 1e-7), check("b", worst)];
            assert!(table(&bad).lines().any(|line| line.starts_with('b') && line.ends_with("FAIL")));
            let error = verdict(&bad).unwrap_err();
            assert!(error.class() == Class::Run && error.to_string().contains("1 of 2 checks failed (b)"), "{error}");
        }
    }
}
