//! An estimate of the room that a run takes on the disk, before anything is written.

use super::types::{CheckpointConfig, Dtype, RunConfig};

/// What the folder of a run grows to, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// One checkpoint.
    pub checkpoint: u64,
    /// How many there are at once, the one under construction among them.
    pub checkpoints: u64,
    /// The student's folder.
    pub student: u64,
}

impl Disk {
    pub(super) fn of(config: &RunConfig, parameters: usize, checkpoint: u64, total_steps: u64) -> Self {
        let width = if config.output.dtype == Dtype::F32 { 4 } else { 2 };
        let checkpoints = at_once(&config.checkpoint, config.data.eval.is_some(), total_steps);
        Self { checkpoint, checkpoints, student: parameters as u64 * width }
    }

    /// What is still to be written when `there` checkpoints stand already. One more is always written before another goes.
    pub fn still(&self, there: u64) -> u64 {
        let more = self.checkpoints.saturating_sub(there).max(1);
        self.checkpoint.saturating_mul(more).saturating_add(self.student)
    }
}

fn at_once(config: &CheckpointConfig, evaluates: bool, total_steps: u64) -> u64 {
    // Step 0 has one too.
    let saves = total_steps.div_ceil(config.every_steps).saturating_add(1);
    let best = (config.keep_best && evaluates) as u64;
    let milestones = config.keep_every.map_or(0, |every| total_steps / every);
    (config.keep_last as u64 + 1 + best).saturating_add(milestones).min(saves + best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(every_steps: u64, keep_every: Option<u64>, keep_best: bool) -> CheckpointConfig {
        CheckpointConfig { every_steps, keep_last: 2, keep_every, keep_best }
    }

    #[test]
    fn checkpoints_at_once_are_those_that_stay_and_the_one_being_written() {
        assert_eq!(at_once(&at(10, None, false), true, 100), 3);
        assert_eq!(at_once(&at(10, None, true), true, 100), 4);
        assert_eq!(at_once(&at(10, None, true), false, 100), 3);
        assert_eq!(at_once(&at(10, Some(20), false), true, 100), 8);
        assert_eq!(at_once(&at(100, None, false), true, 40), 2);
    }

    #[test]
    fn what_stands_already_is_not_asked_for_again() {
        let disk = Disk { checkpoint: 10, checkpoints: 4, student: 3 };
        assert_eq!([0, 3, 9].map(|there| disk.still(there)), [43, 13, 13]);
    }
}
