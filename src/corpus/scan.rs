//! What a corpus amounts to once it is tokenised: the arithmetic of a plan. Keeps counts and lengths, no rows.

use rayon::prelude::*;

use super::batch::Row;
use super::encode::{EncodeError, Encoded, Encoder};
use super::index::{CorpusIndex, OnBadRecord, Place, Rejections};
use super::loader::{LoadOrder, no_target_left};
use super::order::shuffled;
use crate::{Error, Result};

/// Counts over a corpus. If `exact` is false they were extrapolated from an evenly spaced sample (`longest` is the sample's).
#[derive(Debug, Clone, Default)]
pub struct Scan {
    pub exact: bool,
    /// Records in the index.
    pub records: u64,
    /// Records that were tokenised.
    pub records_read: u64,
    /// Rows that have a target.
    pub rows_used: u64,
    /// Of these, rows with something to answer.
    pub rows_with_prompt: u64,
    pub rows_dropped: u64,
    pub rows_truncated: u64,
    pub records_split: u64,
    pub records_rejected: u64,
    /// Tokens of used rows.
    pub tokens: u64,
    pub target_tokens: u64,
    /// Tokens of the longest used row.
    pub longest: usize,
    /// The records that could not be encoded (never extrapolated).
    pub rejections: Rejections,
    lengths: Lengths,
}

/// The lengths of each record's used rows: four bytes a record, and a side table for records that were split.
#[derive(Debug, Clone, Default)]
struct Lengths {
    /// A length; 0: no used row; [`SEVERAL`] + i: `several[i]`.
    records: Vec<u32>,
    several: Vec<Vec<u32>>,
}

const SEVERAL: u32 = 1 << 31;

impl Lengths {
    fn push(&mut self, rows: Vec<u32>) {
        self.records.push(match rows[..] {
            [] => 0,
            [one] => one,
            _ => SEVERAL + self.several.len() as u32,
        });
        if rows.len() > 1 {
            self.several.push(rows);
        }
    }

    fn of(&self, record: usize) -> &[u32] {
        match self.records[record] {
            0 => &[],
            n if n < SEVERAL => &self.records[record..record + 1],
            n => &self.several[(n - SEVERAL) as usize],
        }
    }
}

const CHUNK: usize = 1024;

/// Tokenises the corpus on all threads: every record, or an evenly spaced sample of about `limit_bytes` if the files are larger.
/// `watch` is handed every row that has a target, in order, with the number of its record and its own within that;
/// `progress` is told how many records are done.
///
/// Input errors: records that cannot be encoded, under on_bad_record = "fail" (up to ten are listed), or more bad ones
/// than may be passed over; no target at all.
pub fn scan(
    index: &CorpusIndex,
    encoder: &Encoder,
    limit_bytes: Option<u64>,
    mut watch: impl FnMut(usize, usize, &Row) -> Result<()>,
    mut progress: impl FnMut(u64),
) -> Result<Scan> {
    let stride = limit_bytes.map_or(1, |limit| index.bytes().div_ceil(limit.max(1)).max(1)) as usize;
    let exact = stride == 1;
    let mut scan = Scan { exact, records: index.len() as u64, ..Scan::default() };
    let chosen: usize = index.len().div_ceil(stride);
    for start in (0..chosen).step_by(CHUNK) {
        let end = (start + CHUNK).min(chosen);
        let encode = |n: usize| -> Result<(Place, Result<Encoded, EncodeError>)> {
            let (record, place) = index.read(n * stride)?;
            let encoded = encoder.encode(&record, &place);
            Ok((place, encoded))
        };
        let done: Vec<_> = (start..end).into_par_iter().map(encode).collect::<Result<_>>()?;
        for (n, (place, encoded)) in (start..).zip(done) {
            for (i, row) in encoded.iter().flat_map(|e| &e.rows).enumerate() {
                row.row.iter().try_for_each(|row| watch(n * stride, i, row))?;
            }
            scan.add(place, encoded)?;
        }
        let count = index.rejections().count + scan.rejections.count;
        index.policy().bound(count, &[index.rejections(), &scan.rejections])?;
        progress(end as u64);
    }
    scan.records_read = chosen as u64;
    if index.policy() == OnBadRecord::Fail && scan.records_rejected > 0 {
        return Err(scan.rejections.refusal());
    }
    if scan.rows_used == 0 {
        return Err(no_target_left(scan.rows_dropped, scan.records_rejected, encoder.max_length()));
    }
    if !exact {
        scan.extrapolate();
    }
    Ok(scan)
}

impl Scan {
    fn add(&mut self, place: Place, encoded: Result<Encoded, EncodeError>) -> Result<()> {
        let encoded = match encoded {
            Ok(encoded) => encoded,
            Err(EncodeError::Setup(error)) => return Err(error),
            Err(EncodeError::Record(reason)) => {
                self.records_rejected += 1;
                self.rejections.push(place, reason);
                Encoded { rows: vec![], split: false }
            }
        };
        self.records_split += encoded.split as u64;
        let mut lengths = vec![];
        for encoded in &encoded.rows {
            self.rows_truncated += encoded.truncated as u64;
            let Some(row) = &encoded.row else {
                self.rows_dropped += 1;
                continue;
            };
            self.rows_used += 1;
            self.rows_with_prompt += row.prompt_len().is_some() as u64;
            self.tokens += row.tokens.len() as u64;
            self.target_tokens += row.target_count() as u64;
            self.longest = self.longest.max(row.tokens.len());
            lengths.push(row.tokens.len() as u32);
        }
        if self.exact {
            self.lengths.push(lengths);
        }
        Ok(())
    }

    fn extrapolate(&mut self) {
        let (all, read) = (self.records as u128, self.records_read.max(1) as u128);
        for count in [
            &mut self.rows_used,
            &mut self.rows_with_prompt,
            &mut self.rows_dropped,
            &mut self.rows_truncated,
            &mut self.records_split,
            &mut self.records_rejected,
            &mut self.tokens,
            &mut self.target_tokens,
        ] {
            *count = ((*count as u128 * all + read / 2) / read) as u64;
        }
    }

    /// The number of steps that a [`super::Loader`] yields over `order.epochs` epochs (one if it is None). Exact for an
    /// exact scan; else an estimate, with packs taken to be full.
    pub fn count_steps(&self, order: LoadOrder, batch_size: usize, packing: bool, max_length: usize) -> Result<u64> {
        let (epochs, batch) = (order.epochs.unwrap_or(1), batch_size.max(1) as u64);
        if !packing {
            return Ok(self.rows_used.div_ceil(batch).saturating_mul(epochs));
        }
        if !self.exact {
            return Ok(self.tokens.div_ceil(max_length.max(1) as u64).div_ceil(batch).saturating_mul(epochs));
        }
        let records = u32::try_from(self.records).map_err(|_| Error::input("too many records"))?;
        if !order.shuffle {
            return Ok(self.packs(0..records, max_length).div_ceil(batch).saturating_mul(epochs));
        }
        Ok((0..epochs)
            .into_par_iter()
            .map(|epoch| self.packs(shuffled(order.seed, epoch, records), max_length).div_ceil(batch))
            .sum())
    }

    fn packs(&self, order: impl IntoIterator<Item = u32>, max_length: usize) -> u64 {
        let (mut packs, mut room) = (0, 0);
        for length in order.into_iter().flat_map(|record| self.lengths.of(record as usize)) {
            let length = *length as usize;
            if length > room {
                packs += 1;
                room = max_length;
            }
            room -= length;
        }
        packs
    }
}
