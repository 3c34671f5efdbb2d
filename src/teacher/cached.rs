//! A teacher that spoke once: its stored word, and nothing of it in memory.

use std::sync::Arc;

use rayon::prelude::*;

use super::Teacher;
use crate::cache::{Codec, Reader, Record, Targets};
use crate::corpus::{Batch, RowRef};
use crate::error::{Error, Result};
use crate::signal::{Capabilities, Needs, TeacherSignal};

/// Answers from a cache.
pub struct CacheTeacher {
    reader: Arc<Reader>,
}

impl CacheTeacher {
    pub fn new(reader: Arc<Reader>) -> Self {
        Self { reader }
    }

    fn row(&self, row: &RowRef) -> Result<Record> {
        let entry = self.reader.find(&row.digest)?.ok_or_else(|| not_cached(row))?;
        self.reader.read(&entry).map_err(|e| e.context(format!("{}:{}", row.file.display(), row.line)))
    }
}

/// What is said of a row that a cache does not have.
pub fn not_cached(row: &RowRef) -> Error {
    Error::input(format!(
        "{}:{}: the teacher's cache does not have this row: `distill cache --resume --output CACHE`, with these data and the live \
         teacher that it is of, adds it",
        row.file.display(),
        row.line
    ))
}

/// The targets of rows, end to end.
pub(super) fn together(records: Vec<Record>) -> Targets {
    let mut all = Targets::default();
    records.iter().for_each(|record| all.append(&record.said));
    all
}

impl Teacher for CacheTeacher {
    fn capabilities(&self) -> Capabilities {
        Capabilities { full_distribution: self.reader.header().codec == Codec::Dense }
    }

    fn vocab_size(&self) -> usize {
        self.reader.header().vocab_size
    }

    fn signal(&self, batch: &Batch, needs: &Needs) -> Result<TeacherSignal> {
        let records = batch.rows.par_iter().map(|row| self.row(row)).collect::<Result<Vec<Record>>>()?;
        together(records).signal(self.reader.header(), needs)
    }
}
