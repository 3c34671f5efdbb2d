//! Steps of rows in a seeded order, and the state that makes the next step the same after a restart.

use std::sync::Arc;

use super::batch::{Batch, Row};
use super::encode::{EncodeError, EncodedRow, Encoder};
use super::index::{CorpusIndex, OnBadRecord, Rejections};
use super::order::{Taken, shuffled};
use crate::{Error, Result};

/// How a corpus is gone through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOrder {
    pub seed: u64,
    /// False: file order in every epoch.
    pub shuffle: bool,
    /// None: without end.
    pub epochs: Option<u64>,
}

/// Where a loader stands between two steps, and what it has used so far. Serialised into checkpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LoaderState {
    /// 0-based.
    pub epoch: u64,
    /// Records of the epoch's order that are done.
    pub cursor: u64,
    /// Rows done of the record at `cursor`, which has several if the chat template splits it.
    pub row: u64,
    /// Distinct rows that went into steps. This and the next four count in the first epoch alone.
    pub rows_used: u64,
    /// Rows passed over because no target was left.
    pub rows_dropped: u64,
    /// Used or dropped rows that were cut at max_length.
    pub rows_truncated: u64,
    /// Records that became several rows.
    pub records_split: u64,
    /// Records passed over because they could not be encoded, under on_bad_record = "skip".
    pub records_rejected: u64,
    /// Rows used since the epoch began.
    pub epoch_rows_used: u64,
    /// Commits to which rows were in which step so far, and in which order: a chain of SHA-256 over the steps. Empty before
    /// the first step, and in checkpoints of versions that did not record it.
    #[serde(default)]
    pub order: String,
}

/// What one optimizer step trains on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Rows, each alone, or packs of rows.
    pub items: Vec<Vec<Row>>,
    /// 0-based.
    pub epoch: u64,
}

impl Step {
    /// Batches of up to `micro_batch_size` items (at least 1), in order.
    pub fn micro_batches(&self, micro_batch_size: usize) -> Vec<Batch> {
        self.items.chunks(micro_batch_size.max(1)).map(|items| Batch::new(items.iter().flatten())).collect()
    }
}

/// Goes through a corpus step by step. Two loaders with the same corpus, encoder, order and state yield the same steps.
#[derive(Debug)]
pub struct Loader {
    index: Arc<CorpusIndex>,
    encoder: Arc<Encoder>,
    order: LoadOrder,
    state: LoaderState,
    /// The order of `state.epoch`; None in file order.
    permutation: Option<Vec<u32>>,
    /// The record at the cursor, encoded; None: not looked at yet.
    current: Option<Vec<EncodedRow>>,
    /// Rows of the step that is being put together.
    taken: Taken,
    rejections: Rejections,
}

impl Loader {
    pub fn new(index: Arc<CorpusIndex>, encoder: Arc<Encoder>, order: LoadOrder) -> Self {
        let mut loader = Self {
            index,
            encoder,
            order,
            state: LoaderState::default(),
            permutation: None,
            current: None,
            taken: Taken::default(),
            rejections: Rejections::default(),
        };
        loader.permute();
        loader
    }

    /// Goes on from `state`, which another loader over the same corpus gave.
    ///
    /// A run error if it lies outside of the corpus.
    pub fn restore(&mut self, state: LoaderState) -> Result<()> {
        if state.cursor > self.index.len() as u64 {
            let (cursor, rows) = (state.cursor, self.index.len());
            return Err(Error::run(format!("the saved position is record {cursor}, but the data has {rows} records")));
        }
        self.state = state;
        self.current = None;
        self.permute();
        Ok(())
    }

    pub fn state(&self) -> &LoaderState {
        &self.state
    }

    /// Records that could not be encoded, under on_bad_record = "skip", of this loader's first epoch.
    pub fn rejections(&self) -> &Rejections {
        &self.rejections
    }

    fn permute(&mut self) {
        self.permutation =
            self.order.shuffle.then(|| shuffled(self.order.seed, self.state.epoch, self.index.len() as u32));
    }

    /// The next `batch_size` rows with a target or, with `packing`, packs: runs of whole rows that are at most
    /// `max_length` tokens together; a row that does not fit starts the next one. Fewer at the end of an epoch: a step never
    /// spans two. None after the last epoch.
    ///
    /// Input errors: a record that cannot be encoded, under on_bad_record = "fail", or more bad ones than may be passed over; a
    /// whole epoch without a target. Run errors: a file that changed.
    pub fn next_step(&mut self, batch_size: usize, packing: bool) -> Result<Option<Step>> {
        loop {
            if self.order.epochs.is_some_and(|epochs| self.state.epoch >= epochs) {
                return Ok(None);
            }
            let epoch = self.state.epoch;
            let mut items = vec![];
            self.taken.clear();
            while items.len() < batch_size.max(1) {
                let item = if packing { self.pack()? } else { self.take(usize::MAX)?.into_iter().collect() };
                if item.is_empty() {
                    break;
                }
                self.taken.end_item();
                items.push(item);
            }
            if self.state.cursor == self.index.len() as u64 && items.is_empty() {
                self.end_epoch()?;
                continue;
            }
            self.state.order = self.taken.link(&self.state.order, epoch);
            return Ok(Some(Step { items, epoch }));
        }
    }

    fn end_epoch(&mut self) -> Result<()> {
        if self.state.epoch_rows_used == 0 {
            return Err(no_target_left(
                self.state.rows_dropped,
                self.state.records_rejected,
                self.encoder.max_length(),
            ));
        }
        self.state.epoch += 1;
        (self.state.cursor, self.state.row, self.state.epoch_rows_used) = (0, 0, 0);
        self.permute();
        Ok(())
    }

    fn pack(&mut self) -> Result<Vec<Row>> {
        let (mut rows, mut room) = (vec![], self.encoder.max_length());
        while let Some(row) = self.take(room)? {
            room -= row.tokens.len();
            rows.push(row);
        }
        Ok(rows)
    }

    /// The next row of the epoch that has a target; None at its end, or if the row has more than `room` tokens and stays.
    fn take(&mut self, room: usize) -> Result<Option<Row>> {
        while self.state.cursor < self.index.len() as u64 {
            if self.current.is_none() {
                self.current = Some(self.encode_current()?);
            }
            let rows = self.current.as_mut().expect("set just above");
            let Some(next) = rows.get_mut(self.state.row as usize) else {
                self.state.cursor += 1;
                self.state.row = 0;
                self.current = None;
                continue;
            };
            if next.row.as_ref().is_some_and(|row| row.tokens.len() > room) {
                return Ok(None);
            }
            // The record is counted with its first row, so that a restart between its rows counts it once.
            let first_epoch = (self.state.epoch == 0) as u64;
            self.state.records_split += (self.state.row == 0 && rows.len() > 1) as u64 * first_epoch;
            let next = &mut rows[self.state.row as usize];
            self.state.row += 1;
            self.state.rows_truncated += next.truncated as u64 * first_epoch;
            match next.row.take() {
                None => self.state.rows_dropped += first_epoch,
                Some(row) => {
                    self.state.rows_used += first_epoch;
                    self.state.epoch_rows_used += 1;
                    let record = self.record() as u32;
                    self.taken.row(record, self.state.row as u32 - 1);
                    return Ok(Some(row));
                }
            }
        }
        Ok(None)
    }

    /// The number of the record at the cursor in the corpus.
    fn record(&self) -> usize {
        let place = self.state.cursor as usize;
        self.permutation.as_ref().map_or(place, |order| order[place] as usize)
    }

    fn encode_current(&mut self) -> Result<Vec<EncodedRow>> {
        let (record, place) = self.index.read(self.record())?;
        match self.encoder.encode(&record, &place) {
            Ok(encoded) => Ok(encoded.rows),
            Err(EncodeError::Setup(error)) => Err(error),
            Err(EncodeError::Record(reason)) => {
                if self.index.policy() == OnBadRecord::Fail {
                    let mut bad = Rejections::default();
                    bad.push(place, reason);
                    return Err(bad.refusal());
                }
                if self.state.epoch == 0 {
                    self.state.records_rejected += 1;
                    self.rejections.push(place, reason);
                    let count = self.index.rejections().count + self.state.records_rejected;
                    self.index.policy().bound(count, &[self.index.rejections(), &self.rejections])?;
                }
                Ok(vec![])
            }
        }
    }
}

pub(super) fn no_target_left(dropped: u64, rejected: u64, max_length: usize) -> Error {
    Error::input(format!(
        "no target left: {dropped} rows have none within max_length = {max_length} tokens and {rejected} records were \
         rejected: raise max_length, or check the data"
    ))
}
