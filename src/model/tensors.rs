//! The names and shapes of a model's tensors: Llama's, in every family. How files store them: `stored`.

use super::config::{ModelConfig, NormKind};

/// One tensor a model must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub shape: Vec<usize>,
}

impl TensorSpec {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Weight decay pulls on matrices only, never on norms and biases.
    pub fn decays(&self) -> bool {
        self.shape.len() > 1
    }
}

pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(super) const POSITIONS: &str = "model.embed_positions.weight";
pub(super) const FINAL_NORM: &str = "model.norm";
pub(super) const HEAD: &str = "lm_head.weight";

/// A norm of a block.
#[derive(Debug, Clone, Copy)]
pub(super) enum BlockNorm {
    BeforeAttention,
    AfterAttention,
    BeforeMlp,
    AfterMlp,
}

impl ModelConfig {
    /// What a block's norm is called; None where the family has none there.
    pub(super) fn norm_name(&self, norm: BlockNorm) -> Option<&'static str> {
        match (norm, self.post_norms) {
            (BlockNorm::BeforeAttention, _) => Some("input_layernorm"),
            // Llama's name for the norm before the MLP; Gemma took it for what it says.
            (BlockNorm::AfterAttention, true) | (BlockNorm::BeforeMlp, false) => Some("post_attention_layernorm"),
            (BlockNorm::BeforeMlp, true) => Some("pre_feedforward_layernorm"),
            (BlockNorm::AfterMlp, true) => Some("post_feedforward_layernorm"),
            (BlockNorm::AfterAttention | BlockNorm::AfterMlp, false) => None,
        }
    }

    /// Every tensor of the model, the blocks' in order.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut specs = vec![];
        let mut add = |name: String, shape: &[usize]| specs.push(TensorSpec { name, shape: shape.to_vec() });
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let norm_bias = self.norm == NormKind::Layer;
        add(EMBEDDING.into(), &[self.vocab_size, d]);
        if self.learned_positions {
            add(POSITIONS.into(), &[self.max_position_embeddings, d]);
        }
        for i in 0..self.layers {
            let mut add =
                |name: &str, kind: &str, shape: &[usize]| add(block_tensor(i, &format!("{name}.{kind}")), shape);
            use BlockNorm::*;
            let norms = [BeforeAttention, AfterAttention, BeforeMlp, AfterMlp].map(|norm| self.norm_name(norm));
            for name in norms.into_iter().flatten() {
                add(name, "weight", &[d]);
                if norm_bias {
                    add(name, "bias", &[d]);
                }
            }
            let layers = [
                ("self_attn.q_proj", q, d, self.qkv_bias),
                ("self_attn.k_proj", kv, d, self.qkv_bias),
                ("self_attn.v_proj", kv, d, self.qkv_bias),
                ("self_attn.o_proj", d, q, self.output_bias),
                ("mlp.gate_proj", f, d, self.mlp_bias),
                ("mlp.up_proj", f, d, self.mlp_bias),
                ("mlp.down_proj", d, f, self.mlp_bias),
            ];
            for (name, outer, inner, bias) in layers {
                if name == "mlp.gate_proj" && !self.mlp.is_gated() {
                    continue;
                }
                add(name, "weight", &[outer, inner]);
                if bias {
                    add(name, "bias", &[outer]);
                }
            }
            if self.qk_norm {
                add("self_attn.q_norm", "weight", &[self.head_dim]);
                add("self_attn.k_norm", "weight", &[self.head_dim]);
            }
        }
        add(format!("{FINAL_NORM}.weight"), &[d]);
        if norm_bias {
            add(format!("{FINAL_NORM}.bias"), &[d]);
        }
        if !self.tied_head {
            add(HEAD.into(), &[self.vocab_size, d]);
        }
        specs
    }

    /// Number of parameters; a tied head counts once.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(TensorSpec::elements).sum()
    }
}

/// The full name of a tensor of block `i`.
pub(super) fn block_tensor(i: usize, name: &str) -> String {
    format!("model.layers.{i}.{name}")
}
