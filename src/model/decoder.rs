//! The one decoder behind teacher and student.
//!
//! A forward pass for training keeps each block's activations; the backward pass walks the blocks from the last to the
//! first and frees them as it goes.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::block::{Asked, Block, Layout, Saved};
use super::config::ModelConfig;
use super::kv_cache::KvCache;
use super::norm::Norm;
use super::parameter::{Parameter, Parameters};
use super::rope::{Ropes, Rotations};
use super::tensors::{EMBEDDING, FINAL_NORM, HEAD, POSITIONS};
use super::weights::Weights;
use crate::corpus::Batch;
use crate::device::moved;
use crate::error::{Error, Result};
use crate::kernels::{Precision, SoftCap, Span, Spans, add_rows, gather};

/// A causal language model of any family.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    parameters: Parameters,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: Norm,
    rotations: Rotations,
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
    positions: Vec<u32>,
    layout: Layout,
    asked: Asked,
    precision: Precision,
    /// What each block kept.
    blocks: Vec<Kept>,
    /// Input of the final norm, `[N, D]`.
    last: Tensor,
    /// Final hidden states at the target rows, `[N, D]`.
    pub hidden: Tensor,
    /// The residual stream behind each block that was asked for, at the target rows, `[N, D]`.
    pub layers: Vec<Tensor>,
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
        let rotations = Rotations::new(&config);
        let block = |i| Block::new(&config, &parameters, i, rotations.of_layer(i));
        let blocks = (0..config.layers).map(block).collect::<Result<_>>()?;
        let norm = Norm::new(&config, &parameters, FINAL_NORM)?;
        let device = norm.device().clone();
        if let Some(op) = config.without_gpu_kernel().filter(|_| device.is_cuda()) {
            return Err(Error::input(format!(
                "a {} runs on the CPU alone: its {op} has no kernel on GPUs; choose the device \"cpu\" for it",
                config.family.name()
            )));
        }
        Ok(Self { config, parameters, blocks, norm, rotations, device })
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

    /// What bounds its logits.
    pub fn logit_cap(&self) -> Option<SoftCap> {
        self.config.logit_cap.map(|c| SoftCap(c as f32))
    }

    /// Hidden states through the head, `[n, D]` to `[n, V]`: all at once, so for few rows.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = self.head()?.weight.logits(hidden)?;
        if let Some(cap) = self.logit_cap() {
            cap.forward_tensor(&logits)?;
        }
        Ok(logits)
    }

    fn embedding(&self) -> Result<&Parameter> {
        self.parameters.get(EMBEDDING)
    }

    /// The embeddings of positions, `[positions, D]`, where they are learned.
    fn positions(&self) -> Result<Option<&Parameter>> {
        self.config.learned_positions.then(|| self.parameters.get(POSITIONS)).transpose()
    }

    /// Final hidden states at the batch's target rows, `[N, D]`, in f32 whatever the student trains in: what a saved folder
    /// will say. The last block runs its queries and its MLP for these rows alone.
    pub fn hidden(&self, batch: &Batch) -> Result<Tensor> {
        Ok(self.hidden_and_layers(batch, &[])?.0)
    }

    /// [`Self::hidden`], and the residual stream behind each block of `layers` at the target rows, `[N, D]`.
    pub fn hidden_and_layers(&self, batch: &Batch, layers: &[usize]) -> Result<(Tensor, Vec<Tensor>)> {
        let (layout, asked) = self.layout(batch)?;
        let mut x = self.embed(&batch.tokens, &batch.positions)?;
        let mut behind = BTreeMap::new();
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, &layout, self.asked_of(i, &asked), Precision::F32)?.0;
            if layers.contains(&i) {
                behind.insert(i, self.at_targets(i, &x, &asked)?);
            }
        }
        Ok((self.norm.forward(&x)?, in_order(layers, behind)?))
    }

    /// The output of block `i` at the target rows: the last block has no other.
    fn at_targets(&self, i: usize, x: &Tensor, asked: &Asked) -> Result<Tensor> {
        Ok(match self.asked_of(i, asked) {
            Some(_) => x.clone(),
            None => gather(x, &asked.rows)?,
        })
    }

    /// [`Self::hidden_and_layers`] for training; the products of the blocks, here and in the backward pass, round to
    /// `precision`.
    pub fn trace(&self, batch: &Batch, keep: Keep, precision: Precision, layers: &[usize]) -> Result<Trace> {
        let (layout, asked) = self.layout(batch)?;
        let mut blocks = Vec::with_capacity(self.blocks.len());
        let mut behind = BTreeMap::new();
        let mut x = self.embed(&batch.tokens, &batch.positions)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let (y, saved) = block.forward(&x, &layout, self.asked_of(i, &asked), precision)?;
            blocks.push(match keep {
                Keep::Activations => Kept::Activations(Box::new(saved)),
                Keep::Inputs => Kept::Input(x),
            });
            x = y;
            if layers.contains(&i) {
                behind.insert(i, self.at_targets(i, &x, &asked)?);
            }
        }
        let hidden = self.norm.forward(&x)?;
        let layers = in_order(layers, behind)?;
        let (tokens, positions) = (batch.tokens.clone(), batch.positions.clone());
        Ok(Trace { tokens, positions, layout, asked, precision, blocks, last: x, hidden, layers })
    }

    /// Adds the gradient of every parameter but the head's own share, given ∂loss/∂hidden, `[N, D]`, and what the loss asks of
    /// the outputs of blocks besides: the number of each and its gradient at the target rows, `[N, D]`. Each block's
    /// activations are freed as soon as they have been used.
    pub fn backward(&self, trace: Trace, d_hidden: Tensor, d_layers: &[(usize, Tensor)]) -> Result<()> {
        let Trace { tokens, positions, layout, asked, precision, blocks, last, .. } = trace;
        let mut gradient = self.norm.backward(&last, &d_hidden, None)?;
        drop((last, d_hidden));
        for (i, (block, kept)) in self.blocks.iter().zip(blocks).enumerate().rev() {
            for (_, d_layer) in d_layers.iter().filter(|(layer, _)| *layer == i) {
                match self.asked_of(i, &asked) {
                    Some(_) => add_rows(&gradient, &(0..d_layer.dim(0)? as u32).collect::<Vec<_>>(), d_layer)?,
                    None => add_rows(&gradient, &asked.rows, d_layer)?,
                }
            }
            let asked = self.asked_of(i, &asked);
            let saved = match kept {
                Kept::Activations(saved) => *saved,
                Kept::Input(x) => block.forward(&x, &layout, asked, precision)?.1,
            };
            gradient = block.backward(saved, &layout, asked, gradient, precision)?;
        }
        if let Some(slot) = self.positions()?.and_then(|p| p.grad.as_ref()) {
            add_rows(slot.tensor(), &positions, &gradient)?;
        }
        if let Some(scale) = self.config.embedding_scale {
            gradient = gradient.affine(scale, 0.0)?;
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

    /// Feeds rows their next tokens and returns the final hidden state of each row's last, `[rows, D]`, in f32. Each of `rows`
    /// is a row's number in the cache and at least one token. `longest`: tokens a row may come to have; more is allowed.
    pub fn advance(&self, rows: &[(usize, &[u32])], cache: &mut KvCache, longest: usize) -> Result<Tensor> {
        if rows.iter().any(|(_, tokens)| tokens.is_empty()) {
            return Err(Error::input("there is no token to continue from"));
        }
        let needed = rows.iter().map(|(r, tokens)| cache.len(*r) + tokens.len()).max().unwrap_or(0);
        // What a row may need is taken at once as long as it is not out of proportion.
        let room = if needed <= cache.room() { needed } else { longest.min(4 * needed).max(needed) };
        cache.reserve(room, self.blocks.len(), self.config.kv_heads * self.config.head_dim, &self.device)?;
        let (mut spans, mut slots, mut positions, mut last) = (vec![], vec![], vec![], vec![]);
        for (r, tokens) in rows {
            let (start, end) = (cache.len(*r), cache.len(*r) + tokens.len());
            let first = positions.len();
            positions.extend(start as u32..end as u32);
            slots.extend((start..end).map(|position| cache.slot(*r, position) as u32));
            spans.push(Span { q: first..positions.len(), k: cache.slot(*r, 0)..cache.slot(*r, end) });
            last.push(positions.len() as u32 - 1);
        }
        let layout = Layout { spans: Spans::new(spans, &self.device)?, rope: self.rope(&positions)? };
        let tokens: Vec<u32> = rows.iter().flat_map(|(_, tokens)| tokens.iter().copied()).collect();
        let mut x = self.embed(&tokens, &positions)?;
        for (block, layer) in self.blocks.iter().zip(&cache.layers) {
            x = block.forward_cached(&x, &layout, layer, &slots)?;
        }
        rows.iter().for_each(|(r, tokens)| cache.lengths[*r] += tokens.len());
        self.norm.forward(&gather(&x, &last)?)
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

    fn rope(&self, positions: &[u32]) -> Result<Ropes> {
        self.rotations.at(positions, &self.device)
    }

    /// `[T, D]`; each token with its position in its row, where positions are learned.
    pub(super) fn embed(&self, tokens: &[u32], positions: &[u32]) -> Result<Tensor> {
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= self.config.vocab_size) {
            return Err(Error::input(format!(
                "token id {id} lies beyond the model's vocabulary of {}; its tokenizer belongs to another model",
                self.config.vocab_size
            )));
        }
        let x = self.embedding()?.weight.gather(tokens)?;
        if let Some(scale) = self.config.embedding_scale {
            return Ok(x.affine(scale, 0.0)?);
        }
        let Some(table) = self.positions()? else { return Ok(x) };
        let most = self.config.max_position_embeddings;
        match positions.iter().max() {
            Some(&last) if last as usize >= most => Err(Error::input(format!(
                "a row of at least {} tokens was given to a {} of {most} positions; there is no embedding for more: lower \
                 data.max_length, or shorten the prompt",
                last + 1,
                self.config.family.name()
            ))),
            _ => Ok((x + table.weight.gather(positions)?)?),
        }
    }
}

/// What was kept of `layers`, in their order.
fn in_order(layers: &[usize], kept: BTreeMap<usize, Tensor>) -> Result<Vec<Tensor>> {
    let missing = |i: &usize| Error::run(format!("there is no layer {i} whose output could be compared"));
    layers.iter().map(|i| kept.get(i).cloned().ok_or_else(|| missing(i))).collect()
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
