//! Rows that stand in the training data and in the held-out data alike: they make a held-out score flatter the student.

use std::collections::HashMap;

use super::index::{CorpusIndex, Place};
use super::jsonl::Record;
use crate::Result;

/// What was found. The rows are compared by content: a pair equals the conversation that says the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// Held-out rows that are training rows too.
    pub rows: u64,
    /// The first example: its place in the training data, then in the held-out data.
    pub first: Option<(Place, Place)>,
}

/// Watches the training data go by ([`CorpusIndex::open_watching`]) with the held-out rows' hashes in hand.
/// Memory grows with the held-out set alone.
#[derive(Debug)]
pub struct OverlapFinder<'a> {
    eval: &'a CorpusIndex,
    /// Content hash → the first held-out row with it, how many have it, and whether training has it too.
    known: HashMap<u64, (u32, u32, bool)>,
    first: Option<(Place, Place)>,
}

impl<'a> OverlapFinder<'a> {
    /// Reads the held-out rows once.
    pub fn new(eval: &'a CorpusIndex) -> Result<Self> {
        let mut known = HashMap::with_capacity(eval.len());
        for row in 0..eval.len() {
            known.entry(eval.read(row)?.0.content_hash()).or_insert((row as u32, 0, false)).1 += 1;
        }
        Ok(Self { eval, known, first: None })
    }

    /// One training row.
    pub fn watch(&mut self, place: &Place, record: &Record) {
        if let Some((row, _, seen)) = self.known.get_mut(&record.content_hash()) {
            *seen = true;
            if self.first.is_none() {
                self.first = Some((place.clone(), self.eval.place(*row as usize)));
            }
        }
    }

    pub fn finish(self) -> Overlap {
        let rows = self.known.values().filter(|(_, _, seen)| *seen).map(|&(_, count, _)| count as u64).sum();
        Overlap { rows, first: self.first }
    }
}
