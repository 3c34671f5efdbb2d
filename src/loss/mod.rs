//! Losses: row divergences, and the one driver that runs them over chunks of targets.
//!
//! p is the teacher, q the student, both softmax(z / T). A loss is a sum in nats over target tokens; the only division
//! is by the optimizer step's number of targets, once. So a gradient does not depend on how a step is split into
//! micro-batches, packed or chunked.

mod cross_entropy;
mod driver;
mod forward_kl;
mod hidden;
mod jsd;
mod objective;
mod on_gpu;
#[cfg(test)]
mod on_gpu_tests;
mod ramp;
mod reverse_kl;
mod row;
mod skew_kl;
mod terms;
mod tvd;

pub use cross_entropy::cross_entropy_row;
pub use driver::{ChunkedLogits, StudentHead};
pub use forward_kl::ForwardKl;
pub use hidden::{HiddenKind, HiddenMatch, HiddenPair};
pub use jsd::Jsd;
pub use objective::{Counts, MOST_PARTS, Objective, Output, Part, Sums};
pub(crate) use objective::{checked_sampled, checked_teacher_row, checked_top_k};
pub use ramp::{Path, Ramp};
pub use reverse_kl::ReverseKl;
pub use row::{Divergence, LogitRow};
pub use skew_kl::{SkewKl, SkewReverseKl};
pub use terms::{Term, Terms};
pub use tvd::Tvd;
