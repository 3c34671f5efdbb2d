//! Text from a model, a token at a time, for any number of prompts side by side.

use candle_core::Device;
use rayon::prelude::*;

use super::decoder::Decoder;
use super::kv_cache::KvCache;
use super::sample::{Sampler, Sampling};
use crate::error::{Error, Result};

/// What is to be continued.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// At least one.
    pub tokens: Vec<u32>,
    /// At most this many tokens are added, the stop token included; at least 1.
    pub max_tokens: usize,
    /// Of this row's draws.
    pub seed: [u8; 32],
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its turn with this token.
    Stop(u32),
    /// `max_tokens` were generated.
    Length,
    /// The model's context is full.
    Context,
}

/// A seed of 32 bytes from a number.
pub fn seed_of(number: u64) -> [u8; 32] {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    seed
}

/// Tokens that go through the model at once while prompts are read.
const PREFILL_TOKENS: usize = 4096;

/// Continues every prompt until a token of `stop`, which is not handed on. Each new token goes to `on_token` with the number
/// of its prompt; an error of it ends the generation.
///
/// A row's tokens are those it would get alone: its products add in an order that does not depend on other rows (exactly so
/// where our own product runs), and its draws are its own.
///
/// Input errors: a prompt that is empty or fills the context.
pub fn generate(
    model: &Decoder,
    prompts: &[Prompt],
    stop: &[u32],
    sampling: Sampling,
    mut on_token: impl FnMut(usize, u32) -> Result<()>,
) -> Result<Vec<Finish>> {
    let context = model.config().max_position_embeddings;
    if let Some(prompt) = prompts.iter().find(|p| p.tokens.is_empty() || p.tokens.len() >= context) {
        let tokens = prompt.tokens.len();
        return Err(Error::input(format!("the prompt has {tokens} tokens; the model's context holds {context}")));
    }
    let mut cache = KvCache::new(prompts.len());
    let mut samplers: Vec<Sampler> = prompts.iter().map(|p| Sampler::new(sampling, p.seed)).collect();
    let mut finishes = vec![Finish::Length; prompts.len()];
    let mut left: Vec<usize> = prompts.iter().map(|p| p.max_tokens).collect();
    // The rows that go on, each with the token it was given last.
    let mut active: Vec<(usize, u32)> = vec![];
    let longest = prompts.iter().map(|p| (p.tokens.len() + p.max_tokens).min(context)).max().unwrap_or(0);
    let mut from = 0;
    while from < prompts.len() {
        let mut tokens = 0;
        let fits = |prompt: &&Prompt| {
            tokens += prompt.tokens.len();
            tokens <= PREFILL_TOKENS
        };
        let n = prompts[from..].iter().take_while(fits).count().max(1);
        let rows: Vec<(usize, &[u32])> = (from..from + n).map(|r| (r, &prompts[r].tokens[..])).collect();
        let picked = pick(model, &rows, &mut cache, longest, &mut samplers)?;
        active.extend((from..from + n).zip(picked));
        from += n;
    }
    loop {
        let mut going = vec![];
        for &(r, token) in &active {
            if stop.contains(&token) {
                finishes[r] = Finish::Stop(token);
                continue;
            }
            on_token(r, token)?;
            left[r] -= 1;
            match (left[r], cache.len(r) >= context) {
                (0, _) => finishes[r] = Finish::Length,
                (_, true) => finishes[r] = Finish::Context,
                _ => going.push((r, token)),
            }
        }
        if going.is_empty() {
            return Ok(finishes);
        }
        let rows: Vec<(usize, &[u32])> = going.iter().map(|(r, token)| (*r, std::slice::from_ref(token))).collect();
        let picked = pick(model, &rows, &mut cache, longest, &mut samplers)?;
        active = going.iter().map(|&(r, _)| r).zip(picked).collect();
    }
}

/// Feeds each row its tokens and draws its next.
fn pick(
    model: &Decoder,
    rows: &[(usize, &[u32])],
    cache: &mut KvCache,
    longest: usize,
    samplers: &mut [Sampler],
) -> Result<Vec<u32>> {
    let hidden = model.advance(rows, cache, longest)?;
    // Drawn on the host: a row is soon there, and a draw is a scan.
    let logits: Vec<f32> = model.logits(&hidden)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
    let vocab = logits.len() / rows.len();
    // Rows are in ascending order.
    let asks = |r: usize| rows.binary_search_by_key(&r, |(r, _)| *r).is_ok();
    let asked: Vec<&mut Sampler> =
        samplers.iter_mut().enumerate().filter(|(r, _)| asks(*r)).map(|(_, sampler)| sampler).collect();
    asked.into_par_iter().zip(logits.par_chunks_exact(vocab)).map(|(sampler, logits)| sampler.pick(logits)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Precision;
    use crate::model::{ModelConfig, Weights};
    use candle_core::Tensor;
    use rand::{Rng, SeedableRng};

    fn model() -> Decoder {
        let config = r#"{"model_type": "mistral", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 211, "rope_theta": 10000,
            "sliding_window": 12, "max_position_embeddings": 90}"#;
        let config = ModelConfig::from_json(config).unwrap();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        let tensor = |shape: Vec<usize>, rng: &mut rand_chacha::ChaCha8Rng| {
            let n = shape.iter().product();
            let values: Vec<f32> = (0..n).map(|_| rng.random_range(-0.5f32..0.5)).collect();
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        };
        let weights: Weights =
            config.tensors().into_iter().map(|spec| (spec.name, tensor(spec.shape, &mut rng))).collect();
        Decoder::frozen(config, weights, Precision::F32, &Device::Cpu).unwrap()
    }

    fn prompts() -> Vec<Prompt> {
        let lengths = [(3, 20), (17, 40), (1, 1), (40, 100), (9, 33)];
        let prompt = |(i, (length, max_tokens)): (usize, (usize, usize))| Prompt {
            tokens: (0..length).map(|t| ((t * 31 + i * 7) % 211) as u32).collect(),
            max_tokens,
            seed: seed_of(i as u64),
        };
        lengths.into_iter().enumerate().map(prompt).collect()
    }

    fn completions(prompts: &[Prompt], sampling: Sampling) -> (Vec<Vec<u32>>, Vec<Finish>) {
        let mut tokens = vec![vec![]; prompts.len()];
        let keep = |r: usize, token| {
            tokens[r].push(token);
            Ok(())
        };
        let finishes = generate(&model(), prompts, &[7, 11, 50], sampling, keep).unwrap();
        (tokens, finishes)
    }

    #[test]
    fn rows_generated_together_are_those_generated_alone_greedy_and_drawn() {
        for sampling in [Sampling::GREEDY, Sampling { temperature: 1.0, top_p: 0.9 }] {
            let (together, finishes) = completions(&prompts(), sampling);
            for (r, prompt) in prompts().into_iter().enumerate() {
                let (alone, finish) = completions(&[prompt], sampling);
                assert_eq!((&alone[0], finish[0]), (&together[r], finishes[r]), "row {r}, {sampling:?}");
            }
        }
    }

    #[test]
    fn the_cache_gives_what_the_whole_row_would_greedily() {
        let (model, prompts) = (model(), prompts());
        let (completions, _) = completions(&prompts, Sampling::GREEDY);
        for (prompt, completion) in prompts.iter().zip(completions) {
            let mut row = prompt.tokens.clone();
            for token in completion {
                let hidden = model.advance(&[(0, &row)], &mut KvCache::new(1), 0).unwrap();
                let logits: Vec<f32> = model.logits(&hidden).unwrap().squeeze(0).unwrap().to_vec1().unwrap();
                let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
                assert_eq!(best as u32, token, "after {} tokens", row.len());
                row.push(token);
            }
        }
    }

    #[test]
    fn every_row_ends_at_its_limit_the_context_or_a_stop_token() {
        let (tokens, finishes) = completions(&prompts(), Sampling { temperature: 2.0, top_p: 1.0 });
        for ((prompt, tokens), finish) in prompts().iter().zip(tokens).zip(finishes) {
            match finish {
                Finish::Stop(token) => assert!([7, 11, 50].contains(&token) && tokens.len() < prompt.max_tokens),
                Finish::Length => assert_eq!(tokens.len(), prompt.max_tokens),
                // The last token drawn needs no place of its own.
                Finish::Context => assert_eq!(prompt.tokens.len() + tokens.len(), 90 + 1),
            }
        }
    }

    #[test]
    fn prompts_that_do_not_fit_are_refused() {
        for tokens in [vec![], vec![1; 90]] {
            let prompt = Prompt { tokens, max_tokens: 1, seed: seed_of(0) };
            assert!(generate(&model(), &[prompt], &[], Sampling::GREEDY, |_, _| Ok(())).is_err());
        }
    }
}
