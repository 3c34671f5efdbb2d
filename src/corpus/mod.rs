//! From JSONL files to batches.

mod batch;
mod fields;
mod jsonl;
mod printable;

pub use batch::{Batch, Row, RowRef};
pub use jsonl::{LONGEST_LINE, Message, Record};
pub use printable::printable;
