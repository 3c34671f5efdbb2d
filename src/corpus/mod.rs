//! From JSONL files to batches.

mod batch;
mod chat;
mod encode;
mod fields;
mod index;
mod jsonl;
mod lines;
mod overlap;
mod printable;
mod sandbox;
mod tokenizer;
mod turns;

pub use batch::{Batch, Row, RowRef};
pub use chat::{ChatTemplate, SpecialTokens};
pub use encode::{EncodeError, Encoded, EncodedRow, Encoder, LossOn, TemplateChoice};
pub use index::{CorpusFile, CorpusIndex, OnBadRecord, Place, Rejected, Rejections};
pub use jsonl::{LONGEST_LINE, Message, Record};
pub use overlap::{Overlap, OverlapFinder};
pub use printable::printable;
pub use tokenizer::TextTokenizer;
