//! GPT-2's config.json, whose keys are its own.

use serde_json::{Map, Value};

use super::fields::Fields;
use super::{Family, Mlp, ModelConfig, NormKind};
use crate::error::{Error, Result};

/// The keys of other families that transformers would take for GPT-2's own.
const ALIASES: [(&str, &str); 4] = [
    ("hidden_size", "n_embd"),
    ("num_hidden_layers", "n_layer"),
    ("num_attention_heads", "n_head"),
    ("max_position_embeddings", "n_positions"),
];

pub(super) fn read(fields: &Fields, raw: &Map<String, Value>) -> Result<ModelConfig> {
    if let Some((alias, own)) = ALIASES.iter().find(|(alias, _)| fields.get(alias).is_some()) {
        return Err(Error::input(format!("{alias} is given; a gpt2 config says {own}")));
    }
    fields.activation("activation_function", Family::Gpt2, &["gelu_new", "gelu_pytorch_tanh"])?;
    fields.refuse_flag("scale_attn_weights", false)?;
    fields.refuse_flag("scale_attn_by_inverse_layer_idx", true)?;
    fields.refuse_flag("add_cross_attention", true)?;
    let (hidden_size, heads, layers) = (fields.size("n_embd")?, fields.size("n_head")?, fields.layers("n_layer")?);
    if hidden_size % heads != 0 {
        return Err(Error::input(format!("n_embd = {hidden_size} must be a multiple of n_head = {heads}")));
    }
    let head_dim = hidden_size / heads;
    Ok(ModelConfig {
        family: Family::Gpt2,
        vocab_size: fields.size("vocab_size")?,
        hidden_size,
        intermediate_size: fields.optional_size("n_inner")?.unwrap_or(4 * hidden_size),
        layers,
        heads,
        kv_heads: heads,
        head_dim,
        norm: NormKind::Layer,
        norm_eps: fields.number("layer_norm_epsilon")?.unwrap_or(1e-5),
        post_norms: false,
        mlp: Mlp::Gelu,
        rotations: vec![None; layers],
        learned_positions: true,
        max_position_embeddings: fields.size("n_positions")?,
        tied_head: fields.flag_or("tie_word_embeddings", true)?,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        qk_norm: false,
        windows: vec![None; layers],
        attention_scale: (head_dim as f64).powf(-0.5),
        score_cap: None,
        logit_cap: None,
        embedding_scale: None,
        raw: raw.clone(),
    })
}
