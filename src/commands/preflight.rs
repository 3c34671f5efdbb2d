//! Whether the disk has room for a run, asked before any model is loaded.

use std::path::Path;

use super::start::Start;
use crate::checkpoint::find;
use crate::config::plan::Plan;
use crate::error::{Error, Result};
use crate::units::{Bytes, free_bytes};

/// Input errors: the checkpoints that the run keeps at once, and its student, do not fit on the disk of its folder. Where the
/// system does not tell what is free, nothing is refused.
pub fn disk(plan: &Plan, start: &Start) -> Result<()> {
    let dir = &plan.config.output.dir;
    let there = match start {
        // Those of a future that was left behind never go.
        Start::From(origin) if origin.same_run => {
            find::steps(dir)?.iter().filter(|&&step| step <= origin.checkpoint.step()).count() as u64
        }
        _ => 0,
    };
    let disk = plan.disk();
    let needed = disk.still(there);
    let Some(free) = free(dir) else { return Ok(()) };
    if needed <= free {
        return Ok(());
    }
    Err(Error::input(format!(
        "the run writes about {} to {}, where {} are free: up to {} checkpoints of {} at once ({there} there already), and a student \
         of {}. Make room, take another --output, or lower checkpoint.keep_last ({}), checkpoint.keep_best or checkpoint.keep_every",
        Bytes(needed),
        dir.display(),
        Bytes(free),
        disk.checkpoints,
        Bytes(disk.checkpoint),
        Bytes(disk.student),
        plan.config.checkpoint.keep_last,
    )))
}

/// Bytes that are free where `dir` is or will be.
pub fn free(dir: &Path) -> Option<u64> {
    dir.ancestors().find(|dir| dir.exists()).and_then(free_bytes)
}
