//! The divergence that a config's loss names, and whether the run's teacher and devices can compute what
//! is asked of them.

use super::types::*;
use crate::cache::Codec;
use crate::device::{Devices, Opened};
use crate::error::{Error, Result};
use crate::loss::{Divergence, ForwardKl, Jsd, ReverseKl, SkewKl, SkewReverseKl, Terms, Tvd};
use crate::model::ModelConfig;
use crate::signal::{Capabilities, Needs};

/// None: hard labels alone.
pub fn divergence(loss: &LossConfig) -> Option<Box<dyn Divergence>> {
    let lambda = loss.lambda.unwrap_or(LossConfig::LAMBDA) as f32;
    Some(match loss.kind {
        LossKind::CrossEntropy => return None,
        LossKind::ForwardKl => Box::new(ForwardKl),
        LossKind::ReverseKl => Box::new(Terms(ReverseKl)),
        LossKind::Jsd => {
            Box::new(Terms(Jsd::new(loss.beta.unwrap_or(LossConfig::BETA), loss.normalize.unwrap_or(false))))
        }
        LossKind::SkewKl => Box::new(Terms(SkewKl { lambda })),
        LossKind::SkewReverseKl => Box::new(Terms(SkewReverseKl { lambda })),
        LossKind::Tvd => Box::new(Terms(Tvd)),
    })
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

/// Refuses a loss that the teacher's signal or the student's device cannot serve. `stored` is the cache that is read or written through.
pub(super) fn can_be_computed(loss: &LossConfig, stored: Option<&Codec>, devices: &Devices) -> Result<()> {
    let Some(divergence) = divergence(loss) else { return Ok(()) };
    let kind = loss.kind.word();
    let refuse = |what: String| Err(Error::input(format!("loss.kind = {kind:?} {what}")));
    if devices.student.device.is_cuda() && !divergence.on_gpus() {
        return refuse("is computed on the CPU alone: set student.device = \"cpu\", or use \"forward_kl\"".into());
    }
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
