//! Teachers: whoever can say what a batch's targets should look like.

mod cached;
mod local;
mod remembering;
mod spill;
mod write_through;

pub use cached::{CacheTeacher, not_cached};
pub use local::LocalTeacher;
pub use remembering::RememberingTeacher;
pub use spill::Spill;
pub use write_through::WriteThrough;

use crate::corpus::Batch;
use crate::error::Result;
use crate::signal::{Capabilities, Needs, TeacherSignal};

/// A frozen teacher. It never builds a graph.
pub trait Teacher: Send + Sync {
    /// What its signal can hold.
    fn capabilities(&self) -> Capabilities;

    /// V, the length of a row of its logits.
    fn vocab_size(&self) -> usize;

    /// Its word on every target of `batch`; `needs` are within its capabilities (the plan has checked).
    fn signal(&self, batch: &Batch, needs: &Needs) -> Result<TeacherSignal>;
}
