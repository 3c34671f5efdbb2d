//! One batch: rows end to end without padding, and the labels, shifted here and nowhere else.
//!
//! Attention works row by row between the bounds in `cu_lens`, so neither a mask nor a pad token exists; packing rows
//! together is only a larger token budget. Only `target_rows` ever reach a head.

use std::path::PathBuf;
use std::sync::Arc;

/// Where a row came from and what it holds: the key of caches and journals, and the name in messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowRef {
    /// SHA-256 of the row's token ids and target mask.
    pub digest: [u8; 32],
    pub file: Arc<PathBuf>,
    /// 1-based line in `file`.
    pub line: u64,
}

/// One tokenised row, truncated to `max_length`, with at least one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub tokens: Vec<u32>,
    /// `targets[t]`: token `t` is to be predicted (from position `t − 1`). The first token never is.
    pub targets: Vec<bool>,
    pub source: RowRef,
}

impl Row {
    /// Number of tokens that are to be predicted.
    pub fn target_count(&self) -> usize {
        self.targets.iter().filter(|&&t| t).count()
    }

    /// Tokens before the last answer. None: there is nothing but perhaps a first special token, as in a text.
    pub fn prompt_len(&self) -> Option<usize> {
        let end = match self.targets.iter().rposition(|&target| target) {
            None => return Some(self.tokens.len()),
            Some(last) => self.targets[..last].iter().rposition(|&target| !target).map_or(0, |t| t + 1),
        };
        (end > 1).then_some(end)
    }
}

/// R rows of T tokens in all, N of them targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Token ids of all rows, end to end: `[T]`.
    pub tokens: Vec<u32>,
    /// Row r spans `cu_lens[r]..cu_lens[r + 1]`: `[R + 1]`.
    pub cu_lens: Vec<usize>,
    /// Position of each token in its row: `[T]`.
    pub positions: Vec<u32>,
    /// Where a target is predicted from (the token before it), as an index into `tokens`, ascending: `[N]`.
    pub target_rows: Vec<u32>,
    /// The token to be predicted there: `[N]`.
    pub labels: Vec<u32>,
    /// Row r owns targets `cu_targets[r]..cu_targets[r + 1]`: `[R + 1]`.
    pub cu_targets: Vec<usize>,
    /// One per row: `[R]`.
    pub rows: Vec<RowRef>,
    /// The student wrote the targets itself: they are no labels.
    pub generated: bool,
}

impl Batch {
    /// Lays `rows` end to end. This is the one place where labels are shifted.
    pub fn new<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Self {
        let mut batch = Self {
            tokens: vec![],
            cu_lens: vec![0],
            positions: vec![],
            target_rows: vec![],
            labels: vec![],
            cu_targets: vec![0],
            rows: vec![],
            generated: false,
        };
        for row in rows {
            let start = batch.tokens.len();
            for t in 1..row.tokens.len() {
                if row.targets[t] {
                    batch.target_rows.push((start + t - 1) as u32);
                    batch.labels.push(row.tokens[t]);
                }
            }
            batch.tokens.extend_from_slice(&row.tokens);
            batch.positions.extend(0..row.tokens.len() as u32);
            batch.cu_lens.push(batch.tokens.len());
            batch.cu_targets.push(batch.labels.len());
            batch.rows.push(row.source.clone());
        }
        batch
    }

    /// Row `r`, as it went in.
    pub fn row(&self, r: usize) -> Row {
        let tokens = self.cu_lens[r]..self.cu_lens[r + 1];
        let mut targets = vec![false; tokens.len()];
        for &from in &self.target_rows[self.cu_targets[r]..self.cu_targets[r + 1]] {
            targets[from as usize + 1 - tokens.start] = true;
        }
        Row { tokens: self.tokens[tokens].to_vec(), targets, source: self.rows[r].clone() }
    }

    /// Number of targets N: what a step divides its loss by.
    pub fn valid_tokens(&self) -> usize {
        self.labels.len()
    }

    /// The row that owns target `n`.
    pub fn row_of_target(&self, n: usize) -> &RowRef {
        &self.rows[self.cu_targets.partition_point(|&c| c <= n) - 1]
    }
}
