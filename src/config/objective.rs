//! The divergence that a config's loss names, and whether the run's teacher and devices can give what it needs.

use super::types::*;
use crate::cache::Codec;
use crate::device::Devices;
use crate::error::{Error, Result};
use crate::loss::{Divergence, ForwardKl, Jsd, ReverseKl, SkewKl, SkewReverseKl, Terms, Tvd};
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

/// Refuses a loss that the teacher's signal or the student's device cannot serve. `stored` is the cache that is read or written through.
pub(super) fn can_be_computed(loss: &LossConfig, stored: Option<&Codec>, devices: &Devices) -> Result<()> {
    let Some(divergence) = divergence(loss) else { return Ok(()) };
    tail_is_used(loss, stored)?;
    let kind = loss.kind.word();
    let refuse = |what: String| Err(Error::input(format!("loss.kind = {kind:?} {what}")));
    if devices.student.device.is_cuda() && !divergence.on_gpus() {
        return refuse("is computed on the CPU alone: set student.device = \"cpu\", or use another".into());
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
