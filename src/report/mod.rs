//! What is left to read after a run: summary.json and the closing table.

mod summary;
mod table;

pub use summary::{Status, Summary};
pub use table::{Column, eval_table, recorded};
