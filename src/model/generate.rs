//! Text from a model, a token at a time, with its KV cache.

use candle_core::Device;
use candle_transformers::generation::{LogitsProcessor, Sampling};

use super::decoder::Decoder;
use super::kv_cache::KvCache;
use crate::error::{Error, Result};

/// How a continuation is drawn.
#[derive(Debug, Clone, Copy)]
pub struct GenerateOptions {
    pub max_tokens: usize,
    /// 0: the likeliest token each time.
    pub temperature: f64,
    pub seed: u64,
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its turn.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// The model's context is full.
    Context,
}

/// Continues `prompt` until a token of `stop` (which is not returned). Each new token is handed to `on_token`.
pub fn generate(
    model: &Decoder,
    prompt: &[u32],
    stop: &[u32],
    options: &GenerateOptions,
    mut on_token: impl FnMut(u32) -> Result<()>,
) -> Result<Finish> {
    let context = model.config().max_position_embeddings;
    if prompt.len() >= context {
        return Err(Error::input(format!(
            "the prompt has {} tokens; the model's context holds {context}",
            prompt.len()
        )));
    }
    let sampling = match options.temperature {
        t if t > 0.0 => Sampling::All { temperature: t },
        _ => Sampling::ArgMax,
    };
    let mut sampler = LogitsProcessor::from_sampling(options.seed, sampling);
    let mut cache = KvCache::default();
    let mut hidden = model.next_hidden(prompt, &mut cache)?;
    for left in (0..options.max_tokens).rev() {
        // Drawn on the host: a GPU has no softmax of candle's in this build, and one row is soon there.
        let logits = model.logits(&hidden)?.squeeze(0)?.to_device(&Device::Cpu)?;
        let token = sampler.sample(&logits)?;
        if stop.contains(&token) {
            return Ok(Finish::Stop);
        }
        on_token(token)?;
        if left == 0 {
            break;
        }
        if cache.len() >= context {
            return Ok(Finish::Context);
        }
        hidden = model.next_hidden(&[token], &mut cache)?;
    }
    Ok(Finish::Length)
}
