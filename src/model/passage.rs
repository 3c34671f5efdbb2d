//! A batch on its way through some of a decoder's blocks: what the model would say without the others.

use candle_core::Tensor;

use super::block::{Asked, Layout};
use super::decoder::Decoder;
use crate::corpus::Batch;
use crate::error::Result;
use crate::kernels::{Precision, gather};

/// A batch's layout in a decoder.
pub struct Passage<'a> {
    decoder: &'a Decoder,
    positions: Vec<u32>,
    layout: Layout,
    asked: Asked,
}

impl Decoder {
    pub fn passage(&self, batch: &Batch) -> Result<Passage<'_>> {
        let (layout, asked) = self.layout(batch)?;
        Ok(Passage { decoder: self, positions: batch.positions.clone(), layout, asked })
    }
}

impl Passage<'_> {
    /// What goes into each of the blocks `layers` when `tokens` pass through these alone, `[T, D]` each.
    pub fn inputs(&self, tokens: &[u32], layers: &[usize]) -> Result<Vec<Tensor>> {
        let mut inputs = vec![self.decoder.embed(tokens, &self.positions)?];
        for (&layer, i) in layers.iter().zip(1..layers.len()) {
            let x = self.decoder.blocks[layer].forward(&inputs[i - 1], &self.layout, None, Precision::F32)?.0;
            inputs.push(x);
        }
        Ok(inputs)
    }

    /// Final hidden states at the batch's targets, `[N, D]`, when `x`, `[T, D]`, passes through the blocks `layers`.
    pub fn finish(&self, x: &Tensor, layers: &[usize]) -> Result<Tensor> {
        let Some((last, before)) = layers.split_last() else {
            return self.decoder.norm.forward(&gather(x, &self.asked.rows)?);
        };
        let mut x = x.clone();
        for &layer in before {
            x = self.decoder.blocks[layer].forward(&x, &self.layout, None, Precision::F32)?.0;
        }
        x = self.decoder.blocks[*last].forward(&x, &self.layout, Some(&self.asked), Precision::F32)?.0;
        self.decoder.norm.forward(&x)
    }
}
