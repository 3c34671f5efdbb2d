//! A Hugging Face `config.json` as the shape of our decoder, in the spelling of transformers 4 or 5.

use std::path::Path;

use serde_json::{Map, Value};

use super::rope::RopeScaling;
use crate::error::{Error, Result};

/// The families the decoder can be, by `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

impl Family {
    const ALL: [(&'static str, Family); 4] =
        [("llama", Self::Llama), ("mistral", Self::Mistral), ("qwen2", Self::Qwen2), ("qwen3", Self::Qwen3)];

    /// The `model_type` in config.json.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, f)| *f == self).map_or("?", |(name, _)| name)
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
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    pub max_position_embeddings: usize,
    /// The head is the embedding, one tensor under one name.
    pub tied_head: bool,
    pub qkv_bias: bool,
    pub output_bias: bool,
    pub mlp_bias: bool,
    /// RMS norms on each head's queries and keys before RoPE (Qwen3).
    pub qk_norm: bool,
    /// Sliding window of each layer; None: full attention.
    pub windows: Vec<Option<usize>>,
    /// The file as it was read: what we do not interpret is handed on to the student's folder.
    raw: Map<String, Value>,
}

impl ModelConfig {
    /// Reads `config.json` of a model folder, or the file itself.
    pub fn read(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        let text = std::fs::read_to_string(&file).map_err(|e| Error::unreadable(&file, e))?;
        Self::from_json(&text).map_err(|e| e.context(file.display()))
    }

    /// Reads the text of a config.json.
    pub fn from_json(text: &str) -> Result<Self> {
        let raw: Map<String, Value> =
            serde_json::from_str(text).map_err(|e| Error::input(format!("not a JSON object: {e}")))?;
        let fields = Fields(&raw);
        let family = fields.family()?;
        if fields.get("quantization_config").is_some() {
            return Err(Error::input(
                "the weights are quantised (quantization_config); this version reads f32, bf16 and f16",
            ));
        }
        if let Some(act) = fields.string("hidden_act")?.filter(|a| *a != "silu" && *a != "swish") {
            return Err(Error::input(format!(
                "hidden_act is {act:?}; the {} decoder here has only \"silu\"",
                family.name()
            )));
        }
        let hidden_size = fields.size("hidden_size")?;
        let heads = fields.size("num_attention_heads")?;
        let kv_heads = fields.optional_size("num_key_value_heads")?.unwrap_or(heads);
        // Qwen3 fixes 128 where the others derive the width of a head.
        let default_head_dim = if family == Family::Qwen3 { 128 } else { hidden_size / heads };
        let head_dim = fields.optional_size("head_dim")?.unwrap_or(default_head_dim);
        if heads % kv_heads != 0 || head_dim % 2 != 0 || head_dim == 0 {
            return Err(Error::input(format!(
                "num_attention_heads = {heads} must be a multiple of num_key_value_heads = {kv_heads}, and head_dim = \
                 {head_dim} even"
            )));
        }
        let layers = fields.size("num_hidden_layers")?;
        let attention_bias = fields.flag("attention_bias")?;
        let max_position_embeddings = fields.optional_size("max_position_embeddings")?.unwrap_or(2048);
        let (rope_theta, rope_scaling) = fields.rope(max_position_embeddings)?;
        fields.number("initializer_range")?;
        let config = Self {
            family,
            vocab_size: fields.size("vocab_size")?,
            hidden_size,
            intermediate_size: fields.size("intermediate_size")?,
            layers,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            max_position_embeddings,
            tied_head: fields.flag("tie_word_embeddings")?,
            qkv_bias: family == Family::Qwen2 || attention_bias,
            output_bias: attention_bias && family != Family::Qwen2,
            mlp_bias: family == Family::Llama && fields.flag("mlp_bias")?,
            qk_norm: family == Family::Qwen3,
            windows: fields.windows(family, layers)?,
            raw,
        };
        // Beyond any model, and far below what a count of elements can hold.
        const MOST_PARAMETERS: f64 = 1e13;
        let d = config.hidden_size as f64;
        let attention = d * (config.heads + config.kv_heads) as f64 * config.head_dim as f64;
        let block = 2.0 * attention + 3.0 * d * config.intermediate_size as f64;
        let parameters = config.layers as f64 * block + 2.0 * d * config.vocab_size as f64;
        match parameters <= MOST_PARAMETERS {
            true => Ok(config),
            false => Err(Error::input(format!(
                "these sizes come to about {parameters:.0e} parameters; at most 1e13 are read"
            ))),
        }
    }

    /// The same model with only `layers` of its blocks, in that order. Indices must exist.
    pub fn with_layers(&self, layers: &[usize]) -> Self {
        let mut config = self.clone();
        config.layers = layers.len();
        config.windows = layers.iter().map(|&i| self.windows[i]).collect();
        config.raw.insert("num_hidden_layers".into(), layers.len().into());
        // Which layers slide is a rule over layer numbers in Qwen; after a cut only a list says it.
        let by_rule = matches!(self.family, Family::Qwen2 | Family::Qwen3) && self.windows.iter().any(Option::is_some);
        if by_rule || self.raw.contains_key("layer_types") {
            let types = config.windows.iter().map(|w| match w {
                Some(_) => "sliding_attention".into(),
                None => "full_attention".into(),
            });
            config.raw.insert("layer_types".into(), Value::Array(types.collect()));
        }
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

/// Typed look-ups whose errors name the key.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The value, if there and not null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn wrong(key: &str, value: &Value, wanted: &str) -> Error {
        Error::input(format!("{key} is {value}; it must be {wanted}"))
    }

    fn string(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| Self::wrong(key, v, "a string"))).transpose()
    }

    fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        self.get(key).map(|v| v.as_object().ok_or_else(|| Self::wrong(key, v, "an object"))).transpose()
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| Error::input(format!("{key} is missing")))
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        // A bound far above every model, so that products of sizes never overflow.
        const LIMIT: u64 = 1 << 24;
        self.get(key)
            .map(|v| match v.as_u64() {
                Some(n) if (1..=LIMIT).contains(&n) => Ok(n as usize),
                _ => Err(Self::wrong(key, v, "a whole number from 1 to 16777216")),
            })
            .transpose()
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key)
            .map(|v| v.as_f64().filter(|x| *x > 0.0).ok_or_else(|| Self::wrong(key, v, "a number above 0")))
            .transpose()
    }

    fn flag(&self, key: &str) -> Result<bool> {
        self.get(key).map_or(Ok(false), |v| v.as_bool().ok_or_else(|| Self::wrong(key, v, "true or false")))
    }

    fn family(&self) -> Result<Family> {
        let supported = || Family::ALL.map(|(name, _)| name).join(", ");
        let Some(name) = self.string("model_type")? else {
            return Err(Error::input(format!("model_type is missing; supported are {}", supported())));
        };
        Family::ALL.iter().find(|(n, _)| *n == name).map(|(_, f)| *f).ok_or_else(|| {
            let name = name.escape_debug();
            Error::input(format!("the architecture \"{name}\" is not supported; supported are {}", supported()))
        })
    }

    /// θ and the scaling. `rope_scaling` wins over `rope_parameters`, and a θ inside it over the top-level one, as in
    /// transformers. A missing θ is refused: a silent default loads many a model wrong.
    fn rope(&self, max_positions: usize) -> Result<(f64, RopeScaling)> {
        let (scaling, parameters) = (self.object("rope_scaling")?, self.object("rope_parameters")?);
        let table = [("rope_scaling", scaling), ("rope_parameters", parameters)]
            .into_iter()
            .find_map(|(key, object)| object.filter(|o| !o.is_empty()).map(|o| (key, o)));
        let inner = table.map(|(_, o)| Fields(o));
        let nested_theta = inner.as_ref().map(|f| f.number("rope_theta")).transpose()?.flatten();
        let parameters_theta = parameters.map(|o| Fields(o).number("rope_theta")).transpose()?.flatten();
        let theta = match nested_theta {
            Some(theta) => Some(theta),
            None => self.number("rope_theta")?.or(parameters_theta),
        };
        let theta = theta.ok_or_else(|| {
            Error::input("neither rope_theta nor rope_parameters.rope_theta is there; add the model's own value")
        })?;
        let scaling = match (table, inner) {
            (Some((key, _)), Some(fields)) => RopeScaling::read(
                fields.string("rope_type")?.or(fields.string("type")?).unwrap_or("default"),
                |name| fields.number(name),
                max_positions,
            )
            .map_err(|e| e.context(key))?,
            _ => RopeScaling::None,
        };
        if self.get("partial_rotary_factor").and_then(Value::as_f64).is_some_and(|x| x != 1.0) {
            return Err(Error::input("partial_rotary_factor is not 1; this decoder rotates whole heads only"));
        }
        Ok((theta, scaling))
    }

    fn windows(&self, family: Family, layers: usize) -> Result<Vec<Option<usize>>> {
        let named = match (family, self.0.contains_key("sliding_window")) {
            (Family::Llama, _) => None,
            (Family::Mistral, false) => Some(4096),
            _ => self.optional_size("sliding_window")?,
        };
        let switched_on = family == Family::Mistral || self.flag("use_sliding_window")?;
        let Some(window) = named.filter(|_| switched_on) else { return Ok(vec![None; layers]) };
        if let Some(Value::Array(types)) = self.get("layer_types") {
            if types.len() != layers {
                return Err(Error::input(format!("layer_types names {} layers of {layers}", types.len())));
            }
            return types
                .iter()
                .map(|t| match t.as_str() {
                    Some("full_attention") => Ok(None),
                    Some("sliding_attention") => Ok(Some(window)),
                    _ => Err(Self::wrong("layer_types", t, "\"full_attention\" or \"sliding_attention\"")),
                })
                .collect();
        }
        // Qwen: the first max_window_layers layers see everything.
        let full = if family == Family::Mistral {
            0
        } else {
            self.get("max_window_layers").and_then(Value::as_u64).unwrap_or(28) as usize
        };
        Ok((0..layers).map(|i| (i >= full).then_some(window)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qwen(more: &str) -> Result<ModelConfig> {
        ModelConfig::from_json(&format!(
            r#"{{"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
            "num_attention_heads": 4, "vocab_size": 97{more}}}"#
        ))
    }

    #[test]
    fn a_cut_keeps_each_layers_window() {
        let whole =
            qwen(r#", "rope_theta": 1e4, "use_sliding_window": true, "sliding_window": 5, "max_window_layers": 2"#)
                .unwrap();
        assert_eq!(whole.windows, [None, None, Some(5), Some(5)]);
        let cut = whole.with_layers(&[1, 3]);
        assert_eq!(cut.windows, [None, Some(5)]);
        let again = ModelConfig::from_json(&cut.to_json("float32")).unwrap();
        assert_eq!((again.layers, again.windows), (2, cut.windows));
    }

    #[test]
    fn what_would_load_a_model_silently_wrong_is_refused() {
        for (more, named) in [
            ("", "rope_theta"),
            (r#", "rope_theta": 1e4, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}"#, "yarn"),
            (r#", "rope_theta": 1e4, "hidden_act": "gelu""#, "gelu"),
            (r#", "rope_theta": 1e4, "partial_rotary_factor": 0.5"#, "partial_rotary_factor"),
            (r#", "rope_theta": "large""#, "rope_theta"),
            (r#", "rope_theta": 1e4, "num_key_value_heads": 3"#, "num_key_value_heads"),
            (r#", "rope_theta": 1e4, "rope_scaling": {"rope_type": 7}"#, "rope_type"),
            (r#", "rope_theta": 1e4, "rope_scaling": "linear""#, "rope_scaling"),
            (r#", "rope_theta": 1e4, "hidden_act": 5"#, "hidden_act"),
            (r#", "rope_theta": 1e4, "initializer_range": -1"#, "initializer_range"),
            (r#", "rope_theta": 1e4, "head_dim": 1"#, "head_dim"),
            (r#", "rope_theta": 1e4, "hidden_size": 16777216, "intermediate_size": 16777216"#, "parameters"),
            (r#", "rope_theta": 1e4, "quantization_config": {}"#, "quantization_config"),
        ] {
            let said = qwen(more).unwrap_err().to_string();
            assert!(said.contains(named), "{named}: {said}");
        }
    }

    #[test]
    fn the_dtype_is_written_in_the_spelling_that_was_read() {
        let old = qwen(r#", "rope_theta": 1e4, "torch_dtype": "float32""#).unwrap().to_json("bfloat16");
        assert!(old.contains(r#""torch_dtype": "bfloat16""#) && !old.contains(r#""dtype": "bf"#));
        let new = qwen(r#", "rope_theta": 1e4, "dtype": "float32""#).unwrap().to_json("bfloat16");
        assert!(new.contains(r#""dtype": "bfloat16""#) && !new.contains("torch_dtype"));
    }
}
