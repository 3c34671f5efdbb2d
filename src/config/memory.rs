//! An estimate of the memory a run takes, before anything is loaded.

use super::types::{Dtype, RunConfig, TeacherConfig};
use crate::model::ModelConfig;

/// Bytes of each part.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    pub teacher: u64,
    /// Weights, gradients and both moments.
    pub student: u64,
    /// What a micro-batch of the longest rows leaves for the backward pass, and the chunk of logits.
    pub activations: u64,
    /// Size of one checkpoint on the disk.
    pub checkpoint: u64,
}

impl Memory {
    pub fn total(&self) -> u64 {
        self.teacher.saturating_add(self.student).saturating_add(self.activations)
    }
}

const F32: u64 = 4;

/// Bytes of one of the teacher's weights.
fn bytes_of(config: &RunConfig) -> u64 {
    match config.teacher {
        Some(TeacherConfig::Local { dtype: Dtype::Bf16, .. }) => 2,
        _ => F32,
    }
}

/// `longest`: tokens of the longest row.
pub(super) fn estimate(
    config: &RunConfig,
    teacher: Option<&ModelConfig>,
    student: &ModelConfig,
    longest: usize,
) -> Memory {
    let longest = if config.data.packing { config.data.max_length } else { longest };
    let tokens = config.train.micro_batch_size.saturating_mul(longest) as u64;
    let weights = student.parameters() as u64 * F32;
    let vocab = student.vocab_size as u64;
    let logits = (64 << 20) * if teacher.is_some() { 3 } else { 2 };
    Memory {
        teacher: teacher.map_or(0, |t| t.parameters() as u64 * bytes_of(config)),
        student: 4 * weights,
        activations: tokens
            .saturating_mul(per_token(student, config.train.checkpoint_activations) * F32)
            .saturating_add(logits.min(256 * vocab * F32 * 3)),
        checkpoint: 3 * weights,
    }
}

/// Values kept per token for the backward pass: what each op of a block leaves, of all blocks or, with `again`, of one and
/// the other blocks' inputs.
fn per_token(model: &ModelConfig, again: bool) -> u64 {
    let (d, f) = (model.hidden_size as u64, model.intermediate_size as u64);
    let (q, kv) = ((model.heads * model.head_dim) as u64, (model.kv_heads * model.head_dim) as u64);
    let block = 8 * d + 3 * q + 3 * kv + 3 * f;
    let blocks = model.layers as u64;
    3 * d + if again { block + blocks * d } else { blocks * block }
}
