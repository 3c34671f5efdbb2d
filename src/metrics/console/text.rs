//! The wording of lines.

use std::fmt::Write;

use super::super::{Eval, Train};
use crate::units::Count;

pub(super) fn train_line(event: &Train) -> String {
    let mut line = format!("loss {:.4}", event.loss);
    if let Some(divergence) = event.divergence {
        let _ = write!(line, "  divergence {divergence:.4}");
    }
    let _ = write!(line, "  {} tokens/s", Count(event.tokens_per_second as u64));
    line
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
