//! Keys and values of the tokens generated so far, for one row.

use candle_core::Tensor;

use crate::error::Result;

/// One layer's rotated keys and its values, `[tokens, kv_heads · head_dim]` each.
#[derive(Debug, Default)]
pub(super) struct LayerCache(Option<(Tensor, Tensor)>);

impl LayerCache {
    /// Adds the new tokens' keys and values and returns all of them.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let all = match self.0.take() {
            Some((keys, values)) => (Tensor::cat(&[&keys, k], 0)?, Tensor::cat(&[&values, v], 0)?),
            None => (k.clone(), v.clone()),
        };
        self.0 = Some(all.clone());
        Ok(all)
    }
}

/// The state of one generation: grows by what is fed to [`super::Decoder::next_hidden`].
#[derive(Debug, Default)]
pub struct KvCache {
    pub(super) layers: Vec<LayerCache>,
    pub(super) tokens: usize,
}

impl KvCache {
    /// Tokens seen so far.
    pub fn len(&self) -> usize {
        self.tokens
    }

    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }
}
