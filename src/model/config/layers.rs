//! What differs from layer to layer: the window it attends in, and how it rotates queries and keys.

use serde_json::{Map, Value};

use super::fields::Fields;
use super::{Family, ModelConfig};
use crate::error::{Error, Result};
use crate::model::rope::{RopeScaling, Rotation};

impl Fields<'_> {
    /// The sliding window of each layer; None: full attention.
    pub fn windows(&self, family: Family, layers: usize) -> Result<Vec<Option<usize>>> {
        let slides: Vec<bool> = match family {
            Family::Llama | Family::Gpt2 => return Ok(vec![None; layers]),
            Family::Gemma2 => self.layer_types(layers)?.unwrap_or((0..layers).map(|i| i % 2 == 0).collect()),
            Family::Gemma3 => {
                let pattern = self.optional_size("sliding_window_pattern")?.unwrap_or(6);
                let by_rule = || (0..layers).map(|i| (i + 1) % pattern != 0).collect();
                self.layer_types(layers)?.unwrap_or_else(by_rule)
            }
            Family::SmolLm3 => return self.smollm3_windows(layers),
            Family::Mistral | Family::Qwen2 | Family::Qwen3 => return self.switched_windows(family, layers),
        };
        let window = match slides.contains(&true) {
            true => Some(self.size("sliding_window")?),
            false => None,
        };
        Ok(slides.iter().map(|slides| window.filter(|_| *slides)).collect())
    }

    fn switched_windows(&self, family: Family, layers: usize) -> Result<Vec<Option<usize>>> {
        let named = match (family, self.0.contains_key("sliding_window")) {
            (Family::Mistral, false) => Some(4096),
            _ => self.optional_size("sliding_window")?,
        };
        let switched_on = family == Family::Mistral || self.flag("use_sliding_window")?;
        let Some(window) = named.filter(|_| switched_on) else { return Ok(vec![None; layers]) };
        if let Some(slides) = self.layer_types(layers)? {
            return Ok(slides.iter().map(|slides| slides.then_some(window)).collect());
        }
        // Qwen: the first max_window_layers layers see everything.
        let full = if family == Family::Mistral {
            0
        } else {
            self.get("max_window_layers").and_then(Value::as_u64).unwrap_or(28) as usize
        };
        Ok((0..layers).map(|i| (i >= full).then_some(window)).collect())
    }

    /// Without layer_types, the layers that do not rotate slide.
    fn smollm3_windows(&self, layers: usize) -> Result<Vec<Option<usize>>> {
        let window = self.optional_size("sliding_window")?;
        let switched_on = self.flag("use_sliding_window")?;
        let slides = match self.layer_types(layers)? {
            Some(slides) => slides,
            None => self.rotates(layers)?.iter().map(|rotates| !rotates && switched_on && window.is_some()).collect(),
        };
        match (window, slides.contains(&true)) {
            (_, false) => Ok(vec![None; layers]),
            (Some(window), true) if switched_on => Ok(slides.iter().map(|s| s.then_some(window)).collect()),
            _ => Err(Error::input(
                "layer_types has sliding layers, but use_sliding_window is not true or sliding_window is missing; say both \
                 or name only full_attention",
            )),
        }
    }

    /// SmolLM3: whether each layer rotates, by `no_rope_layers` (1: it does), or all but every so many.
    fn rotates(&self, layers: usize) -> Result<Vec<bool>> {
        let Some(value) = self.get("no_rope_layers") else {
            let interval = self.optional_size("no_rope_layer_interval")?.unwrap_or(4);
            return Ok((0..layers).map(|i| (i + 1) % interval != 0).collect());
        };
        let list = value.as_array().filter(|list| list.len() >= layers);
        let list =
            list.ok_or_else(|| Self::wrong("no_rope_layers", value, &format!("a list of {layers} of 0 and 1")))?;
        let rotates = |v: &Value| match v.as_u64() {
            Some(n @ (0 | 1)) => Ok(n == 1),
            _ => Err(Self::wrong("no_rope_layers", v, "0 or 1 for each layer")),
        };
        list[..layers].iter().map(rotates).collect()
    }

    /// How each layer rotates; None: it does not.
    pub fn rotations(
        &self,
        family: Family,
        windows: &[Option<usize>],
        max_positions: usize,
    ) -> Result<Vec<Option<Rotation>>> {
        let layers = windows.len();
        match family {
            Family::Gpt2 => Ok(vec![None; layers]),
            Family::SmolLm3 => {
                let rotation = self.rotation(max_positions)?;
                Ok(self.rotates(layers)?.iter().map(|rotates| rotates.then_some(rotation)).collect())
            }
            Family::Gemma3 => {
                let (global, local) = self.gemma3_rotations(max_positions)?;
                let sliding = || {
                    local.ok_or_else(|| {
                        Error::input(
                            "neither rope_local_base_freq nor rope_parameters.sliding_attention.rope_theta is there; add \
                             the model's own value",
                        )
                    })
                };
                windows.iter().map(|w| if w.is_some() { sliding().map(Some) } else { Ok(Some(global)) }).collect()
            }
            _ => Ok(vec![Some(self.rotation(max_positions)?); layers]),
        }
    }

    /// θ and the scaling. `rope_scaling` wins over `rope_parameters`, and a θ inside it over the top-level one, as in
    /// transformers. A missing θ is refused: a silent default loads many a model wrong.
    fn rotation(&self, max_positions: usize) -> Result<Rotation> {
        let (scaling, parameters) = (self.object("rope_scaling")?, self.object("rope_parameters")?);
        let table = [("rope_scaling", scaling), ("rope_parameters", parameters)]
            .into_iter()
            .find_map(|(key, object)| object.filter(|o| !o.is_empty()).map(|o| (key, o)));
        let nested_theta = table.map(|(_, o)| Fields(o).number("rope_theta")).transpose()?.flatten();
        let parameters_theta = parameters.map(|o| Fields(o).number("rope_theta")).transpose()?.flatten();
        let theta = match nested_theta {
            Some(theta) => Some(theta),
            None => self.number("rope_theta")?.or(parameters_theta),
        };
        let theta = theta.ok_or_else(|| {
            Error::input("neither rope_theta nor rope_parameters.rope_theta is there; add the model's own value")
        })?;
        self.whole_heads()?;
        Ok(Rotation { theta, scaling: scaling_of(table, max_positions)? })
    }

    /// Those of full and of sliding layers: `rope_theta` with `rope_scaling` and `rope_local_base_freq` in transformers 4, a
    /// table for each kind in `rope_parameters` in 5.
    fn gemma3_rotations(&self, max_positions: usize) -> Result<(Rotation, Option<Rotation>)> {
        let parameters = self.object("rope_parameters")?;
        if let Some((key, value)) = parameters.and_then(|o| o.iter().find(|(key, _)| !key.ends_with("_attention"))) {
            let wanted = "in one of the tables full_attention and sliding_attention";
            return Err(Self::wrong(&format!("rope_parameters.{key}"), value, wanted));
        }
        self.whole_heads()?;
        let table = |kind: &str| parameters.map(|o| Fields(o).object(kind)).transpose().map(Option::flatten);
        let (full, sliding) = (table("full_attention")?, table("sliding_attention")?);
        let theta = |table: Option<&Map<String, Value>>, key: &str| {
            let nested = table.map(|o| Fields(o).number("rope_theta")).transpose()?.flatten();
            if nested.is_some() { Ok(nested) } else { self.number(key) }
        };
        let global = theta(full, "rope_theta")?.ok_or_else(|| {
            Error::input(
                "neither rope_theta nor rope_parameters.full_attention.rope_theta is there; add the model's own value",
            )
        })?;
        let scaling = self.object("rope_scaling")?.filter(|o| !o.is_empty()).map(|o| ("rope_scaling", o));
        let full = scaling.or(full.map(|o| ("rope_parameters.full_attention", o)));
        let sliding_table = sliding.map(|o| ("rope_parameters.sliding_attention", o));
        let local = match theta(sliding, "rope_local_base_freq")? {
            Some(theta) => Some(Rotation { theta, scaling: scaling_of(sliding_table, max_positions)? }),
            None => None,
        };
        Ok((Rotation { theta: global, scaling: scaling_of(full, max_positions)? }, local))
    }

    fn whole_heads(&self) -> Result<()> {
        match self.get("partial_rotary_factor").filter(|v| v.as_f64() != Some(1.0)) {
            None => Ok(()),
            Some(value) => Err(Self::wrong("partial_rotary_factor", value, "1: this decoder rotates whole heads only")),
        }
    }
}

/// The scaling that a table of parameters, found under a key, names.
fn scaling_of(table: Option<(&str, &Map<String, Value>)>, max_positions: usize) -> Result<RopeScaling> {
    let Some((key, table)) = table else { return Ok(RopeScaling::None) };
    let fields = Fields(table);
    let read = || {
        fields.whole_heads()?;
        if let Some((kind, _)) = table.iter().find(|(_, value)| value.is_object()) {
            return Err(Error::input(format!("parameters for {kind} alone are not supported in this architecture")));
        }
        let kind = fields.string("rope_type")?.or(fields.string("type")?).unwrap_or("default");
        RopeScaling::read(kind, |name| fields.number(name), max_positions)
    };
    read().map_err(|e| e.context(key))
}

impl ModelConfig {
    /// Writes into config.json what the layers are, where a rule over their numbers no longer says it.
    pub(super) fn write_layers(&mut self) {
        let mut set = |key: &str, value: Value| drop(self.raw.insert(key.into(), value));
        set(if self.family == Family::Gpt2 { "n_layer" } else { "num_hidden_layers" }, self.layers.into());
        if self.family == Family::SmolLm3 {
            let rotates = self.rotations.iter().map(|rotation| u8::from(rotation.is_some()).into());
            set("no_rope_layers", Value::Array(rotates.collect()));
        }
        let by_rule = !matches!(self.family, Family::Llama | Family::Mistral | Family::Gpt2)
            && self.windows.iter().any(Option::is_some);
        let gemma = matches!(self.family, Family::Gemma2 | Family::Gemma3);
        if by_rule || gemma || self.raw.contains_key("layer_types") {
            let types = self.windows.iter().map(|w| match w {
                Some(_) => "sliding_attention".into(),
                None => "full_attention".into(),
            });
            self.raw.insert("layer_types".into(), Value::Array(types.collect()));
        }
    }
}
