//! The learning rate of each step.

use serde::{Deserialize, Serialize};

/// What follows the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    Constant,
    /// Straight down to 0 at the end of the run.
    Linear,
    /// Half a cosine down to 0 at the end of the run (Loshchilov and Hutter 2016, arXiv 1608.03983, without restarts).
    Cosine,
}

/// Linear warm-up, then a decay that reaches 0 after `total_steps`.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    pub learning_rate: f64,
    pub decay: Decay,
    pub warmup_steps: u64,
    /// Length of the run; the constant schedule does not look at it.
    pub total_steps: u64,
}

impl Schedule {
    /// The learning rate of 0-based step `step`.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let span = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let left = self.total_steps.saturating_sub(step) as f64 / span;
        match self.decay {
            Decay::Constant => self.learning_rate,
            Decay::Linear => self.learning_rate * left,
            Decay::Cosine => self.learning_rate * 0.5 * (1.0 + (std::f64::consts::PI * (1.0 - left)).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(decay: Decay) -> Schedule {
        Schedule { learning_rate: 1.0, decay, warmup_steps: 4, total_steps: 12 }
    }

    #[test]
    fn warm_up_reaches_the_peak_at_its_last_step() {
        let warm: Vec<f64> = (0..4).map(|s| schedule(Decay::Constant).at(s)).collect();
        assert_eq!(warm, [0.25, 0.5, 0.75, 1.0]);
    }

    #[test]
    fn decays_start_at_the_peak_and_end_at_zero() {
        for decay in [Decay::Linear, Decay::Cosine] {
            assert_eq!(schedule(decay).at(4), 1.0);
            assert!((schedule(decay).at(8) - 0.5).abs() < 1e-12);
            assert!(schedule(decay).at(12).abs() < 1e-12);
        }
        assert_eq!(schedule(Decay::Constant).at(11), 1.0);
    }
}
