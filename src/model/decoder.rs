//! The one decoder behind teacher and student.
//!
//! A forward pass for training keeps each block's activations; the backward pass walks the blocks from the last to the
//! first and frees them as it goes.

use candle_core::{Device, Tensor};

use super::block::{Asked, Block, Layout, Saved};
use super::config::ModelConfig;
use super::kv_cache::{KvCache, LayerCache};
use super::parameter::{Parameter, Parameters};
use super::tensors::{EMBEDDING, FINAL_NORM, HEAD};
use super::weights::Weights;
use crate::corpus::Batch;
use crate::device::moved;
use crate::error::{Error, Result};
use crate::kernels::{Precision, RmsNorm, Rope, Span, Spans, add_rows};

/// A Llama-like causal language model.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    parameters: Parameters,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: RmsNorm,
    inverse_frequencies: Vec<f32>,
    device: Device,
}

/// What a training forward keeps of each block for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// Every activation.
    #[default]
    Activations,
    /// The block's input: its forward is run again (Chen et al. 2016, arXiv 1604.06174). Less memory for more time.
    Inputs,
}

/// What a training forward leaves for the backward pass.
pub struct Trace {
    tokens: Vec<u32>,
    layout: Layout,
    asked: Asked,
    precision: Precision,
    /// What each block kept.
    blocks: Vec<Kept>,
    /// Input of the final norm, `[N, D]`.
    last: Tensor,
    /// Final hidden states at the target rows, `[N, D]`.
    pub hidden: Tensor,
}

/// What is kept of one block.
enum Kept {
    Activations(Box<Saved>),
    Input(Tensor),
}

impl Decoder {
    /// Builds the decoder on `device` around `weights`, which must be exactly the tensors of `config`, f32. All learn or
    /// none.
    pub fn new(config: ModelConfig, weights: Weights, trainable: bool, device: &Device) -> Result<Self> {
        let there = weights.into_iter().map(|(name, tensor)| Ok((name, moved(&tensor, device)?)));
        Self::from_parameters(config, Parameters::new(there.collect::<Result<_>>()?, trainable)?)
    }

    /// Builds the decoder around parameters that are exactly the tensors of `config`.
    pub fn from_parameters(config: ModelConfig, parameters: Parameters) -> Result<Self> {
        let block = |i| Block::new(&config, &parameters, i);
        let blocks = (0..config.layers).map(block).collect::<Result<_>>()?;
        let norm = Parameter::rms_norm(parameters.get(FINAL_NORM)?, config.rms_norm_eps)?;
        let inverse_frequencies = config.rope_scaling.inverse_frequencies(config.rope_theta, config.head_dim);
        let device = norm.weight.device().clone();
        Ok(Self { config, parameters, blocks, norm, inverse_frequencies, device })
    }

    /// Where its weights are, and its hidden states.
    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The output projection, `[V, D]`: the embedding itself when tied.
    pub fn head(&self) -> Result<&Parameter> {
        self.parameters.get(if self.config.tied_head { EMBEDDING } else { HEAD })
    }

    /// Hidden states through the head, `[n, D]` to `[n, V]`: all at once, so for few rows.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.head()?.weight.logits(hidden)?)
    }

    fn embedding(&self) -> Result<&Parameter> {
        self.parameters.get(EMBEDDING)
    }

    /// Final hidden states at the batch's target rows, `[N, D]`, in f32 whatever the student trains in: what a saved folder
    /// will say. The last block runs its queries and its MLP for these rows alone.
    pub fn hidden(&self, batch: &Batch) -> Result<Tensor> {
        let (layout, asked) = self.layout(batch)?;
        let mut x = self.embed(&batch.tokens)?;
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, &layout, self.asked_of(i, &asked), Precision::F32)?.0;
        }
        Ok(self.norm.forward(&x)?)
    }

    /// [`Self::hidden`] for training; the products of the blocks, here and in the backward pass, round to `precision`.
    pub fn trace(&self, batch: &Batch, keep: Keep, precision: Precision) -> Result<Trace> {
        let (layout, asked) = self.layout(batch)?;
        let mut blocks = Vec::with_capacity(self.blocks.len());
        let mut x = self.embed(&batch.tokens)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let (y, saved) = block.forward(&x, &layout, self.asked_of(i, &asked), precision)?;
            blocks.push(match keep {
                Keep::Activations => Kept::Activations(Box::new(saved)),
                Keep::Inputs => Kept::Input(x),
            });
            x = y;
        }
        let hidden = self.norm.forward(&x)?;
        Ok(Trace { tokens: batch.tokens.clone(), layout, asked, precision, blocks, last: x, hidden })
    }

    /// Adds the gradient of every parameter but the head's own share, given ∂loss/∂hidden, `[N, D]`. Each block's
    /// activations are freed as soon as they have been used.
    pub fn backward(&self, trace: Trace, d_hidden: Tensor) -> Result<()> {
        let Trace { tokens, layout, asked, precision, blocks, last, .. } = trace;
        let mut gradient = self.norm.backward(&last, &d_hidden, None)?;
        drop((last, d_hidden));
        for (i, (block, kept)) in self.blocks.iter().zip(blocks).enumerate().rev() {
            let asked = self.asked_of(i, &asked);
            let saved = match kept {
                Kept::Activations(saved) => *saved,
                Kept::Input(x) => block.forward(&x, &layout, asked, precision)?.1,
            };
            gradient = block.backward(saved, &layout, asked, gradient, precision)?;
        }
        if let Some(slot) = &self.embedding()?.grad {
            add_rows(slot.tensor(), &tokens, &gradient)?;
        }
        Ok(())
    }

    /// Only the last block is asked for the target rows alone: the others feed keys and values.
    fn asked_of<'a>(&self, block: usize, asked: &'a Asked) -> Option<&'a Asked> {
        (block + 1 == self.blocks.len()).then_some(asked)
    }

    /// Feeds the next tokens of one row and returns the final hidden state of the last, `[1, D]`.
    pub fn next_hidden(&self, tokens: &[u32], cache: &mut KvCache) -> Result<Tensor> {
        if tokens.is_empty() {
            return Err(Error::input("there is no token to continue from"));
        }
        cache.layers.resize_with(self.blocks.len(), LayerCache::default);
        let start = cache.tokens;
        let end = start + tokens.len();
        let positions: Vec<u32> = (start as u32..end as u32).collect();
        let layout = Layout {
            spans: Spans::new(vec![Span { q: 0..tokens.len(), k: 0..end }], &self.device)?,
            rope: self.rope(&positions)?,
        };
        let mut x = self.embed(tokens)?;
        for (block, cache) in self.blocks.iter().zip(&mut cache.layers) {
            x = block.forward_cached(&x, &layout, cache)?;
        }
        cache.tokens = end;
        Ok(self.norm.forward(&x.narrow(0, tokens.len() - 1, 1)?)?)
    }

    /// Where all tokens attend, and where the targets do.
    pub(super) fn layout(&self, batch: &Batch) -> Result<(Layout, Asked)> {
        let spans = batch.cu_lens.windows(2).map(|w| Span { q: w[0]..w[1], k: w[0]..w[1] }).collect();
        let positions: Vec<u32> = batch.target_rows.iter().map(|&row| batch.positions[row as usize]).collect();
        let asked = Asked {
            rows: batch.target_rows.clone(),
            layout: Layout { spans: Spans::new(spans_of_targets(batch), &self.device)?, rope: self.rope(&positions)? },
        };
        Ok((Layout { spans: Spans::new(spans, &self.device)?, rope: self.rope(&batch.positions)? }, asked))
    }

    fn rope(&self, positions: &[u32]) -> Result<Rope> {
        Ok(Rope::new(positions, &self.inverse_frequencies, &self.device)?)
    }

    pub(super) fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= self.config.vocab_size) {
            return Err(Error::input(format!(
                "token id {id} lies beyond the model's vocabulary of {}; its tokenizer belongs to another model",
                self.config.vocab_size
            )));
        }
        Ok(self.embedding()?.weight.gather(tokens)?)
    }
}

/// One span for each run of neighbouring targets: its queries, numbered by target, and the row's keys up to its end.
fn spans_of_targets(batch: &Batch) -> Vec<Span> {
    let mut spans: Vec<Span> = vec![];
    for (row, targets) in batch.cu_lens.windows(2).zip(batch.cu_targets.windows(2)) {
        let first = spans.len();
        for target in targets[0]..targets[1] {
            let at = batch.target_rows[target] as usize;
            match spans[first..].last_mut() {
                Some(span) if span.k.end == at => (span.q.end, span.k.end) = (target + 1, at + 1),
                _ => spans.push(Span { q: target..target + 1, k: row[0]..at + 1 }),
            }
        }
    }
    spans
}
