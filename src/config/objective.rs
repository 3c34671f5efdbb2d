//! The divergence that a config's loss names, and whether the run's teacher and devices can compute what
//! is asked of them.

use super::rollout::RolloutConfig;
use super::types::*;
use crate::cache::Codec;
use crate::device::{Devices, Opened};
use crate::error::{Error, Result};
use crate::loss::{
    Divergence, ForwardKl, Jsd, Objective, Part, Path, Ramp, ReverseKl, SkewKl, SkewReverseKl, Terms, Tvd,
};
use crate::model::ModelConfig;
use crate::signal::{Capabilities, Needs, Tail};

/// The divergence that a kind names; not for `cross_entropy`, which is none.
fn divergence(config: &DivergenceConfig) -> Option<Box<dyn Divergence>> {
    let lambda = config.lambda.unwrap_or(LossConfig::LAMBDA) as f32;
    Some(match config.kind {
        LossKind::CrossEntropy => return None,
        LossKind::ForwardKl => Box::new(ForwardKl),
        LossKind::ReverseKl => Box::new(Terms(ReverseKl)),
        LossKind::Jsd => {
            Box::new(Terms(Jsd::new(config.beta.unwrap_or(LossConfig::BETA), config.normalize.unwrap_or(false))))
        }
        LossKind::SkewKl => Box::new(Terms(SkewKl { lambda })),
        LossKind::SkewReverseKl => Box::new(Terms(SkewReverseKl { lambda })),
        LossKind::Tvd => Box::new(Terms(Tvd)),
    })
}

/// The parts that a config's loss adds up, named by their kinds; a kind that comes again is numbered.
pub fn parts(loss: &LossConfig) -> Vec<Part> {
    let mut parts: Vec<Part> = vec![];
    for (config, weight) in loss.divergences() {
        let Some(divergence) = divergence(config) else { continue };
        let kind = config.kind.word();
        let again = parts.iter().filter(|part| part.divergence.name() == kind).count();
        let name = if again == 0 { kind.to_owned() } else { format!("{kind}_{}", again + 1) };
        parts.push(Part { name, weight, divergence });
    }
    parts
}

/// What a config's loss minimises in a run of `steps`.
pub fn objective(loss: &LossConfig, steps: u64) -> Objective {
    let parts = parts(loss);
    if parts.is_empty() {
        return Objective::cross_entropy();
    }
    let ramp = |scheduled| match scheduled {
        Scheduled::Constant(value) => Ramp::Constant(value),
        Scheduled::Moving { from, to, schedule } => Ramp::Moving {
            from,
            to,
            path: if schedule == Schedule::Cosine { Path::Cosine } else { Path::Linear },
            steps,
        },
    };
    Objective::mixed(parts, ramp(loss.temperature), ramp(loss.hard_label_weight), loss.scale_by_temperature_squared)
        .with_tail(loss.tail())
}

/// Refuses rows that may be longer than a model has learned positions.
pub(super) fn has_positions(teacher: Option<&ModelConfig>, student: &ModelConfig, max_length: usize) -> Result<()> {
    let short = |model: &&ModelConfig| model.learned_positions && model.max_position_embeddings < max_length;
    match teacher.into_iter().chain([student]).find(short) {
        None => Ok(()),
        Some(model) => Err(Error::input(format!(
            "data.max_length = {max_length}, but the {} has {} positions and no embedding for more: lower data.max_length to \
             that",
            model.family.name(),
            model.max_position_embeddings
        ))),
    }
}

/// Refuses to have rows answered by a model whose context they may exceed.
pub(super) fn has_room_to_answer(
    rollout: &RolloutConfig,
    teacher: Option<&ModelConfig>,
    student: &ModelConfig,
    max_length: usize,
) -> Result<()> {
    let (whose, model) = match (rollout.from, teacher) {
        (RolloutFrom::Teacher, Some(teacher)) => ("teacher", teacher),
        _ => ("student", student),
    };
    match model.max_position_embeddings {
        context if context < max_length => Err(Error::input(format!(
            "data.max_length = {max_length}, but the {whose}, which is to answer, has a context of {context} tokens: lower it \
             to that"
        ))),
        _ => Ok(()),
    }
}

/// Refuses a model on a GPU that has no kernel for one of its ops. A live teacher's head runs where the student is.
pub(super) fn has_kernels(teacher: Option<&ModelConfig>, student: &ModelConfig, devices: &Devices) -> Result<()> {
    let on_gpu = |opened: &Opened| opened.device.is_cuda();
    let refuse = |model: &ModelConfig, op: &str, key: &str| {
        let family = model.family.name();
        Err(Error::input(format!("the {op} of {family} has no kernel on GPUs yet: set {key} = \"cpu\"")))
    };
    if let Some(op) = student.without_gpu_kernel().filter(|_| on_gpu(&devices.student)) {
        return refuse(student, op, "student.device");
    }
    let Some(teacher) = teacher else { return Ok(()) };
    match (teacher.without_gpu_kernel(), teacher.logit_cap) {
        (Some(op), _) if on_gpu(&devices.teacher) => refuse(teacher, op, "teacher.device"),
        (_, Some(_)) if on_gpu(&devices.student) => refuse(teacher, "soft cap of the logits", "student.device"),
        _ => Ok(()),
    }
}

/// Refuses to say what becomes of left-out tokens where none are.
fn tail_is_used(loss: &LossConfig, stored: Option<&Codec>) -> Result<()> {
    let (Some(tail), false) = (loss.tail, matches!(stored, Some(Codec::TopK { .. }))) else { return Ok(()) };
    let teacher = match stored {
        None => "a live teacher, which leaves no token out",
        Some(Codec::Sampled { .. }) => "a cache of codec \"sampled\"",
        Some(_) => "a cache of codec \"dense\"",
    };
    Err(Error::input(format!(
        "loss.tail = {:?} has no effect with {teacher}: it is for caches of codec \"top_k\"; leave it out",
        tail.word()
    )))
}

/// Refuses a loss that the teacher's signal cannot serve. `stored` is the cache that is read or written through.
pub(super) fn can_be_computed(loss: &LossConfig, stored: Option<&Codec>) -> Result<()> {
    let parts = parts(loss);
    if !parts.is_empty() {
        tail_is_used(loss, stored)?;
    }
    let left_out = match (stored, loss.tail()) {
        (Some(Codec::Sampled { .. }), _) | (Some(Codec::TopK { .. }), Tail::Bucket) => {
            loss.temperature.constant().is_none()
        }
        _ => false,
    };
    if left_out && !parts.is_empty() {
        return Err(Error::input(format!(
            "loss.temperature goes from {}: what a cache leaves out is known at one temperature; keep it, or take \
             cache.codec = \"dense\"",
            loss.temperature
        )));
    }
    let key = if loss.mix.is_empty() { "loss.kind =" } else { "the part of loss.mix of kind" };
    parts.iter().try_for_each(|part| part_can_be_computed(key, part.divergence.as_ref(), stored))
}

fn part_can_be_computed(key: &str, divergence: &dyn Divergence, stored: Option<&Codec>) -> Result<()> {
    let kind = divergence.name();
    let refuse = |what: String| Err(Error::input(format!("{key} {kind:?} {what}")));
    match stored {
        Some(Codec::Sampled { .. }) if !divergence.takes_draws() => refuse(
            "is no expectation over the teacher's tokens, so draws do not estimate it: use a live teacher or a cache with \
             codec = \"top_k\" or \"dense\", or one of forward_kl, skew_kl and tvd"
                .into(),
        ),
        Some(codec) => {
            let needs = Needs { full_distribution: divergence.needs_full_distribution(), ..Needs::default() };
            match needs.unmet_by(Capabilities { full_distribution: *codec == Codec::Dense }) {
                None => Ok(()),
                Some(need) => refuse(format!(
                    "needs {need}, which a stored part of it does not give: take a live teacher or a cache with codec = \
                     \"dense\", or another loss"
                )),
            }
        }
        None => Ok(()),
    }
}
