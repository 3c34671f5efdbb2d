//! The names and shapes of a model's tensors, as Hugging Face folders store them.

use super::config::ModelConfig;

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
pub(super) const FINAL_NORM: &str = "model.norm.weight";
pub(super) const HEAD: &str = "lm_head.weight";

/// The full name of a tensor of block `i`.
pub(super) fn block_tensor(i: usize, name: &str) -> String {
    format!("model.layers.{i}.{name}")
}

impl ModelConfig {
    /// Every tensor of the model, the blocks' in order.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut specs = vec![];
        let mut add = |name: String, shape: &[usize]| specs.push(TensorSpec { name, shape: shape.to_vec() });
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        add(EMBEDDING.into(), &[self.vocab_size, d]);
        for i in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| add(block_tensor(i, name), shape);
            add("input_layernorm.weight", &[d]);
            add("post_attention_layernorm.weight", &[d]);
            let attention = [
                ("q_proj", q, d, self.qkv_bias),
                ("k_proj", kv, d, self.qkv_bias),
                ("v_proj", kv, d, self.qkv_bias),
                ("o_proj", d, q, self.output_bias),
            ];
            let mlp = [("gate_proj", f, d), ("up_proj", f, d), ("down_proj", d, f)];
            for (name, outer, inner, bias) in attention {
                add(&format!("self_attn.{name}.weight"), &[outer, inner]);
                if bias {
                    add(&format!("self_attn.{name}.bias"), &[outer]);
                }
            }
            for (name, outer, inner) in mlp {
                add(&format!("mlp.{name}.weight"), &[outer, inner]);
                if self.mlp_bias {
                    add(&format!("mlp.{name}.bias"), &[outer]);
                }
            }
            if self.qk_norm {
                add("self_attn.q_norm.weight", &[self.head_dim]);
                add("self_attn.k_norm.weight", &[self.head_dim]);
            }
        }
        add(FINAL_NORM.into(), &[d]);
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
