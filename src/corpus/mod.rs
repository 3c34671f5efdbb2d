//! From JSONL files to batches.

mod batch;

pub use batch::{Batch, Row, RowRef};
