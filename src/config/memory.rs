//! An estimate of the memory a run takes, before anything is loaded.

use super::types::{Dtype, RunConfig, TeacherConfig, TeacherKind};
use crate::device::{Devices, Opened, gpu_memory};
use crate::error::Result;
use crate::model::ModelConfig;
use crate::units::{Bytes, total_memory_bytes};

/// Bytes of each part.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    pub teacher: u64,
    /// Its head alone, which goes to the student's device if that is another.
    pub teacher_head: u64,
    /// Weights, gradients and both moments.
    pub student: u64,
    /// Both moments alone.
    pub optimizer: u64,
    /// Parameters that learn.
    pub trainable: u64,
    /// What a micro-batch of the longest rows leaves for the backward pass, and the chunk of logits.
    pub activations: u64,
    /// What a student that writes takes while it does: a packed copy of it, and the keys and values of a step's rows.
    pub rollouts: u64,
    /// Size of one checkpoint on the disk.
    pub checkpoint: u64,
}

impl Memory {
    pub fn total(&self) -> u64 {
        // Rows are written before the step's activations are there.
        self.teacher.saturating_add(self.student).saturating_add(self.activations.max(self.rollouts))
    }
}

const F32: u64 = 4;

/// Bytes of the teacher's weights. Of a GGUF file they are about its own.
fn of_teacher(config: &TeacherConfig, model: &ModelConfig) -> u64 {
    let file = || std::fs::metadata(&config.path).map_or(0, |file| file.len());
    match (config.kind, config.dtype) {
        (TeacherKind::Gguf, _) => file(),
        (TeacherKind::Cache, _) => 0,
        (TeacherKind::Local, Dtype::Bf16) => 2 * model.parameters() as u64,
        (TeacherKind::Local, Dtype::F32) => F32 * model.parameters() as u64,
    }
}

/// `longest`: tokens of the longest row.
///
/// # Errors
/// Those of the student's adapters.
pub(super) fn estimate(
    config: &RunConfig,
    teacher: Option<&ModelConfig>,
    student: &ModelConfig,
    longest: usize,
) -> Result<Memory> {
    let longest = if config.data.packing { config.data.max_length } else { longest };
    let tokens = config.train.micro_batch_size.saturating_mul(longest) as u64;
    let weights = student.parameters() as u64 * F32;
    let vocab = student.vocab_size as u64;
    // A chunk of the student's logits and, with a teacher, one of its own.
    let logits = (256 * vocab * F32).min(64 << 20) * if teacher.is_some() { 2 } else { 1 };
    let trainable = match config.student.source.adaptation() {
        Some(adaptation) => adaptation.parameters(student)?,
        None => student.parameters(),
    };
    let learned = trainable as u64 * F32;
    // The factors of adapters stand beside the weights.
    let adapters = if config.student.source.adaptation().is_some() { learned } else { 0 };
    // A student that writes is packed once more, and keeps keys and values of every row of a step.
    let writes = config.rollout.as_ref().is_some_and(|rollout| rollout.on_policy());
    let cache = 2 * student.layers as u64 * (student.kv_heads * student.head_dim) as u64 * F32;
    let rows = (config.train.batch_size as u64).saturating_mul(longest as u64);
    let rollouts = if writes { weights.saturating_add(rows.saturating_mul(cache)) } else { 0 };
    Ok(Memory {
        rollouts,
        teacher: config.teacher.as_ref().zip(teacher).map_or(0, |(config, model)| of_teacher(config, model)),
        teacher_head: teacher.map_or(0, |t| F32 * (t.vocab_size * t.hidden_size) as u64),
        student: weights + adapters + 3 * learned,
        optimizer: 2 * learned,
        trainable: trainable as u64,
        activations: tokens
            .saturating_mul(per_token(student, config.train.checkpoint_activations) * F32)
            .saturating_add(logits),
        checkpoint: weights + adapters + 2 * learned,
    })
}

/// Values per token at the height of the backward pass: what is kept of all blocks (with `again`, of one, and the inputs of
/// all) and what one block needs besides while it runs backwards.
fn per_token(model: &ModelConfig, again: bool) -> u64 {
    let (d, f) = (model.hidden_size as u64, model.intermediate_size as u64);
    let (q, kv) = ((model.heads * model.head_dim) as u64, (model.kv_heads * model.head_dim) as u64);
    // Gate and up, or up alone; what attention and MLP gave, where that is normed.
    let (wide, normed) = (if model.mlp.is_gated() { 2 } else { 1 }, if model.post_norms { 2 } else { 0 });
    let kept = (2 + normed) * d + 2 * q + 2 * kv + wide * f;
    let running = 6 * d + 3 * q + 4 * kv + 3 * f;
    let blocks = model.layers as u64;
    running + if again { kept + blocks * d } else { blocks * kept }
}

/// The memory of the machine, or of a GPU.
pub(super) struct Place {
    name: String,
    pub needed: u64,
    /// None: not known.
    pub there: Option<u64>,
}

impl Place {
    pub fn short_of(&self, how: &str) -> String {
        let (needed, there) = (Bytes(self.needed), Bytes(self.there.unwrap_or(0)));
        format!(
            "the run needs about {needed} of memory, {how}{there} of {}: lower train.micro_batch_size or data.max_length, \
             set train.checkpoint_activations, or take a smaller model",
            self.name
        )
    }
}

/// What a GPU's context and cuBLAS take.
const GPU_OVERHEAD: u64 = 512 << 20;

/// What is needed where.
pub(super) fn places(memory: &Memory, devices: &Devices) -> Vec<Place> {
    let place = |opened: &Opened, needed: u64| match gpu_memory(&opened.device) {
        // Others may use it too; the context and cuBLAS take their share.
        Some((free, _)) => Place {
            name: format!("{} that is free", opened.description),
            needed: needed.saturating_add(GPU_OVERHEAD),
            there: Some(free),
        },
        None => Place { name: "this machine".into(), needed, there: total_memory_bytes() },
    };
    let student =
        memory.student.saturating_add(memory.activations.max(memory.rollouts)).saturating_add(memory.teacher_head);
    match devices.teacher.device.same_device(&devices.student.device) {
        true => vec![place(&devices.student, memory.total())],
        false => vec![place(&devices.teacher, memory.teacher), place(&devices.student, student)],
    }
}
