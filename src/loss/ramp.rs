//! A number that may move in the course of a run: the temperature, the weight of hard labels.

/// The way from one value to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Straight.
    Linear,
    /// Half a cosine: slow at both ends.
    Cosine,
}

/// A value for each step of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ramp {
    Constant(f64),
    /// `from` at step 0, `to` at the last of `steps`.
    Moving {
        from: f64,
        to: f64,
        path: Path,
        steps: u64,
    },
}

impl Ramp {
    /// The value of 0-based step `step`; beyond the last step it stays.
    pub fn at(self, step: u64) -> f64 {
        match self {
            Self::Constant(value) => value,
            // Exactly `to`, where a sum would round.
            Self::Moving { to, steps, .. } if step + 1 >= steps => to,
            Self::Moving { from, to, path, steps } => {
                let done = step as f64 / (steps - 1) as f64;
                let share = match path {
                    Path::Linear => done,
                    Path::Cosine => 0.5 * (1.0 - (std::f64::consts::PI * done).cos()),
                };
                from + (to - from) * share
            }
        }
    }

    pub fn moves(self) -> bool {
        matches!(self, Self::Moving { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ramp_starts_and_ends_where_it_says_and_passes_the_middle_halfway() {
        for path in [Path::Linear, Path::Cosine] {
            let ramp = Ramp::Moving { from: 4.0, to: 1.0, path, steps: 11 };
            assert_eq!((ramp.at(0), ramp.at(10), ramp.at(99)), (4.0, 1.0, 1.0));
            assert!((ramp.at(5) - 2.5).abs() < 1e-12, "{path:?}");
            assert!((0..10).all(|step| ramp.at(step + 1) < ramp.at(step)), "{path:?}");
        }
        let quarter = Ramp::Moving { from: 0.0, to: 1.0, path: Path::Cosine, steps: 5 }.at(1);
        assert!((quarter - (1.0 - 0.5f64.sqrt()) / 2.0).abs() < 1e-12, "{quarter}");
    }

    #[test]
    fn a_run_of_one_step_ends_at_once() {
        assert_eq!(Ramp::Moving { from: 4.0, to: 1.0, path: Path::Linear, steps: 1 }.at(0), 1.0);
        assert_eq!(Ramp::Constant(2.0).at(7), 2.0);
    }
}
