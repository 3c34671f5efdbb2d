//! Plan → parts: the models, the objective and the batches that several commands need.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::Device;

use crate::checkpoint::{self, Checkpoint};
use crate::config::objective::objective;
use crate::config::plan::{Plan, model_folder};
use crate::config::{Dtype, HiddenKind, Layers, RunConfig, Schedule, StudentSource, TeacherConfig, TeacherKind, Word};
use crate::corpus::{Batch, Row};
use crate::device::{Devices, Opened, allow_tf32};
use crate::error::{Error, Result};
use crate::eval::{EvalReport, evaluate};
use crate::kernels::{Precision, Simd};
use crate::loss::{self, HiddenMatch, HiddenPair};
use crate::metrics::Screen;
use crate::model::{Decoder, Gguf, Keep, ModelConfig, Parameter, Sampling, Weights, load_weights};
use crate::student;
use crate::teacher::{CacheTeacher, LocalTeacher, Teacher};
use crate::train::{AdamW, AdamWConfig, Decay, RolloutOptions, Rollouts, Stepper};
use crate::units::Bytes;

/// Loads a model folder with a sign of life.
pub fn load_model(path: &Path, trainable: bool, device: &Device, screen: &Screen) -> Result<Decoder> {
    let progress = screen.progress(&format!("loading {}", path.display()), None);
    let model = Decoder::load(model_folder(path)?, trainable, device)?;
    progress.finish();
    Ok(model)
}

/// A teacher that computes, or one that spoke before.
pub enum AnyTeacher {
    Live(LocalTeacher),
    Cached(CacheTeacher),
}

impl AnyTeacher {
    pub fn live(&self) -> Option<&LocalTeacher> {
        match self {
            Self::Live(teacher) => Some(teacher),
            Self::Cached(_) => None,
        }
    }

    pub fn as_dyn(&self) -> &dyn Teacher {
        match self {
            Self::Live(teacher) => teacher,
            Self::Cached(teacher) => teacher,
        }
    }
}

/// The frozen teacher of a plan.
pub fn teacher(plan: &Plan, screen: &Screen) -> Result<Option<AnyTeacher>> {
    let Some(teacher) = &plan.config.teacher else { return Ok(None) };
    match &plan.cache {
        Some(cache) => Ok(Some(AnyTeacher::Cached(CacheTeacher::new(cache.clone())))),
        None => load_teacher(teacher, &plan.devices, screen).map(|teacher| Some(AnyTeacher::Live(teacher))),
    }
}

/// Loads a model folder that will not learn: its matrices packed, once.
pub fn load_frozen(path: &Path, dtype: Dtype, device: &Device, screen: &Screen) -> Result<Decoder> {
    let progress = screen.progress(&format!("loading {} in {}", path.display(), dtype.word()), None);
    let model = Decoder::load_frozen(model_folder(path)?, precision(dtype), device)?;
    progress.finish();
    Ok(model)
}

/// Loads a frozen teacher as it is to be held.
pub fn load_teacher(teacher: &TeacherConfig, devices: &Devices, screen: &Screen) -> Result<LocalTeacher> {
    let started = Instant::now();
    let (model, held) = match teacher.kind {
        TeacherKind::Local => {
            let model = load_frozen(&teacher.path, teacher.dtype, &devices.teacher.device, screen)?;
            (model, format!("in {}", teacher.dtype.word()))
        }
        TeacherKind::Cache => return Err(Error::run("a cache has no model to load")),
        TeacherKind::Gguf => {
            let progress = screen.progress(&format!("loading {}", teacher.path.display()), None);
            let file = Gguf::open(&teacher.path)?;
            let model = file.decoder(precision(teacher.dtype))?;
            progress.finish();
            (model, format!("as {}, multiplied in {}", file.types_in_words(), teacher.dtype.word()))
        }
    };
    let (bytes, seconds) = (Bytes(model.parameters().bytes()), started.elapsed().as_secs_f64());
    screen.line(&format!("{:<11}{bytes} {held}, read and packed in {seconds:.1} s", "teacher"));
    LocalTeacher::new(Arc::new(model), &devices.student.device)
}

/// What results depend on in their last bits: the GPUs, or the CPU's instructions.
pub fn hardware(devices: &Devices) -> String {
    let Devices { teacher, student } = devices;
    let name = |opened: &Opened| opened.hardware.clone().unwrap_or_else(|| Simd::level().name().to_owned());
    let (teacher, student) = (name(teacher), name(student));
    if teacher == student { student } else { format!("{teacher} (teacher), {student} (student)") }
}

/// What a model held or trained in `dtype` rounds its products to.
pub fn precision(dtype: Dtype) -> Precision {
    match dtype {
        Dtype::F32 => Precision::F32,
        Dtype::Bf16 => Precision::Bf16,
    }
}

/// How a config's dtype is stored.
pub fn stored(dtype: Dtype) -> checkpoint::Dtype {
    match dtype {
        Dtype::F32 => checkpoint::Dtype::F32,
        Dtype::Bf16 => checkpoint::Dtype::Bf16,
    }
}

/// The student of a plan as it is before the first step.
pub fn student(plan: &Plan, teacher: Option<&AnyTeacher>, screen: &Screen) -> Result<Decoder> {
    if plan.config.student.source.adaptation().is_some() {
        return adapted(plan, None, screen);
    }
    let (config, weights) = first_weights(&plan.config, teacher, screen)?;
    Decoder::new(config, weights, true, &plan.devices.student.device)
}

/// Shape and weights of a config's student before the first step, without adapters.
pub fn first_weights(
    config: &RunConfig,
    teacher: Option<&AnyTeacher>,
    screen: &Screen,
) -> Result<(ModelConfig, Weights)> {
    let loading = |path: &Path| screen.progress(&format!("loading {}", path.display()), None);
    match &config.student.source {
        StudentSource::Local { path } | StudentSource::Lora { from: path, .. } => {
            let progress = loading(path);
            let folder = model_folder(path)?;
            let shape = ModelConfig::read(folder)?;
            let weights = load_weights(folder, &shape)?;
            progress.finish();
            Ok((shape, weights))
        }
        StudentSource::Fresh { config: shape, .. } => {
            let shape = ModelConfig::read(shape)?;
            let weights = student::fresh_weights(&shape, config.seed)?;
            Ok((shape, weights))
        }
        StudentSource::Pruned { layers: Layers::Auto { .. }, .. } => {
            Err(Error::run("the layers of the student have not been chosen"))
        }
        StudentSource::Pruned { from, layers: Layers::These(layers) } => {
            // A teacher held in f32 lends its own weights; otherwise the folder is read.
            let lends = |teacher: &TeacherConfig| {
                teacher.kind == TeacherKind::Local && teacher.path == *from && teacher.dtype == Dtype::F32
            };
            match teacher.and_then(AnyTeacher::live) {
                Some(teacher) if config.teacher.as_ref().is_some_and(lends) => {
                    student::pruned(teacher.decoder(), layers)
                }
                _ => {
                    let progress = screen.progress(&format!("loading layers of {}", from.display()), None);
                    let pruned = student::pruned_folder(model_folder(from)?, layers)?;
                    progress.finish();
                    Ok(pruned)
                }
            }
        }
    }
}

/// The student of a checkpoint.
pub fn resumed_student(plan: &Plan, checkpoint: &Checkpoint, screen: &Screen) -> Result<Decoder> {
    match &plan.config.student.source {
        StudentSource::Lora { .. } => adapted(plan, Some(checkpoint), screen),
        _ => Decoder::load(checkpoint.dir(), true, &plan.devices.student.device),
    }
}

/// The frozen model of a student of kind "lora" with the adapters of a checkpoint, or fresh ones.
fn adapted(plan: &Plan, checkpoint: Option<&Checkpoint>, screen: &Screen) -> Result<Decoder> {
    let adaptation =
        plan.config.student.source.adaptation().ok_or_else(|| Error::run("this student has no adapters"))?;
    let (config, weights) = first_weights(&plan.config, None, screen)?;
    let adapters = match checkpoint {
        Some(checkpoint) => student::read_adapters(checkpoint)?,
        None => student::fresh_adapters(&config, &adaptation, plan.config.seed)?,
    };
    Decoder::adapted(config, weights, &adaptation, adapters, &plan.devices.student.device)
}

/// Teacher, student, objective and optimizer as one step needs them.
pub fn stepper<'a>(plan: &Plan, teacher: Option<&'a dyn Teacher>, student: &'a Decoder) -> Result<Stepper<'a>> {
    let train = &plan.config.train;
    let objective = objective(&plan.config.loss, plan.total_steps);
    let config = AdamWConfig {
        beta1: train.beta1,
        beta2: train.beta2,
        epsilon: train.epsilon,
        weight_decay: train.weight_decay,
    };
    allow_tf32(train.tf32);
    let hidden = hidden_match(plan)?;
    let learned = student.parameters().with(hidden.iter().flat_map(HiddenMatch::projections));
    Ok(Stepper {
        teacher,
        student,
        objective,
        hidden,
        optimizer: AdamW::new(config, &learned)?,
        max_grad_norm: train.max_grad_norm,
        keep: if train.checkpoint_activations { Keep::Inputs } else { Keep::Activations },
        precision: precision(train.dtype),
        exact_phases: false,
    })
}

/// Hidden states that are held to the teacher's. A projection starts as a random matrix that keeps lengths on average, a
/// function of the seed and its layers.
fn hidden_match(plan: &Plan) -> Result<Option<HiddenMatch>> {
    let (Some(config), Some(teacher)) = (&plan.config.loss.hidden, &plan.teacher) else { return Ok(None) };
    let (from, to) = (plan.student.hidden_size, teacher.hidden_size);
    let pair = |&[student, teacher]: &[usize; 2]| -> Result<HiddenPair> {
        let projection = (from != to).then(|| {
            let name = format!("hidden.{student}.{teacher}.projection");
            let weight = student::random_matrix(&name, (to, from), 1.0 / (from as f64).sqrt(), plan.config.seed)?;
            Parameter::new(name, weight, true)
        });
        Ok(HiddenPair { student, teacher, projection: projection.transpose()? })
    };
    Ok(Some(HiddenMatch {
        pairs: plan.hidden_layers()?.iter().map(pair).collect::<Result<_>>()?,
        kind: match config.kind {
            HiddenKind::Mse => loss::HiddenKind::Mse,
            HiddenKind::Cosine => loss::HiddenKind::Cosine,
        },
        weight: config.weight,
    }))
}

/// What a plan's student answers itself. None: nothing. `text` shows tokens.
pub fn rollouts<'a>(
    plan: &Plan,
    text: &'a dyn Fn(&[u32]) -> Result<String>,
    interrupted: &'a AtomicBool,
) -> Option<Rollouts<'a>> {
    let rollout = plan.config.rollout.as_ref().filter(|rollout| rollout.on_policy())?;
    let options = RolloutOptions {
        fraction: rollout.fraction.unwrap_or(0.0),
        every_steps: rollout.every_steps.unwrap_or(1),
        buffer: rollout.buffer.unwrap_or(0),
        max_new_tokens: rollout.max_new_tokens,
        max_length: plan.config.data.max_length,
        sampling: Sampling { temperature: rollout.temperature, top_p: rollout.top_p },
        seed: plan.config.seed,
        stop: plan.encoder.tokenizer().eos_ids().to_vec(),
    };
    Some(Rollouts { options, text, interrupted })
}

/// The learning-rate schedule of a plan.
pub fn schedule(plan: &Plan) -> crate::train::Schedule {
    let train = &plan.config.train;
    crate::train::Schedule {
        learning_rate: train.learning_rate,
        decay: match train.schedule {
            Schedule::Constant => Decay::Constant,
            Schedule::Linear => Decay::Linear,
            Schedule::Cosine => Decay::Cosine,
        },
        warmup_steps: train.warmup_steps,
        total_steps: plan.total_steps,
    }
}

/// Rows in batches of about this many tokens: enough to keep the products busy.
const EVAL_TOKENS: usize = 2048;

/// Evaluates on `rows` with a progress bar. None when `interrupted` was raised meanwhile.
pub fn evaluate_rows(
    teacher: Option<&dyn Teacher>,
    student: &Decoder,
    rows: &[Row],
    interrupted: &AtomicBool,
    screen: &Screen,
) -> Result<Option<EvalReport>> {
    let progress = screen.progress("evaluating", Some(rows.len() as u64));
    let mut rest = rows;
    let batches = std::iter::from_fn(|| {
        let mut tokens = 0;
        let fits = |row: &&Row| {
            tokens += row.tokens.len();
            tokens <= EVAL_TOKENS
        };
        let n = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (batch, tail) = rest.split_at(n);
        rest = tail;
        progress.advance(n as u64);
        let stop = interrupted.load(Ordering::Relaxed);
        (n > 0).then(|| if stop { Err(Error::run("interrupted")) } else { Ok(Batch::new(batch)) })
    });
    let report = evaluate(teacher, student, batches);
    if interrupted.load(Ordering::Relaxed) {
        return Ok(None);
    }
    progress.finish();
    report.map(Some)
}
