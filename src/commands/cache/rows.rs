//! The rows that a cache is to hold: those that training and evaluation ask for, each once.

use std::collections::HashSet;

use sha2::{Digest, Sha256};

use crate::config::plan::Plan;
use crate::corpus::{EncodeError, Row, scan};
use crate::error::{Error, Result};
use crate::metrics::Screen;
use crate::units::hex;

/// Rows in the order in which they are stored.
pub struct Rows {
    all: Vec<Source>,
    pub targets: u64,
    pub tokens: u64,
}

struct Source {
    place: Place,
    digest: [u8; 32],
}

enum Place {
    Train { record: u32, row: u32 },
    HeldOut(usize),
}

impl Rows {
    /// Every row of the training data, then of the held-out data, that is not in `known`.
    pub fn find(plan: &Plan, mut known: HashSet<[u8; 32]>, screen: &Screen) -> Result<Self> {
        let mut rows = Self { all: vec![], targets: 0, tokens: 0 };
        let progress = screen.progress("looking for rows", Some(plan.train.len() as u64));
        let watch = |record, row, found: &Row| {
            rows.add(Place::Train { record: record as u32, row: row as u32 }, found, &mut known);
            Ok(())
        };
        scan(&plan.train, &plan.encoder, None, watch, |done| progress.set(done, "rows"))?;
        progress.finish();
        for (i, row) in plan.held_out.iter().flat_map(|held_out| &held_out.rows).enumerate() {
            rows.add(Place::HeldOut(i), row, &mut known);
        }
        Ok(rows)
    }

    fn add(&mut self, place: Place, row: &Row, known: &mut HashSet<[u8; 32]>) {
        if known.insert(row.source.digest) {
            self.targets += row.target_count() as u64;
            self.tokens += row.tokens.len() as u64;
            self.all.push(Source { place, digest: row.source.digest });
        }
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Row `i`, read and tokenised again: memory holds places alone.
    pub fn get(&self, i: usize, plan: &Plan) -> Result<Row> {
        let Source { place, digest } = &self.all[i];
        let (record, row) = match place {
            Place::HeldOut(i) => match plan.held_out.as_ref().and_then(|held_out| held_out.rows.get(*i)) {
                Some(row) => return Ok(row.clone()),
                None => return Err(Error::run("a held-out row is gone")),
            },
            Place::Train { record, row } => (*record as usize, *row as usize),
        };
        let (record, place) = plan.train.read(record)?;
        let encoded = plan.encoder.encode(&record, &place).map_err(|error| match error {
            EncodeError::Setup(error) => error,
            EncodeError::Record(reason) => Error::input(format!("{place}: {reason}")),
        })?;
        let found = encoded.rows.into_iter().nth(row).and_then(|encoded| encoded.row);
        found.filter(|row| row.source.digest == *digest).ok_or_else(|| {
            Error::run(format!("{place} became other tokens than before: does its chat template tell the time?"))
        })
    }
}

/// A digest of the text that is cached: of the files, and how many held-out rows are taken.
pub fn corpus_digest(plan: &Plan) -> String {
    let mut hasher = Sha256::new();
    hasher.update(plan.train.digest());
    if let Some(held_out) = &plan.held_out {
        hasher.update(held_out.index.digest());
        hasher.update((plan.config.eval.max_rows as u64).to_le_bytes());
    }
    hex(&hasher.finalize())
}
