//! What a teacher said, on disk: computed once, read in any order, and nothing in it has to be guessed.
//!
//! A cache is a folder of three files, specified in docs/cache-format.md. header.json ([`Header`]) says what is stored and of whom,
//! signal.bin holds blocks of rows, index.bin finds a row by the digest of its tokens. A block is written whole and
//! checked by its digest, so that a writer that was killed goes on after the last whole one.

mod block;
mod codec;
mod header;
mod index;
mod merge;
mod reader;
mod record;
mod store;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

pub use block::{Block, BlockRow, Blocks};
pub use codec::{Codec, Stored, Values};
pub use header::{DataId, Header, Part, Shard, TeacherId};
pub use index::Entry;
pub use merge::merge;
pub use reader::{Reader, is_cache};
pub use record::{Record, Targets};
pub use store::{EncodedRow, encode_batch};
pub use verify::{Examined, examine};
pub use writer::Writer;

/// Rows of a block, but for the last of a part. What a kill costs is at most one.
pub const ROWS_PER_BLOCK: u64 = 32;

/// What a row takes besides its frame, in the table of its block and in the index.
pub const BYTES_BESIDES_FRAME: u64 = 44 + 52;

const HEADER: &str = "header.json";
const SIGNAL: &str = "signal.bin";
const INDEX: &str = "index.bin";

/// What a cache's folder holds.
pub const FILES: [&str; 3] = [HEADER, SIGNAL, INDEX];
