//! A live teacher whose word is stored as it is given, and asked for once: the first epoch fills a cache, later ones read it.

use std::collections::HashMap;
use std::sync::Mutex;

use rayon::prelude::*;

use super::Teacher;
use super::cached::together;
use crate::cache::{BlockRow, Codec, EncodedRow, Entry, Header, Record, Writer, encode_batch};
use crate::corpus::Batch;
use crate::error::{Error, Result};
use crate::signal::{Capabilities, Needs, TeacherSignal};

/// What it says has gone through the codec the first time too, so that the objective is the same in every epoch.
pub struct WriteThrough<'a> {
    inner: &'a dyn Teacher,
    header: Header,
    store: Mutex<Store>,
}

struct Store {
    writer: Writer,
    known: HashMap<[u8; 32], Entry>,
}

impl<'a> WriteThrough<'a> {
    /// Asks `inner` for rows that `writer`'s cache does not have yet.
    pub fn new(inner: &'a dyn Teacher, writer: Writer) -> Self {
        let mut known = HashMap::new();
        for entry in writer.entries() {
            known.entry(entry.digest).or_insert(*entry);
        }
        Self { inner, header: writer.header().clone(), store: Mutex::new(Store { writer, known }) }
    }

    /// Makes what there is a complete cache of rows of the corpus with the digest `corpus`, which other runs can read.
    pub fn finish(self, corpus: String) -> Result<()> {
        let Ok(Store { mut writer, .. }) = self.store.into_inner() else { return Ok(()) };
        let parts = writer.parts_that_are_there(&corpus)?;
        writer.set_parts(parts)?;
        writer.finish()
    }

    /// Asks for those rows of `batch` that are not known, and stores them.
    fn learn(&self, store: &mut Store, batch: &Batch, needs: &Needs) -> Result<()> {
        let mut rows: Vec<_> = (0..batch.rows.len())
            .filter(|&r| !store.known.contains_key(&batch.rows[r].digest))
            .map(|r| batch.row(r))
            .collect();
        rows.sort_by_key(|row| row.source.digest);
        rows.dedup_by_key(|row| row.source.digest);
        if rows.is_empty() {
            return Ok(());
        }
        let missing = Batch::new(&rows);
        let signal = self.inner.signal(&missing, needs)?;
        let compress = |row: EncodedRow| BlockRow::new(row.digest, row.targets, &row.bytes);
        let encoded = encode_batch(&self.header, &signal, &missing)?.into_par_iter().map(compress);
        let block: Vec<BlockRow> =
            encoded.collect::<std::io::Result<_>>().map_err(|e| Error::run(format!("cannot compress a row: {e}")))?;
        let before = store.writer.entries().len();
        // A power cut costs asking again.
        store.writer.append_unsynced(&block)?;
        store.known.extend(store.writer.entries()[before..].iter().map(|entry| (entry.digest, *entry)));
        Ok(())
    }
}

impl Teacher for WriteThrough<'_> {
    fn capabilities(&self) -> Capabilities {
        Capabilities { full_distribution: self.header.codec == Codec::Dense }
    }

    fn vocab_size(&self) -> usize {
        self.header.vocab_size
    }

    fn signal(&self, batch: &Batch, needs: &Needs) -> Result<TeacherSignal> {
        let mut store = self.store.lock().map_err(|_| Error::run("the teacher failed while it was asked"))?;
        self.learn(&mut store, batch, needs)?;
        let records = batch.rows.iter().map(|row| store.writer.read(&store.known[&row.digest]));
        together(records.collect::<Result<Vec<Record>>>()?).signal(&self.header, needs)
    }
}
