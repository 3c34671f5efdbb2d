//! One pre-norm decoder block: attention and a gated MLP, each added to the residual stream.

use std::sync::Arc;

use candle_core::Tensor;

use super::config::ModelConfig;
use super::kv_cache::LayerCache;
use super::parameter::{Parameter, Parameters};
use super::tensors::block_tensor;
use crate::error::Result;
use crate::kernels::{Attention, AttentionShape, Linear, RmsNorm, Rope, Span, SwiGlu};

/// Tokens of one forward pass: where the rows lie and the angles of their positions.
pub(super) struct Layout {
    pub spans: Arc<Vec<Span>>,
    pub rope: Rope,
}

#[derive(Debug)]
pub(super) struct Block {
    attention_norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    shape: AttentionShape,
    o: Linear,
    mlp_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Block {
    pub fn new(config: &ModelConfig, parameters: &Parameters, i: usize) -> Result<Self> {
        let get = |name: &str| parameters.get(&block_tensor(i, name));
        let linear = |name: &str, bias: bool| -> Result<Linear> {
            let bias = bias.then(|| get(&format!("{name}.bias"))).transpose()?;
            Parameter::linear(get(&format!("{name}.weight"))?, bias)
        };
        let norm = |name: &str| -> Result<RmsNorm> { Parameter::rms_norm(get(name)?, config.rms_norm_eps) };
        Ok(Self {
            attention_norm: norm("input_layernorm.weight")?,
            q: linear("self_attn.q_proj", config.qkv_bias)?,
            k: linear("self_attn.k_proj", config.qkv_bias)?,
            v: linear("self_attn.v_proj", config.qkv_bias)?,
            qk_norm: match config.qk_norm {
                true => Some((norm("self_attn.q_norm.weight")?, norm("self_attn.k_norm.weight")?)),
                false => None,
            },
            shape: AttentionShape {
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
                window: config.windows[i],
            },
            o: linear("self_attn.o_proj", config.output_bias)?,
            mlp_norm: norm("post_attention_layernorm.weight")?,
            gate: linear("mlp.gate_proj", config.mlp_bias)?,
            up: linear("mlp.up_proj", config.mlp_bias)?,
            down: linear("mlp.down_proj", config.mlp_bias)?,
        })
    }

    /// `[T, D]` to `[T, D]`. With a cache the keys and values before these tokens come from it, and theirs are added.
    pub fn forward(&self, x: &Tensor, layout: &Layout, cache: Option<&mut LayerCache>) -> Result<Tensor> {
        let h = self.attention_norm.forward(x)?;
        let (mut q, mut k, v) = (self.q.forward(&h)?, self.k.forward(&h)?, self.v.forward(&h)?);
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        let (q, k) = (layout.rope.forward(&q)?, layout.rope.forward(&k)?);
        let attention = Attention::new(self.shape, layout.spans.clone());
        let mixed = match cache {
            Some(cache) => {
                let (k, v) = cache.append(&k, &v)?;
                attention.forward(&q, &k, &v)?
            }
            None => attention.forward(&q, &k, &v)?,
        };
        let x = (x + self.o.forward(&mixed)?)?;
        let h = self.mlp_norm.forward(&x)?;
        let h = SwiGlu.forward(&self.gate.forward(&h)?, &self.up.forward(&h)?)?;
        Ok((x + self.down.forward(&h)?)?)
    }
}
