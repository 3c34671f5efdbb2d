//! curves.svg: how the training loss and the held-out divergence went, drawn from metrics.jsonl.

mod axis;
mod draw;
mod series;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};
use draw::Panel;
use series::Series;

/// Draws the metrics of a run as an SVG of two panels under `title`. Without a teacher the held-out panel shows
/// perplexity. Lines that are no event are passed over; no data at all gives a figure that says so.
///
/// Errors (exit 1): `metrics` cannot be read or `target` not be written.
pub fn draw_curves(metrics: &Path, target: &Path, title: &str) -> Result<()> {
    let svg = draw::figure(title, &panels(metrics)?);
    std::fs::write(target, svg).map_err(|cause| Error::unwritable(target, cause))
}

fn panels(metrics: &Path) -> Result<[Panel; 2]> {
    /// What is drawn of an event, whatever else a line holds.
    #[derive(Deserialize)]
    struct Line {
        event: String,
        step: u64,
        loss: Option<f64>,
        kl_mean: Option<f64>,
        bucket_kl_mean: Option<f64>,
        student_perplexity: Option<f64>,
    }
    let unreadable = |cause| Error::run(format!("cannot read {}: {cause}", metrics.display()));
    let mut reader = BufReader::new(File::open(metrics).map_err(unreadable)?);
    let (mut loss, mut kl, mut perplexity) = (Series::default(), Series::default(), Series::default());
    let (mut bytes, mut stored) = (vec![], false);
    while reader.read_until(b'\n', &mut bytes).map_err(unreadable)? > 0 {
        if let Ok(line) = serde_json::from_slice::<Line>(&bytes) {
            match line.event.as_str() {
                "train" => loss.push(line.step, line.loss),
                "eval" => {
                    stored |= line.bucket_kl_mean.is_some();
                    kl.push(line.step, line.kl_mean.or(line.bucket_kl_mean));
                    perplexity.push(line.step, line.student_perplexity);
                }
                _ => {}
            }
        }
        bytes.clear();
    }
    let held_out = if kl.is_empty() && !perplexity.is_empty() {
        Panel::marked("Held-out perplexity", "perplexity", perplexity)
    } else {
        let title = if stored { "Held-out KL of the stored tokens" } else { "Held-out KL divergence" };
        Panel::marked(title, "nats per token", kl)
    };
    Ok([Panel::smoothed("Training loss", "loss", loss), held_out])
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
