//! What is left to read after a run: summary.json and the closing table.

mod summary;
mod table;

pub use summary::{Status, Summary, Written};
pub use table::{Column, eval_table, recorded};
