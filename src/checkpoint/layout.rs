//! The names inside a run directory and a checkpoint. Nothing here touches the disk but what asks whether a folder is one.

use std::path::Path;

use super::atomic::is_leftover;
use super::find;
use crate::error::{Error, Result};

/// The folder of all checkpoints of a run.
pub const CHECKPOINTS: &str = "checkpoints";
/// Pointer: the newest complete checkpoint.
pub const LATEST: &str = "latest";
/// Pointer: the checkpoint with the best evaluation.
pub const BEST: &str = "best";
/// The file a writer of the run holds locked.
pub const LOCK: &str = "run.lock";
/// There from a run's start until its first checkpoint is on the disk: what else stands in the folder may be started over.
pub const STARTING: &str = "run.starting";
/// The folder of the last step's student.
pub const STUDENT: &str = "student";
/// What became of the run.
pub const SUMMARY: &str = "summary.json";
/// The run's event log.
pub const METRICS: &str = "metrics.jsonl";

pub const MODEL: &str = "model.safetensors";
pub const CONFIG: &str = "config.json";
pub const GENERATION_CONFIG: &str = "generation_config.json";
pub const TOKENIZER: &str = "tokenizer.json";
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// The factors of a student of kind "lora".
pub const ADAPTERS: &str = "adapters.safetensors";
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// Rows whose responses the teacher wrote, and what they were made from.
pub const RESPONSES: &str = "responses.jsonl";
pub const RESPONSES_INFO: &str = "responses.json";
/// What a run learns besides its student; absent where it learns nothing else.
pub const PROJECTIONS: &str = "projections.safetensors";
pub const STATE: &str = "state.json";
/// What the run took so far.
pub const TIMES: &str = "times.json";
pub const MANIFEST: &str = "manifest.json";
/// What a model was made from.
pub const PROVENANCE: &str = "provenance.json";

/// `step-00000100`. Eight digits keep a listing in order; a longer step only makes a longer name.
pub fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The step of a folder name, if it is exactly what [`folder_name`] writes.
pub fn parse_folder_name(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (folder_name(step) == name).then_some(step)
}

/// Whether a run may start in `dir`: it is absent, or empty but for a lock, litter, and responses that its teacher has written; or
/// a start was cut off there before its first checkpoint.
///
/// Errors: `dir` is a file or cannot be read.
pub fn is_fresh(dir: &Path) -> Result<bool> {
    let entries = match std::fs::read_dir(dir) {
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        found => found.map_err(|cause| Error::unreadable(dir, cause))?,
    };
    if dir.join(STARTING).exists() && find::steps(dir)?.is_empty() {
        return Ok(true);
    }
    for entry in entries {
        let name = entry.map_err(|cause| Error::unreadable(dir, cause))?.file_name();
        let before_the_run =
            |name: &str| [LOCK, STARTING, RESPONSES, RESPONSES_INFO].contains(&name) || is_leftover(name);
        if !name.to_str().is_some_and(before_the_run) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_names_round_trip_and_nothing_else_is_one() {
        for step in [0, 100, 99_999_999, 123_456_789_012] {
            assert_eq!(parse_folder_name(&folder_name(step)), Some(step));
        }
        for name in ["step-100", "step-+0000100", "step-00000100x", ".tmp-step-00000100", "latest", "step-", "../x"] {
            assert_eq!(parse_folder_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_folder_with_only_a_lock_is_fresh() {
        let dir = tempfile::tempdir().unwrap();
        assert!(is_fresh(&dir.path().join("absent")).unwrap());
        std::fs::write(dir.path().join(LOCK), "").unwrap();
        assert!(is_fresh(dir.path()).unwrap());
        std::fs::write(dir.path().join("config.toml"), "").unwrap();
        assert!(!is_fresh(dir.path()).unwrap());
    }

    #[test]
    fn a_start_that_was_cut_off_before_its_first_checkpoint_may_be_made_again() {
        let dir = tempfile::tempdir().unwrap();
        for name in [STARTING, "config.toml", METRICS] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert!(is_fresh(dir.path()).unwrap());
        std::fs::create_dir_all(dir.path().join("checkpoints/step-00000000")).unwrap();
        assert!(!is_fresh(dir.path()).unwrap());
    }
}
