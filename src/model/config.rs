//! A Hugging Face `config.json` as the shape of our decoder, in the spelling of transformers 4 or 5.
//!
//! What a family does differently is a field of [`ModelConfig`]; the decoder asks for these, never for the family.

mod fields;
mod gpt2;
mod layers;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::{Map, Value};

use self::fields::Fields;
use super::rope::Rotation;
use crate::error::{Error, Result};
use crate::hub;

/// The families the decoder can be, by `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    SmolLm3,
    Gemma2,
    /// The text model.
    Gemma3,
    Gpt2,
}

impl Family {
    const ALL: [(&'static str, Family); 8] = [
        ("llama", Self::Llama),
        ("mistral", Self::Mistral),
        ("qwen2", Self::Qwen2),
        ("qwen3", Self::Qwen3),
        ("smollm3", Self::SmolLm3),
        ("gemma2", Self::Gemma2),
        ("gemma3_text", Self::Gemma3),
        ("gpt2", Self::Gpt2),
    ];

    /// The `model_type` in config.json.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, f)| *f == self).map_or("?", |(name, _)| name)
    }

    /// The family of a config.json.
    fn of(fields: &Fields) -> Result<Self> {
        let supported = || Self::ALL.map(|(name, _)| name).join(", ");
        let Some(name) = fields.string("model_type")? else {
            return Err(Error::input(format!("model_type is missing; supported are {}", supported())));
        };
        if name == "gemma3" {
            return Err(Error::input(
                "model_type is \"gemma3\", the model of images and text; supported is its text model, \"gemma3_text\": \
                 Gemma3ForCausalLM.from_pretrained(…).save_pretrained(DIR) in transformers writes that alone",
            ));
        }
        Self::ALL.iter().find(|(n, _)| *n == name).map(|(_, f)| *f).ok_or_else(|| {
            let name = name.escape_debug();
            Error::input(format!("the architecture \"{name}\" is not supported; supported are {}", supported()))
        })
    }
}

/// How activations are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// By their root mean square.
    Rms,
    /// The same, and the stored weight is the distance from 1 (Gemma).
    RmsFromOne,
    /// By mean and variance, with a bias (GPT-2).
    Layer,
}

/// What a block's MLP computes from its input h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mlp {
    /// down (silu(gate h) ⊙ up h)
    SwiGlu,
    /// down (gelu(gate h) ⊙ up h)
    GeGlu,
    /// down gelu(up h)
    Gelu,
}

impl Mlp {
    pub fn is_gated(self) -> bool {
        self != Self::Gelu
    }
}

/// Everything the decoder needs to know.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    pub family: Family,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub norm: NormKind,
    pub norm_eps: f64,
    /// Norms also on what attention and MLP give, before it is added to the residual stream (Gemma).
    pub post_norms: bool,
    pub mlp: Mlp,
    /// How each layer rotates queries and keys; None: it does not.
    pub rotations: Vec<Option<Rotation>>,
    /// Positions have embeddings, which are added to the tokens'; there are none beyond `max_position_embeddings`.
    pub learned_positions: bool,
    pub max_position_embeddings: usize,
    /// The head is the embedding, one tensor under one name.
    pub tied_head: bool,
    pub qkv_bias: bool,
    pub output_bias: bool,
    pub mlp_bias: bool,
    /// RMS norms on each head's queries and keys before RoPE (Qwen3, Gemma 3).
    pub qk_norm: bool,
    /// Sliding window of each layer; None: full attention.
    pub windows: Vec<Option<usize>>,
    /// What scores q · k are multiplied by.
    pub attention_scale: f64,
    /// c of c · tanh(score / c) (Gemma 2).
    pub score_cap: Option<f64>,
    /// c of c · tanh(logit / c) (Gemma 2).
    pub logit_cap: Option<f64>,
    /// What token embeddings are multiplied by.
    pub embedding_scale: Option<f64>,
    /// The file as it was read: what we do not interpret is handed on to the student's folder.
    raw: Map<String, Value>,
}

impl ModelConfig {
    /// Reads `config.json` of a model folder, or the file itself.
    pub fn read(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        Self::from_json(&hub::read_text(&file)?).map_err(|e| e.context(file.display()))
    }

    /// Reads the text of a config.json.
    pub fn from_json(text: &str) -> Result<Self> {
        let raw: Map<String, Value> =
            serde_json::from_str(text).map_err(|e| Error::input(format!("not a JSON object: {e}")))?;
        let fields = Fields(&raw);
        let family = Family::of(&fields)?;
        if fields.get("quantization_config").is_some() {
            return Err(Error::input(
                "the weights are quantised (quantization_config); this version reads f32, bf16 and f16",
            ));
        }
        fields.number("initializer_range")?;
        let config = match family {
            Family::Gpt2 => gpt2::read(&fields, &raw)?,
            _ => Self::read_llama_like(family, &fields, &raw)?,
        };
        // Beyond any model, and far below what a count of elements can hold.
        const MOST_PARAMETERS: f64 = 1e13;
        let d = config.hidden_size as f64;
        let attention = d * (config.heads + config.kv_heads) as f64 * config.head_dim as f64;
        let block = 2.0 * attention + 3.0 * d * config.intermediate_size as f64;
        let tables = 2.0 * config.vocab_size as f64 + config.max_position_embeddings as f64;
        let parameters = config.layers as f64 * block + d * tables;
        match parameters <= MOST_PARAMETERS {
            true => Ok(config),
            false => Err(Error::input(format!(
                "these sizes come to about {parameters:.0e} parameters; at most 1e13 are read"
            ))),
        }
    }

    /// All families but GPT-2 have Llama's keys.
    fn read_llama_like(family: Family, fields: &Fields, raw: &Map<String, Value>) -> Result<Self> {
        let gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
        if gemma {
            fields.activation("hidden_activation", family, &["gelu_pytorch_tanh", "gelu_new"])?;
            fields.activation("hidden_act", family, &["gelu_pytorch_tanh", "gelu_new"])?;
            fields.refuse_flag("use_bidirectional_attention", true)?;
        } else {
            fields.activation("hidden_act", family, &["silu", "swish"])?;
        }
        let hidden_size = fields.size("hidden_size")?;
        let heads = fields.size("num_attention_heads")?;
        // The defaults of these families are those of one of their models.
        let kv_heads = match gemma || family == Family::SmolLm3 && !raw.contains_key("num_key_value_heads") {
            true => fields.size("num_key_value_heads")?,
            false => fields.optional_size("num_key_value_heads")?.unwrap_or(heads),
        };
        let head_dim = match family {
            Family::Gemma2 | Family::Gemma3 => fields.size("head_dim")?,
            // Qwen3 fixes 128 where the others derive the width of a head.
            Family::Qwen3 => fields.optional_size("head_dim")?.unwrap_or(128),
            _ => fields.optional_size("head_dim")?.unwrap_or(hidden_size / heads),
        };
        if heads % kv_heads != 0 || head_dim % 2 != 0 || head_dim == 0 {
            return Err(Error::input(format!(
                "num_attention_heads = {heads} must be a multiple of num_key_value_heads = {kv_heads}, and head_dim = \
                 {head_dim} even"
            )));
        }
        let layers = fields.layers("num_hidden_layers")?;
        let attention_bias = fields.flag("attention_bias")?;
        let max_position_embeddings = fields.optional_size("max_position_embeddings")?.unwrap_or(2048);
        let windows = fields.windows(family, layers)?;
        let rotations = fields.rotations(family, &windows, max_position_embeddings)?;
        if family == Family::Gemma3 && fields.get("attn_logit_softcapping").is_some() {
            return Err(Error::input(
                "attn_logit_softcapping is given, which gemma3_text's attention has not; remove the key",
            ));
        }
        // transformers refuses the saved folder otherwise: the family's default is an id of its own tokenizer.
        const SMOLLM3_PAD: usize = 128_004;
        let vocab_size = fields.size("vocab_size")?;
        if family == Family::SmolLm3 && !raw.contains_key("pad_token_id") && vocab_size <= SMOLLM3_PAD {
            return Err(Error::input(format!(
                "pad_token_id is missing, and smollm3's own, {SMOLLM3_PAD}, lies beyond vocab_size = {vocab_size}; add an id, \
                 or null"
            )));
        }
        let scale_of = if gemma {
            let key = "query_pre_attn_scalar";
            fields.number(key)?.ok_or_else(|| Error::input(format!("{key} is missing")))?
        } else {
            head_dim as f64
        };
        Ok(Self {
            family,
            vocab_size,
            hidden_size,
            intermediate_size: fields.size("intermediate_size")?,
            layers,
            heads,
            kv_heads,
            head_dim,
            norm: if gemma { NormKind::RmsFromOne } else { NormKind::Rms },
            norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6),
            post_norms: gemma,
            mlp: if gemma { Mlp::GeGlu } else { Mlp::SwiGlu },
            rotations,
            learned_positions: false,
            max_position_embeddings,
            tied_head: fields.flag_or("tie_word_embeddings", gemma || family == Family::SmolLm3)?,
            qkv_bias: family == Family::Qwen2 || attention_bias,
            output_bias: attention_bias && family != Family::Qwen2,
            mlp_bias: matches!(family, Family::Llama | Family::SmolLm3) && fields.flag("mlp_bias")?,
            qk_norm: matches!(family, Family::Qwen3 | Family::Gemma3),
            windows,
            attention_scale: scale_of.powf(-0.5),
            score_cap: match family {
                Family::Gemma2 => fields.number_or_null("attn_logit_softcapping")?,
                _ => None,
            },
            logit_cap: match family {
                Family::Gemma2 => fields.number_or_null("final_logit_softcapping")?,
                Family::Gemma3 => fields.number("final_logit_softcapping")?,
                _ => None,
            },
            // transformers rounds it to the dtype it computes in, which here is f32.
            embedding_scale: gemma.then(|| (hidden_size as f64).sqrt()),
            raw: raw.clone(),
        })
    }

    /// The op of this model that has no kernel on GPUs.
    pub fn without_gpu_kernel(&self) -> Option<&'static str> {
        match self.score_cap.or(self.logit_cap) {
            Some(_) => Some("soft cap"),
            None => (!self.head_dim.is_multiple_of(2)).then_some("attention of heads of an odd width"),
        }
    }

    /// The same model with only `layers` of its blocks, in that order. Indices must exist.
    pub fn with_layers(&self, layers: &[usize]) -> Self {
        let mut config = self.clone();
        config.layers = layers.len();
        config.windows = layers.iter().map(|&i| self.windows[i]).collect();
        config.rotations = layers.iter().map(|&i| self.rotations[i]).collect();
        config.write_layers();
        config
    }

    /// The config.json of a folder that stores these weights as `dtype` ("float32" or "bfloat16").
    pub fn to_json(&self, dtype: &str) -> String {
        let mut raw = self.raw.clone();
        let key = if raw.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        for other in ["dtype", "torch_dtype"] {
            if raw.contains_key(other) || other == key {
                raw.insert(other.into(), dtype.into());
            }
        }
        serde_json::to_string_pretty(&raw).unwrap_or_default() + "\n"
    }

    /// Standard deviation of a fresh model's matrices.
    pub fn initializer_range(&self) -> f64 {
        self.raw.get("initializer_range").and_then(Value::as_f64).unwrap_or(0.02)
    }
}
