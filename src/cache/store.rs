//! From what a live teacher says of a batch to the records of its rows.

use rayon::prelude::*;

use super::codec::Stored;
use super::header::Header;
use crate::corpus::Batch;
use crate::error::{Error, Result};
use crate::signal::TeacherSignal;

/// Elements of logits that exist at once: 64 MiB.
const CHUNK_ELEMENTS: usize = 16 << 20;
const CHUNK_ROWS: usize = 256;

/// A row's record, not compressed yet.
pub struct EncodedRow {
    pub digest: [u8; 32],
    pub targets: usize,
    pub bytes: Vec<u8>,
}

/// The records of the rows of `batch`, of which a live teacher gave `signal`.
///
/// Run errors: logits that are not finite, by file and line.
pub fn encode_batch(header: &Header, signal: &TeacherSignal, batch: &Batch) -> Result<Vec<EncodedRow>> {
    let stored = store(header, signal, batch)?;
    let rows = (0..batch.rows.len()).into_par_iter().map(|r| {
        let row = batch.row(r);
        let stored = &stored[batch.cu_targets[r]..batch.cu_targets[r + 1]];
        let bytes = header.encode(&row.tokens, &row.targets, stored);
        EncodedRow { digest: row.source.digest, targets: stored.len(), bytes }
    });
    Ok(rows.collect())
}

/// What is kept of each target, a chunk of logits at a time.
pub(super) fn store(header: &Header, signal: &TeacherSignal, batch: &Batch) -> Result<Vec<Stored>> {
    let (targets, vocab) = (batch.valid_tokens(), signal.logits_per_target());
    if vocab < header.vocab_size {
        return Err(Error::run(format!("a teacher of {vocab} logits for a cache of {}", header.vocab_size)));
    }
    // Draws are numbered within their row.
    let row_of = |n: usize| batch.cu_targets.partition_point(|&start| start <= n) - 1;
    let limit = (CHUNK_ELEMENTS / vocab.max(1)).clamp(1, CHUNK_ROWS);
    let mut logits = vec![];
    let mut stored = Vec::with_capacity(targets);
    for from in (0..targets).step_by(limit) {
        let rows = limit.min(targets - from);
        logits.resize(rows * vocab, 0.0);
        signal.logits(from, rows, &mut logits)?;
        let of_row = |(i, logits): (usize, &[f32])| {
            let (n, row) = (from + i, row_of(from + i));
            let digest = &batch.rows[row].digest;
            // What lies beyond is padding: no token of the tokenizer.
            header.store(&logits[..header.vocab_size], batch.labels[n], digest, n - batch.cu_targets[row]).ok_or_else(|| {
                let source = batch.row_of_target(n);
                Error::run(format!(
                    "{}:{}: the teacher's logits are not finite; its weights may be damaged, or its dtype may overflow",
                    source.file.display(),
                    source.line
                ))
            })
        };
        stored.extend(logits.par_chunks_exact(vocab).enumerate().map(of_row).collect::<Result<Vec<Stored>>>()?);
    }
    Ok(stored)
}
