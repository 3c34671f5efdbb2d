//! What the targets share with tests/fuzzed.rs: each target is one of [`readers::READERS`].

#[path = "../../tests/fuzzed/readers.rs"]
pub mod readers;
