//! The metadata of a GGUF file as the config.json of the same model.

use serde_json::{Map, Number, Value as Json};

use super::header::{Header, Value};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::model::rope::RopeScaling;

/// llama.cpp's names of architectures that our decoder is; each is also its `model_type`.
const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];

/// Typed look-ups whose errors name the key.
struct Metadata<'a> {
    header: &'a Header,
    architecture: &'a str,
}

impl<'a> Metadata<'a> {
    fn new(header: &'a Header) -> Result<Self> {
        let architecture = match header.metadata.get("general.architecture") {
            Some(Value::Text(name)) => name.as_str(),
            _ => return Err(Error::input("general.architecture is missing")),
        };
        match ARCHITECTURES.contains(&architecture) {
            true => Ok(Self { header, architecture }),
            false => Err(Error::input(format!(
                "the architecture \"{}\" is not supported; supported are {}",
                architecture.escape_debug(),
                ARCHITECTURES.join(", ")
            ))),
        }
    }

    /// `ARCHITECTURE.key`, if there.
    fn get(&self, key: &str) -> (String, Option<&'a Value>) {
        let name = format!("{}.{key}", self.architecture);
        let value = self.header.metadata.get(&name);
        (name, value)
    }

    fn size(&self, key: &str) -> Result<Option<u64>> {
        match self.get(key) {
            (_, None) => Ok(None),
            (_, Some(Value::Unsigned(n))) => Ok(Some(*n)),
            (_, Some(Value::Signed(n))) if *n >= 0 => Ok(Some(*n as u64)),
            (name, Some(Value::Numbers(list))) => match list.first() {
                Some(first) if list.iter().all(|n| n == first) && *first >= 0.0 => Ok(Some(*first as u64)),
                _ => Err(Error::input(format!("{name} differs from layer to layer, which is not supported"))),
            },
            (name, Some(other)) => Err(Error::input(format!("{name} is {other:?}, not a size"))),
        }
    }

    fn required(&self, key: &str) -> Result<u64> {
        self.size(key)?.ok_or_else(|| Error::input(format!("{} is missing", self.get(key).0)))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            (_, None) => Ok(None),
            (_, Some(Value::Float(x))) => Ok(Some(*x)),
            (_, Some(Value::Unsigned(n))) => Ok(Some(*n as f64)),
            (name, Some(other)) => Err(Error::input(format!("{name} is {other:?}, not a number"))),
        }
    }

    fn has(&self, tensor: &str) -> bool {
        self.header.tensors.contains_key(tensor)
    }
}

/// The shape of the model. `frequency_factors`: the file's rope_freqs tensor, if it has one.
pub(super) fn read(header: &Header, frequency_factors: Option<&[f32]>) -> Result<ModelConfig> {
    let metadata = Metadata::new(header)?;
    let (heads, width) = (metadata.required("attention.head_count")?, metadata.required("embedding_length")?);
    let head_dim = match metadata.size("attention.key_length")?.or(metadata.size("rope.dimension_count")?) {
        Some(n) => n,
        None => width / heads.max(1),
    };
    let vocab = header.tensors.get("token_embd.weight").and_then(|t| t.shape.first().copied());
    let vocab = vocab.ok_or_else(|| Error::input("token_embd.weight is missing"))?;
    let mut json = Map::new();
    let mut set = |key: &str, value: Json| drop(json.insert(key.into(), value));
    let float = |x: f64| Number::from_f64(x).map_or(Json::Null, Json::Number);
    set("model_type", metadata.architecture.into());
    let class = match metadata.architecture {
        "llama" => "LlamaForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        _ => "Qwen3ForCausalLM",
    };
    set("architectures", Json::Array(vec![class.into()]));
    set("hidden_act", "silu".into());
    set("vocab_size", vocab.into());
    set("hidden_size", width.into());
    set("intermediate_size", metadata.required("feed_forward_length")?.into());
    set("num_hidden_layers", metadata.required("block_count")?.into());
    set("num_attention_heads", heads.into());
    set("num_key_value_heads", metadata.size("attention.head_count_kv")?.unwrap_or(heads).into());
    set("head_dim", head_dim.into());
    set("max_position_embeddings", metadata.required("context_length")?.into());
    let epsilon = metadata.number("attention.layer_norm_rms_epsilon")?;
    let epsilon = epsilon.ok_or_else(|| Error::input("attention.layer_norm_rms_epsilon is missing"))?;
    // An f32 in the file: the shortest decimal that is the same f32 is what was meant.
    set("rms_norm_eps", float(format!("{}", epsilon as f32).parse().unwrap_or(epsilon)));
    // The format's own default.
    let theta = metadata.number("rope.freq_base")?.unwrap_or(10_000.0);
    set("rope_theta", float(theta));
    set("tie_word_embeddings", (!metadata.has("output.weight")).into());
    if metadata.architecture == "llama" {
        set("attention_bias", metadata.has("blk.0.attn_output.bias").into());
        set("mlp_bias", metadata.has("blk.0.ffn_down.bias").into());
    }
    if let Some(scaling) = scaling(&metadata, theta, head_dim as usize, frequency_factors)? {
        set("rope_scaling", scaling);
    }
    for (key, name) in [("bos_token_id", "bos"), ("eos_token_id", "eos")] {
        if let Some(Value::Unsigned(id)) = header.metadata.get(&format!("tokenizer.ggml.{name}_token_id")) {
            set(key, (*id).into());
        }
    }
    if metadata.size("rope.dimension_count")?.is_some_and(|n| n != head_dim) {
        return Err(Error::input("heads that rotate only in part are not supported"));
    }
    if metadata.size("expert_count")?.is_some_and(|n| n > 0) {
        return Err(Error::input("mixtures of experts are not supported"));
    }
    ModelConfig::from_json(&Json::Object(json).to_string())
}

/// The `rope_scaling` of config.json. A file names linear scaling, but of Llama 3's only the factors it comes to are there:
/// they are recognised among those that models use.
fn scaling(metadata: &Metadata, theta: f64, head_dim: usize, factors: Option<&[f32]>) -> Result<Option<Json>> {
    match metadata.get("rope.scaling.type") {
        (_, None) => {}
        (_, Some(Value::Text(kind))) if kind == "none" => {}
        (_, Some(Value::Text(kind))) if kind == "linear" => {
            let factor = metadata.number("rope.scaling.factor")?;
            let factor = factor.ok_or_else(|| Error::input("rope.scaling.factor is missing"))?;
            return Ok(Some(serde_json::json!({ "rope_type": "linear", "factor": factor })));
        }
        (name, Some(other)) => return Err(Error::input(format!("{name} is {other:?}; supported are none and linear"))),
    }
    let Some(factors) = factors.filter(|factors| factors.iter().any(|f| *f != 1.0)) else { return Ok(None) };
    let plain = RopeScaling::None.inverse_frequencies(theta, head_dim);
    for factor in [8.0, 32.0, 4.0, 16.0] {
        let llama3 =
            RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 8192.0 };
        let scaled = llama3.inverse_frequencies(theta, head_dim);
        let near = |((plain, scaled), factor): ((&f32, &f32), &f32)| (plain / scaled / factor - 1.0).abs() < 1e-3;
        if factors.len() == plain.len() && plain.iter().zip(&scaled).zip(factors).all(near) {
            return Ok(Some(serde_json::json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192
            })));
        }
    }
    Err(Error::input("rope_freqs.weight holds factors that are no scaling this version knows"))
}
