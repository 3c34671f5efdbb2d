//! Keys and values of the tokens seen so far, for rows that are generated side by side.

use candle_core::{DType, Device, Tensor};

use crate::error::Result;
use crate::kernels::add_rows;

/// One layer's rotated keys and its values, `[rows · capacity, kv_heads · head_dim]` each: row r's tokens begin at
/// r · capacity. Slots that no token has taken are 0, so that adding a token's is writing it.
#[derive(Debug)]
pub(super) struct LayerCache {
    keys: Tensor,
    values: Tensor,
}

impl LayerCache {
    /// Writes the new tokens' keys and values into their slots and returns the whole layer's.
    pub fn write(&self, slots: &[u32], k: &Tensor, v: &Tensor) -> Result<(&Tensor, &Tensor)> {
        add_rows(&self.keys, slots, k)?;
        add_rows(&self.values, slots, v)?;
        Ok((&self.keys, &self.values))
    }
}

/// The state of a generation: grows by what is fed to [`super::Decoder::advance`].
#[derive(Debug)]
pub struct KvCache {
    pub(super) layers: Vec<LayerCache>,
    /// Tokens seen of each row.
    pub(super) lengths: Vec<usize>,
    capacity: usize,
}

impl KvCache {
    /// For `rows` rows that have seen nothing.
    pub fn new(rows: usize) -> Self {
        Self { layers: vec![], lengths: vec![0; rows], capacity: 0 }
    }

    /// Tokens that row `r` has seen.
    pub fn len(&self, r: usize) -> usize {
        self.lengths[r]
    }

    pub fn is_empty(&self) -> bool {
        self.lengths.iter().all(|&n| n == 0)
    }

    /// Tokens that fit into a row without growing.
    pub(super) fn room(&self) -> usize {
        self.capacity
    }

    /// The slot of token `position` of row `r`.
    pub(super) fn slot(&self, r: usize, position: usize) -> usize {
        r * self.capacity + position
    }

    /// Makes room for `tokens` tokens of every row, in `layers` layers whose keys and values are `width` wide. Room at
    /// least doubles, so that a long generation is copied a few times only.
    pub(super) fn reserve(&mut self, tokens: usize, layers: usize, width: usize, device: &Device) -> Result<()> {
        if tokens <= self.capacity {
            return Ok(());
        }
        let capacity = tokens.max(2 * self.capacity).next_multiple_of(32);
        let rows = self.lengths.len();
        let larger = |old: Option<&Tensor>| -> Result<Tensor> {
            let new = Tensor::zeros((rows * capacity, width), DType::F32, device)?;
            for (r, &length) in self.lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
                if let Some(old) = old {
                    new.slice_set(&old.narrow(0, r * self.capacity, length)?.contiguous()?, 0, r * capacity)?;
                }
            }
            Ok(new)
        };
        let layers = (0..layers).map(|i| {
            let old = self.layers.get(i);
            Ok(LayerCache { keys: larger(old.map(|l| &l.keys))?, values: larger(old.map(|l| &l.values))? })
        });
        self.layers = layers.collect::<Result<_>>()?;
        self.capacity = capacity;
        Ok(())
    }
}
