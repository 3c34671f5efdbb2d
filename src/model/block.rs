//! One pre-norm decoder block: attention and a gated MLP, each added to the residual stream.
//!
//! The forward pass of a training step keeps what the backward pass cannot cheaply compute again: [`Saved`].

use candle_core::Tensor;

use super::config::ModelConfig;
use super::kv_cache::LayerCache;
use super::parameter::{Parameter, Parameters};
use super::tensors::block_tensor;
use crate::error::Result;
use crate::kernels::{
    AttentionShape, Linear, Precision, RmsNorm, Rope, Spans, add_rows, gather, swiglu, swiglu_backward,
};

/// Tokens of one forward pass: where the rows lie, and the angles of their positions.
pub(super) struct Layout {
    pub spans: Spans,
    pub rope: Rope,
}

/// The part of a batch whose outputs anybody reads: which rows, where their queries attend, and their angles.
pub(super) struct Asked {
    pub rows: Vec<u32>,
    pub layout: Layout,
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

/// What the backward pass needs of a block's forward: `[T, …]` each, or `[N, …]` where only N rows were asked for.
pub(super) struct Saved {
    /// The block's input.
    x: Tensor,
    /// Queries and keys before norm and rotation.
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mixed: Tensor,
    /// log Σ exp of each query's scores.
    lse: Tensor,
    /// The residual stream between attention and MLP.
    middle: Tensor,
    gate: Tensor,
    up: Tensor,
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

    /// `[T, D]` to `[T, D]`, or to `[N, D]` with the N rows that are `asked` for: keys and values are those of all rows,
    /// queries and MLP run for these alone.
    ///
    /// Products round to `precision`; norms, attention and the residual stream are f32.
    pub fn forward(
        &self,
        x: &Tensor,
        layout: &Layout,
        asked: Option<&Asked>,
        precision: Precision,
    ) -> Result<(Tensor, Saved)> {
        let h = self.attention_norm.forward(x)?;
        let (k, v) = (self.k.forward(&h, precision)?, self.v.forward(&h, precision)?);
        let q = self.q.forward(&select(&h, asked)?, precision)?;
        drop(h);
        let queries = asked.map_or(layout, |asked| &asked.layout);
        let (rotated_q, rotated_k) = self.rotated(&q, &k, &queries.rope, &layout.rope)?;
        let (mixed, lse) = self.shape.forward(&queries.spans, &rotated_q, &rotated_k, &v)?;
        let middle = self.o.forward_onto(&mixed, &select(x, asked)?, precision)?;
        let (gate, up) = self.gate_and_up(&middle, precision)?;
        let y = self.down.forward_onto(&swiglu(&gate, &up)?, &middle, precision)?;
        Ok((y, Saved { x: x.clone(), q, k, v, mixed, lse, middle, gate, up }))
    }

    /// The next tokens of rows in f32, `[T, D]` to `[T, D]`: keys and values before them come from the cache, and theirs are
    /// written to `slots`.
    pub fn forward_cached(&self, x: &Tensor, layout: &Layout, cache: &LayerCache, slots: &[u32]) -> Result<Tensor> {
        let precision = Precision::F32;
        let h = self.attention_norm.forward(x)?;
        let (k, v) = (self.k.forward(&h, precision)?, self.v.forward(&h, precision)?);
        let q = self.q.forward(&h, precision)?;
        let (q, k) = self.rotated(&q, &k, &layout.rope, &layout.rope)?;
        let (k, v) = cache.write(slots, &k, &v)?;
        let (mixed, _) = self.shape.forward(&layout.spans, &q, k, v)?;
        let middle = self.o.forward_onto(&mixed, x, precision)?;
        let (gate, up) = self.gate_and_up(&middle, precision)?;
        Ok(self.down.forward_onto(&swiglu(&gate, &up)?, &middle, precision)?)
    }

    /// Adds the parameters' gradients to their slots and returns ∂x, `[T, D]`, given ∂y of [`Self::forward`].
    pub fn backward(
        &self,
        saved: Saved,
        layout: &Layout,
        asked: Option<&Asked>,
        dy: Tensor,
        precision: Precision,
    ) -> Result<Tensor> {
        let Saved { x, q, k, v, mixed, lse, middle, gate, up } = saved;
        // MLP
        let d_gated = self.down.backward(&swiglu(&gate, &up)?, &dy, None, precision)?;
        let (d_gate, d_up) = swiglu_backward(&gate, &up, &d_gated)?;
        drop((d_gated, gate, up));
        let h = self.mlp_norm.forward(&middle)?;
        let d_h = self.gate.backward(&h, &d_gate, None, precision)?;
        let d_h = self.up.backward(&h, &d_up, Some(d_h), precision)?;
        drop((h, d_gate, d_up));
        let d_middle = self.mlp_norm.backward(&middle, &d_h, Some(&dy))?;
        drop((middle, d_h, dy));
        // Attention
        let d_mixed = self.o.backward(&mixed, &d_middle, None, precision)?;
        let queries = asked.map_or(layout, |asked| &asked.layout);
        let (rotated_q, rotated_k) = self.rotated(&q, &k, &queries.rope, &layout.rope)?;
        let [d_q, d_k, d_v] =
            self.shape.backward(&queries.spans, (&rotated_q, &rotated_k, &v), (&mixed, &lse), &d_mixed)?;
        drop((rotated_q, rotated_k, v, mixed, d_mixed));
        let (mut d_q, mut d_k) = (queries.rope.backward(&d_q)?, layout.rope.backward(&d_k)?);
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            (d_q, d_k) = (q_norm.backward(&q, &d_q, None)?, k_norm.backward(&k, &d_k, None)?);
        }
        let h = self.attention_norm.forward(&x)?;
        let d_h = self.k.backward(&h, &d_k, None, precision)?;
        let d_h = self.v.backward(&h, &d_v, Some(d_h), precision)?;
        match asked {
            None => {
                let d_h = self.q.backward(&h, &d_q, Some(d_h), precision)?;
                Ok(self.attention_norm.backward(&x, &d_h, Some(&d_middle))?)
            }
            Some(Asked { rows, .. }) => {
                let d_asked = self.q.backward(&select(&h, asked)?, &d_q, None, precision)?;
                add_rows(&d_h, rows, &d_asked)?;
                let dx = self.attention_norm.backward(&x, &d_h, None)?;
                add_rows(&dx, rows, &d_middle)?;
                Ok(dx)
            }
        }
    }

    fn rotated(&self, q: &Tensor, k: &Tensor, q_rope: &Rope, k_rope: &Rope) -> Result<(Tensor, Tensor)> {
        Ok(match &self.qk_norm {
            Some((q_norm, k_norm)) => (q_rope.forward(&q_norm.forward(q)?)?, k_rope.forward(&k_norm.forward(k)?)?),
            None => (q_rope.forward(q)?, k_rope.forward(k)?),
        })
    }

    fn gate_and_up(&self, middle: &Tensor, precision: Precision) -> Result<(Tensor, Tensor)> {
        let h = self.mlp_norm.forward(middle)?;
        Ok((self.gate.forward(&h, precision)?, self.up.forward(&h, precision)?))
    }
}

/// The rows that are asked for, `[N, D]`; all of them without a question.
fn select(x: &Tensor, asked: Option<&Asked>) -> Result<Tensor> {
    Ok(match asked {
        Some(Asked { rows, .. }) => gather(x, rows)?,
        None => x.clone(),
    })
}
