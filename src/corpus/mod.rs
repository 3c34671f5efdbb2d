//! From JSONL files to batches.
//!
//! A file's lines become [`Record`]s ([`CorpusIndex`] remembers where they stand), an [`Encoder`] turns a record into [`Row`]s of
//! token ids with a target mask, and a [`Loader`] hands them out in a seeded order, a [`Step`] at a time, [`ReadAhead`] in a
//! thread. [`Batch`] lays rows end to end. Memory holds positions and lengths, never the corpus.

mod batch;
mod chat;
mod encode;
mod fields;
mod index;
mod jsonl;
mod lines;
mod loader;
mod order;
mod overlap;
mod read_ahead;
mod sandbox;
mod scan;
mod source;
mod stored;
mod tokenizer;
mod tokenizer_files;
mod tokenizer_parts;
mod turns;

#[cfg(test)]
mod tests;

pub use batch::{Batch, Row, RowRef};
pub use chat::{ChatTemplate, SpecialTokens};
pub use encode::{EncodeError, Encoded, EncodedRow, Encoder, LossOn, TemplateChoice, row_digest};
pub use index::{CorpusFile, CorpusIndex, OnBadRecord, Place, Rejected, Rejections};
pub use jsonl::{Fault, LONGEST_LINE, Message, Record};
pub use loader::{LoadOrder, Loader, LoaderState, Step};
pub use overlap::{Overlap, OverlapFinder};
pub use read_ahead::{ReadAhead, StepShape};
pub use scan::{Scan, scan};
pub use stored::{Split, StoredSettings, StoredTokenizer, TokenKind};
pub use tokenizer::TextTokenizer;
pub use tokenizer_files::TokenizerFiles;
