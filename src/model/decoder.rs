//! The one decoder behind teacher and student.
//!
//! A forward pass for training keeps a graph per block, cut at the block's input; the backward pass walks the blocks
//! from the last to the first and drops each graph as it goes.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};

use super::block::{Block, Layout};
use super::config::ModelConfig;
use super::kv_cache::{KvCache, LayerCache};
use super::parameter::{Parameter, Parameters};
use super::tensors::{EMBEDDING, FINAL_NORM, HEAD};
use super::weights::Weights;
use crate::corpus::Batch;
use crate::error::{Error, Result};
use crate::kernels::{RmsNorm, Rope, Span, Weight, add_rows, backward_from, gather_rows, with_f32};

/// A Llama-like causal language model on the CPU in f32.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    parameters: Parameters,
    blocks: Vec<Block>,
    norm: RmsNorm,
    inverse_frequencies: Vec<f32>,
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
    /// Input of each block, and what came out of it if that was kept.
    blocks: Vec<(Var, Option<Tensor>)>,
    /// Input and output of the final norm.
    last: (Var, Tensor),
    /// Final hidden states at the target rows, `[N, D]`, without a graph.
    pub hidden: Tensor,
}

impl Decoder {
    /// Builds the decoder around `weights`, which must be exactly the tensors of `config`, f32. All learn or none.
    pub fn new(config: ModelConfig, weights: Weights, trainable: bool) -> Result<Self> {
        Self::from_parameters(config, Parameters::new(weights, trainable))
    }

    /// Builds the decoder around parameters that are exactly the tensors of `config`.
    pub fn from_parameters(config: ModelConfig, parameters: Parameters) -> Result<Self> {
        let blocks = (0..config.layers).map(|i| Block::new(&config, &parameters, i)).collect::<Result<_>>()?;
        let norm = Parameter::rms_norm(parameters.get(FINAL_NORM)?, config.rms_norm_eps)?;
        let inverse_frequencies = config.rope_scaling.inverse_frequencies(config.rope_theta, config.head_dim);
        Ok(Self { config, parameters, blocks, norm, inverse_frequencies })
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

    fn embedding(&self) -> Result<&Parameter> {
        self.parameters.get(EMBEDDING)
    }

    /// Final hidden states at the batch's target rows, `[N, D]`; no graph is built.
    pub fn hidden(&self, batch: &Batch) -> Result<Tensor> {
        let layout = self.layout(batch);
        let mut x = self.embed(&batch.tokens)?;
        for block in &self.blocks {
            x = block.forward(&x, &layout, None)?;
        }
        Ok(self.norm.forward(&self.select(&x, &batch.target_rows)?)?)
    }

    /// [`Self::hidden`] for training.
    pub fn trace(&self, batch: &Batch, keep: Keep) -> Result<Trace> {
        let layout = self.layout(batch);
        let mut blocks = Vec::with_capacity(self.blocks.len());
        let mut x = self.embed(&batch.tokens)?;
        for block in &self.blocks {
            let input = Var::from_tensor(&x)?;
            let (output, kept) = match keep {
                Keep::Activations => {
                    let output = block.forward(&input, &layout, None)?;
                    (output.detach(), Some(output))
                }
                Keep::Inputs => (block.forward(&input.as_detached_tensor(), &layout, None)?, None),
            };
            x = output;
            blocks.push((input, kept));
        }
        let input = Var::from_tensor(&x)?;
        let rows = Tensor::new(batch.target_rows.as_slice(), &Device::Cpu)?;
        let output = self.norm.forward(&input.index_select(&rows, 0)?)?;
        let hidden = output.detach();
        Ok(Trace { tokens: batch.tokens.clone(), layout, blocks, last: (input, output), hidden })
    }

    /// Adds the gradient of every parameter but the head's own share, given ∂loss/∂hidden, `[N, D]`.
    pub fn backward(&self, trace: Trace, d_hidden: Tensor) -> Result<()> {
        let through = |input: &Var, output: &Tensor, gradient: &Tensor| -> Result<Tensor> {
            let mut grads = backward_from(output, gradient)?;
            // Detached, or the graph that made it would live on.
            Ok(grads.remove(input).ok_or_else(|| Error::run("a block passed no gradient on"))?.detach())
        };
        let (input, output) = trace.last;
        let mut gradient = through(&input, &output, &d_hidden)?;
        drop((input, output));
        for (block, (input, output)) in self.blocks.iter().zip(trace.blocks).rev() {
            let output = match output {
                Some(output) => output,
                None => block.forward(&input, &trace.layout, None)?,
            };
            gradient = through(&input, &output, &gradient)?;
        }
        let embedding = self.embedding()?;
        if let Some(slot) = &embedding.grad {
            with_f32(&gradient.contiguous()?, |rows| {
                add_rows(&mut slot.lock(), self.config.hidden_size, &trace.tokens, rows)
            })?;
        }
        Ok(())
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
            spans: Arc::new(vec![Span { q: 0..tokens.len(), k: 0..end }]),
            rope: Rope::new(&positions, &self.inverse_frequencies),
        };
        let mut x = self.embed(tokens)?;
        for (block, cache) in self.blocks.iter().zip(&mut cache.layers) {
            x = block.forward(&x, &layout, Some(cache))?;
        }
        cache.tokens = end;
        Ok(self.norm.forward(&self.select(&x, &[tokens.len() as u32 - 1])?)?)
    }

    fn layout(&self, batch: &Batch) -> Layout {
        let spans = batch.cu_lens.windows(2).map(|w| Span { q: w[0]..w[1], k: w[0]..w[1] }).collect();
        Layout { spans: Arc::new(spans), rope: Rope::new(&batch.positions, &self.inverse_frequencies) }
    }

    fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= self.config.vocab_size) {
            return Err(Error::input(format!(
                "token id {id} lies beyond the model's vocabulary of {}; its tokenizer belongs to another model",
                self.config.vocab_size
            )));
        }
        let width = self.config.hidden_size;
        let rows = match &self.embedding()?.weight {
            Weight::Dense(table) => with_f32(table, |table| gather_rows(table, width, tokens))?,
            Weight::Packed(table) => table.rows(tokens),
        };
        Ok(Tensor::from_vec(rows, (tokens.len(), width), &Device::Cpu)?)
    }

    fn select(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let width = self.config.hidden_size;
        let selected = with_f32(x, |x| gather_rows(x, width, rows))?;
        Ok(Tensor::from_vec(selected, (rows.len(), width), &Device::Cpu)?)
    }
}
