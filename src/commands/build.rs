//! Plan → parts: the models, the objective and the batches that several commands need.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::Device;

use crate::config::objective::divergence;
use crate::config::plan::{Plan, model_folder};
use crate::config::{Dtype, Schedule, StudentSource, TeacherConfig, TeacherKind, Word};
use crate::corpus::{Batch, Row};
use crate::device::{Devices, allow_tf32};
use crate::error::{Error, Result};
use crate::eval::{EvalReport, evaluate};
use crate::kernels::Precision;
use crate::loss::Objective;
use crate::metrics::Screen;
use crate::model::{Decoder, Gguf, Keep, ModelConfig};
use crate::student;
use crate::teacher::{CacheTeacher, LocalTeacher, Teacher};
use crate::train::{AdamW, AdamWConfig, Decay, Stepper};
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

/// What a model held or trained in `dtype` rounds its products to.
pub fn precision(dtype: Dtype) -> Precision {
    match dtype {
        Dtype::F32 => Precision::F32,
        Dtype::Bf16 => Precision::Bf16,
    }
}

/// The student of a plan as it is before the first step.
pub fn student(plan: &Plan, teacher: Option<&AnyTeacher>, screen: &Screen) -> Result<Decoder> {
    let teacher = teacher.and_then(AnyTeacher::live);
    let device = &plan.devices.student.device;
    match &plan.config.student.source {
        StudentSource::Local { path } => load_model(path, true, device, screen),
        StudentSource::Fresh { config, .. } => {
            let config = ModelConfig::read(config)?;
            let weights = student::fresh_weights(&config, plan.config.seed)?;
            Decoder::new(config, weights, true, device)
        }
        StudentSource::Pruned { from, layers } => {
            // A teacher held in f32 lends its own weights; otherwise the folder is read.
            let lends = |teacher: &TeacherConfig| {
                teacher.kind == TeacherKind::Local && teacher.path == *from && teacher.dtype == Dtype::F32
            };
            let (config, weights) = match teacher {
                Some(teacher) if plan.config.teacher.as_ref().is_some_and(lends) => {
                    student::pruned(teacher.decoder(), layers)?
                }
                _ => {
                    let progress = screen.progress(&format!("loading layers of {}", from.display()), None);
                    let pruned = student::pruned_folder(model_folder(from)?, layers)?;
                    progress.finish();
                    pruned
                }
            };
            Decoder::new(config, weights, true, device)
        }
    }
}

/// What the config's loss minimises.
pub fn objective(plan: &Plan) -> Objective {
    let loss = &plan.config.loss;
    match divergence(loss) {
        None => Objective::cross_entropy(),
        Some(divergence) => Objective::distillation(
            divergence,
            loss.temperature,
            loss.hard_label_weight,
            loss.scale_by_temperature_squared,
        )
        .with_tail(loss.tail()),
    }
}

/// Teacher, student, objective and optimizer as one step needs them.
pub fn stepper<'a>(plan: &Plan, teacher: Option<&'a dyn Teacher>, student: &'a Decoder) -> Result<Stepper<'a>> {
    let train = &plan.config.train;
    let objective = objective(plan);
    let config = AdamWConfig {
        beta1: train.beta1,
        beta2: train.beta2,
        epsilon: train.epsilon,
        weight_decay: train.weight_decay,
    };
    allow_tf32(train.tf32);
    Ok(Stepper {
        teacher,
        student,
        objective,
        optimizer: AdamW::new(config, student.parameters())?,
        max_grad_norm: train.max_grad_norm,
        keep: if train.checkpoint_activations { Keep::Inputs } else { Keep::Activations },
        precision: precision(train.dtype),
        exact_phases: false,
    })
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
