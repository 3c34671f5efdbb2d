//! The lines of metrics.jsonl. Field names and order are a contract with the scripts that read them.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

/// Something worth recording. `step` counts optimizer steps done: 1 is the first train event, 0 is before training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Train(Train),
    Eval(Eval),
    Sample(Sample),
    Checkpoint(Checkpoint),
    Warning(Warning),
}

impl Event {
    pub fn step(&self) -> u64 {
        match self {
            Self::Train(event) => event.step,
            Self::Eval(event) => event.step,
            Self::Sample(event) => event.step,
            Self::Checkpoint(event) => event.step,
            Self::Warning(event) => event.step,
        }
    }
}

/// One optimizer step. What is not finite is written as null, which JSON can hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Train {
    pub step: u64,
    /// The weighted total that was minimised.
    #[serde(deserialize_with = "null_as_nan")]
    pub loss: f64,
    /// Mean per target, in nats: of one divergence without its weights, of a mixture the parts' weighted sum. None without a
    /// teacher.
    pub divergence: Option<f64>,
    /// Of a mixture: each part's unweighted mean per target, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<BTreeMap<String, f64>>,
    /// Unweighted mean per target that has a label, in nats. None where the loss has no such part.
    pub cross_entropy: Option<f64>,
    /// Mean distance of hidden states per target, unweighted, where they are matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<f64>,
    /// Of the step, where it moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Of the step, where it moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard_label_weight: Option<f64>,
    #[serde(deserialize_with = "null_as_nan")]
    pub learning_rate: f64,
    /// Before clipping.
    #[serde(deserialize_with = "null_as_nan")]
    pub grad_norm: f64,
    /// Target tokens since the start of the run.
    pub tokens: u64,
    /// Input tokens of this step over its wall time.
    #[serde(deserialize_with = "null_as_nan")]
    pub tokens_per_second: f64,
    /// None without a teacher, and on a GPU, which is not waited for in between: the next is then both.
    pub teacher_seconds: Option<f64>,
    #[serde(deserialize_with = "null_as_nan")]
    pub student_seconds: f64,
    /// Since the start of the run, resumed parts included.
    #[serde(deserialize_with = "null_as_nan")]
    pub elapsed_seconds: f64,
    /// What the student wrote in this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
}

/// Rows that the student wrote in a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    pub rows: u64,
    /// Tokens written, prompts not counted.
    pub tokens: u64,
    pub seconds: f64,
    pub tokens_per_second: f64,
    /// Of the step's wall time, 0 to 1.
    pub share: f64,
}

/// A prompt and what the student answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    pub step: u64,
    pub prompt: String,
    pub completion: String,
    /// Whether the student ended its turn.
    pub ended: bool,
}

/// One evaluation on held-out rows: token-weighted means at temperature 1, in nats. What needs a teacher is None without.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Eval {
    pub step: u64,
    pub kl_mean: Option<f64>,
    /// What a stored top-k signal knows of it; absent with any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket_kl_mean: Option<f64>,
    pub kl_median: Option<f64>,
    pub kl_p99: Option<f64>,
    /// Fraction, 0 to 1.
    pub top1_agreement: Option<f64>,
    #[serde(deserialize_with = "null_as_nan")]
    pub student_perplexity: f64,
    pub teacher_perplexity: Option<f64>,
    /// Target tokens evaluated.
    pub tokens: u64,
    /// Fraction of rows whose every target is ranked first: what greedy decoding answers exactly. Absent when not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub student_exact_match: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_exact_match: Option<f64>,
}

/// A checkpoint that is complete on the disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub step: u64,
    /// Relative to the run directory.
    pub path: String,
    pub best: bool,
}

/// Something the user should know that does not stop the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Warning {
    pub step: u64,
    /// Stable, for scripts: `rows_truncated`.
    pub code: String,
    pub message: String,
}

fn null_as_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn train() -> Train {
        Train {
            step: 7,
            loss: 1.5,
            divergence: None,
            parts: None,
            cross_entropy: Some(2.0),
            hidden: None,
            temperature: None,
            hard_label_weight: None,
            learning_rate: 1e-4,
            grad_norm: 0.5,
            tokens: 640,
            tokens_per_second: 1000.0,
            teacher_seconds: None,
            student_seconds: 0.25,
            elapsed_seconds: 3.0,
            rollout: None,
        }
    }

    #[test]
    fn lines_are_as_the_contract_says() {
        let line = |event: Event| serde_json::to_string(&event).unwrap();
        assert_eq!(
            line(Event::Train(train())),
            r#"{"event":"train","step":7,"loss":1.5,"divergence":null,"cross_entropy":2.0,"learning_rate":0.0001,"grad_norm":0.5,"tokens":640,"tokens_per_second":1000.0,"teacher_seconds":null,"student_seconds":0.25,"elapsed_seconds":3.0}"#
        );
        let eval = Eval {
            step: 0,
            kl_mean: Some(1.0),
            bucket_kl_mean: None,
            kl_median: Some(0.5),
            kl_p99: None,
            top1_agreement: Some(0.75),
            student_perplexity: 12.0,
            teacher_perplexity: None,
            tokens: 9,
            student_exact_match: None,
            teacher_exact_match: None,
        };
        assert_eq!(
            line(Event::Eval(eval)),
            r#"{"event":"eval","step":0,"kl_mean":1.0,"kl_median":0.5,"kl_p99":null,"top1_agreement":0.75,"student_perplexity":12.0,"teacher_perplexity":null,"tokens":9}"#
        );
        assert_eq!(
            line(Event::Checkpoint(Checkpoint { step: 1, path: "checkpoints/step-00000001".into(), best: true })),
            r#"{"event":"checkpoint","step":1,"path":"checkpoints/step-00000001","best":true}"#
        );
        assert_eq!(
            line(Event::Warning(Warning { step: 1, code: "c".into(), message: "a \"b\"\n".into() })),
            r#"{"event":"warning","step":1,"code":"c","message":"a \"b\"\n"}"#
        );
    }

    #[test]
    fn what_is_not_finite_is_null_and_reads_back() {
        let event = Train { loss: f64::NAN, divergence: Some(f64::INFINITY), grad_norm: f64::NEG_INFINITY, ..train() };
        let line = serde_json::to_string(&Event::Train(event)).unwrap();
        assert!(line.contains(r#""loss":null,"divergence":null"#) && line.contains(r#""grad_norm":null"#), "{line}");
        let Event::Train(back) = serde_json::from_str(&line).unwrap() else { panic!() };
        assert!(back.loss.is_nan() && back.divergence.is_none() && back.learning_rate == 1e-4);
    }
}
