//! The wording of lines.

use std::fmt::Write;

use super::super::{Eval, Sample, Train};
use crate::printable::excerpt;
use crate::units::Count;

pub(super) fn train_line(event: &Train) -> String {
    let mut line = format!("loss {:.4}", event.loss);
    if let Some(divergence) = event.divergence {
        let _ = write!(line, "  divergence {divergence:.4}");
    }
    let _ = write!(line, "  {} tokens/s", Count(event.tokens_per_second as u64));
    line
}

/// The end of the prompt, which is what was asked, and the beginning of the answer.
pub(super) fn sample_line(event: &Sample) -> String {
    const SHOWN: usize = 60;
    let tail = event.prompt.chars().count().saturating_sub(SHOWN);
    let asked: String = event.prompt.chars().skip(tail).collect();
    let lead = if tail > 0 { "…" } else { "" };
    let (asked, answer) = (excerpt(asked.trim()), excerpt(event.completion.trim()));
    format!("step {}  sample  {lead}{asked} → {answer}", Count(event.step))
}

pub(super) fn eval_line(event: &Eval) -> String {
    let mut line = format!("step {}", Count(event.step));
    if let Some(kl) = event.kl_mean {
        let _ = write!(line, "  KL {kl:.4}");
    }
    if let Some(kl) = event.bucket_kl_mean {
        let _ = write!(line, "  KL of the stored tokens {kl:.4}");
    }
    if let Some(agreement) = event.top1_agreement {
        let _ = write!(line, "  agreement {:.1} %", 100.0 * agreement);
    }
    let _ = write!(line, "  perplexity {:.2}", event.student_perplexity);
    if let Some(perplexity) = event.teacher_perplexity {
        let _ = write!(line, " (teacher {perplexity:.2})");
    }
    if let Some(exact) = event.student_exact_match {
        let _ = write!(line, "  exact match {:.1} %", 100.0 * exact);
        if let Some(teacher) = event.teacher_exact_match {
            let _ = write!(line, " (teacher {:.1} %)", 100.0 * teacher);
        }
    }
    line
}
