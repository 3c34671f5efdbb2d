//! summary.json: one run in a few numbers.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{atomic, layout};
use crate::error::{Error, Result};
use crate::metrics;
use crate::train::Best;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Complete,
    /// Complete, cut short by train.max_time.
    TimeUp,
    /// By a signal or --stop-after; `--resume` goes on.
    Stopped,
    Failed,
}

/// Rows that a student wrote and learnt from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Written {
    pub rows: u64,
    /// Prompts not counted.
    pub tokens: u64,
    pub tokens_per_second: f64,
    /// Of the training time, 0 to 1.
    pub share: f64,
}

/// The contract of summary.json.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    pub status: Status,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub steps: u64,
    /// Target tokens trained on.
    pub tokens: u64,
    /// Distinct rows, as the next three.
    pub rows_used: u64,
    pub rows_dropped: u64,
    pub rows_truncated: u64,
    /// Records passed over under on_bad_record = "skip".
    pub rows_rejected: u64,
    /// Input tokens over training time, without loading, evaluation and saving. Null before the first step.
    pub tokens_per_second: Option<f64>,
    pub peak_rss_bytes: Option<u64>,
    /// The most that tensors took of the student's GPU.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub peak_gpu_bytes: Option<u64>,
    /// Training time, resumed parts included.
    pub elapsed_seconds: f64,
    /// What the student wrote itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rollouts: Option<Written>,
    pub initial_eval: Option<metrics::Eval>,
    pub final_eval: Option<metrics::Eval>,
    /// The step with the least held-out KL (perplexity without a teacher) and that figure.
    pub best: Option<Best>,
}

impl Summary {
    /// Replaces `dir/summary.json` atomically.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::run(format!("summary.json: {e}")))?;
        atomic::write_file(&dir.join(layout::SUMMARY), (text + "\n").as_bytes())
    }

    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(layout::SUMMARY);
        let text = std::fs::read(&path).map_err(|e| Error::unreadable(&path, e))?;
        serde_json::from_slice(&text).map_err(|e| Error::input(format!("{}: {e}", path.display())))
    }
}
