//! One pre-norm decoder block: attention and an MLP, each added to the residual stream, in Gemma through another norm.
//!
//! The forward pass of a training step keeps what the backward pass cannot cheaply compute again: [`Saved`].

use candle_core::Tensor;

use super::config::ModelConfig;
use super::kv_cache::LayerCache;
use super::mlp::{Inner, Mlp};
use super::norm::Norm;
use super::parameter::{Parameter, Parameters};
use super::rope::Ropes;
use super::tensors::{BlockNorm, block_tensor};
use crate::error::{Error, Result};
use crate::kernels::{AttentionShape, Linear, Precision, SoftCap, Spans, add_rows, gather};

/// Tokens of one forward pass: where the rows lie, and the angles of their positions.
pub(super) struct Layout {
    pub spans: Spans,
    pub rope: Ropes,
}

/// The part of a batch whose outputs anybody reads: which rows, where their queries attend, and their angles.
pub(super) struct Asked {
    pub rows: Vec<u32>,
    pub layout: Layout,
}

#[derive(Debug)]
pub(super) struct Block {
    attention_norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    qk_norm: Option<(Norm, Norm)>,
    /// Which of [`Ropes`] turns queries and keys; None: nothing does.
    rotation: Option<usize>,
    shape: AttentionShape,
    o: Linear,
    /// Of what attention gives.
    attended_norm: Option<Norm>,
    mlp_norm: Norm,
    mlp: Mlp,
    /// Of what the MLP gives.
    fed_norm: Option<Norm>,
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
    /// What attention gave, where that is normed.
    attended: Option<Tensor>,
    /// The residual stream between attention and MLP.
    middle: Tensor,
    inner: Inner,
    /// What the MLP gave, where that is normed.
    fed: Option<Tensor>,
}

impl Block {
    /// Block `i`; `rotation` is which of [`Ropes`] it takes.
    pub fn new(config: &ModelConfig, parameters: &Parameters, i: usize, rotation: Option<usize>) -> Result<Self> {
        let get = |name: &str| parameters.get(&block_tensor(i, name));
        let linear = |name: &str, bias: bool| -> Result<Linear> {
            let bias = bias.then(|| get(&format!("{name}.bias"))).transpose()?;
            Parameter::linear(get(&format!("{name}.weight"))?, bias)
        };
        let norm = |name: &str| Norm::new(config, parameters, &block_tensor(i, name));
        let norm_at = |at: BlockNorm| config.norm_name(at).map(norm).transpose();
        let required = |at: BlockNorm| norm_at(at)?.ok_or_else(|| Error::run(format!("no norm {at:?}")));
        let cap = config.score_cap.map(|c| SoftCap(c as f32));
        Ok(Self {
            attention_norm: required(BlockNorm::BeforeAttention)?,
            q: linear("self_attn.q_proj", config.qkv_bias)?,
            k: linear("self_attn.k_proj", config.qkv_bias)?,
            v: linear("self_attn.v_proj", config.qkv_bias)?,
            qk_norm: match config.qk_norm {
                true => Some((norm("self_attn.q_norm")?, norm("self_attn.k_norm")?)),
                false => None,
            },
            rotation,
            shape: AttentionShape {
                scale: config.attention_scale as f32,
                cap,
                ..AttentionShape::new(config.heads, config.kv_heads, config.head_dim, config.windows[i])
            },
            o: linear("self_attn.o_proj", config.output_bias)?,
            attended_norm: norm_at(BlockNorm::AfterAttention)?,
            mlp_norm: required(BlockNorm::BeforeMlp)?,
            mlp: Mlp {
                kind: config.mlp,
                gate: match config.mlp.is_gated() {
                    true => Some(linear("mlp.gate_proj", config.mlp_bias)?),
                    false => None,
                },
                up: linear("mlp.up_proj", config.mlp_bias)?,
                down: linear("mlp.down_proj", config.mlp_bias)?,
            },
            fed_norm: norm_at(BlockNorm::AfterMlp)?,
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
        let (middle, attended) = onto(&self.o, &self.attended_norm, &mixed, &select(x, asked)?, precision)?;
        let inner = self.mlp.inner(&self.mlp_norm.forward(&middle)?, precision)?;
        let (y, fed) = onto(&self.mlp.down, &self.fed_norm, &self.mlp.activated(&inner)?, &middle, precision)?;
        Ok((y, Saved { x: x.clone(), q, k, v, mixed, lse, attended, middle, inner, fed }))
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
        let (middle, _) = onto(&self.o, &self.attended_norm, &mixed, x, precision)?;
        let inner = self.mlp.inner(&self.mlp_norm.forward(&middle)?, precision)?;
        Ok(onto(&self.mlp.down, &self.fed_norm, &self.mlp.activated(&inner)?, &middle, precision)?.0)
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
        let Saved { x, q, k, v, mixed, lse, attended, middle, inner, fed } = saved;
        // MLP
        let d_fed = through(&self.fed_norm, fed, &dy)?;
        let d_h = self.mlp.backward(inner, &d_fed, || self.mlp_norm.forward(&middle), precision)?;
        drop(d_fed);
        let d_middle = self.mlp_norm.backward(&middle, &d_h, Some(&dy))?;
        drop((middle, d_h, dy));
        // Attention
        let d_attended = through(&self.attended_norm, attended, &d_middle)?;
        let d_mixed = self.o.backward(&mixed, &d_attended, None, precision)?;
        drop(d_attended);
        let queries = asked.map_or(layout, |asked| &asked.layout);
        let (rotated_q, rotated_k) = self.rotated(&q, &k, &queries.rope, &layout.rope)?;
        let [d_q, d_k, d_v] =
            self.shape.backward(&queries.spans, (&rotated_q, &rotated_k, &v), (&mixed, &lse), &d_mixed)?;
        drop((rotated_q, rotated_k, v, mixed, d_mixed));
        let back = |ropes: &Ropes, d: Tensor| match ropes.get(self.rotation) {
            Some(rope) => rope.backward(&d),
            None => Ok(d),
        };
        let (mut d_q, mut d_k) = (back(&queries.rope, d_q)?, back(&layout.rope, d_k)?);
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

    fn rotated(&self, q: &Tensor, k: &Tensor, q_ropes: &Ropes, k_ropes: &Ropes) -> Result<(Tensor, Tensor)> {
        let turn = |ropes: &Ropes, x: &Tensor| match ropes.get(self.rotation) {
            Some(rope) => rope.forward(x),
            None => Ok(x.clone()),
        };
        Ok(match &self.qk_norm {
            Some((q_norm, k_norm)) => (turn(q_ropes, &q_norm.forward(q)?)?, turn(k_ropes, &k_norm.forward(k)?)?),
            None => (turn(q_ropes, q)?, turn(k_ropes, k)?),
        })
    }
}

/// residual + layer(x), or residual + norm(layer(x)) and what was normed.
fn onto(
    layer: &Linear,
    norm: &Option<Norm>,
    x: &Tensor,
    residual: &Tensor,
    precision: Precision,
) -> Result<(Tensor, Option<Tensor>)> {
    let Some(norm) = norm else { return Ok((layer.forward_onto(x, residual, precision)?, None)) };
    let given = layer.forward(x, precision)?;
    Ok(((residual + norm.forward(&given)?)?, Some(given)))
}

/// ∂ of what a layer gave, from that of what was added to the residual stream.
fn through(norm: &Option<Norm>, given: Option<Tensor>, dy: &Tensor) -> Result<Tensor> {
    match (norm, given) {
        (Some(norm), Some(given)) => norm.backward(&given, dy, None),
        _ => Ok(dy.clone()),
    }
}

/// The rows that are asked for, `[N, D]`; all of them without a question.
fn select(x: &Tensor, asked: Option<&Asked>) -> Result<Tensor> {
    Ok(match asked {
        Some(Asked { rows, .. }) => gather(x, rows)?,
        None => x.clone(),
    })
}
