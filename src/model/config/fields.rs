//! Typed look-ups in a config.json.

use serde_json::{Map, Value};

use super::Family;
use crate::error::{Error, Result};

/// Typed look-ups whose errors name the key.
pub(super) struct Fields<'a>(pub &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The value, if there and not null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    pub fn wrong(key: &str, value: &Value, wanted: &str) -> Error {
        Error::input(format!("{key} is {value}; it must be {wanted}"))
    }

    pub fn string(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| Self::wrong(key, v, "a string"))).transpose()
    }

    pub fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        self.get(key).map(|v| v.as_object().ok_or_else(|| Self::wrong(key, v, "an object"))).transpose()
    }

    pub fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| Error::input(format!("{key} is missing")))
    }

    pub fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        // A bound far above every model, so that products of sizes never overflow.
        const LIMIT: u64 = 1 << 24;
        self.get(key)
            .map(|v| match v.as_u64() {
                Some(n) if (1..=LIMIT).contains(&n) => Ok(n as usize),
                _ => Err(Self::wrong(key, v, "a whole number from 1 to 16777216")),
            })
            .transpose()
    }

    /// A number of layers: each takes memory before a weight is read, so this bound is far lower than that of sizes.
    pub fn layers(&self, key: &str) -> Result<usize> {
        const MOST: usize = 4096;
        match self.size(key)? {
            layers if layers <= MOST => Ok(layers),
            layers => Err(Self::wrong(key, &layers.into(), &format!("a whole number from 1 to {MOST}"))),
        }
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key)
            .map(|v| v.as_f64().filter(|x| *x > 0.0).ok_or_else(|| Self::wrong(key, v, "a number above 0")))
            .transpose()
    }

    pub fn flag(&self, key: &str) -> Result<bool> {
        self.get(key).map_or(Ok(false), |v| v.as_bool().ok_or_else(|| Self::wrong(key, v, "true or false")))
    }

    /// [`Self::flag`] with a value for a key that is not there.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        if self.get(key).is_some() { self.flag(key) } else { Ok(default) }
    }

    /// A number above 0, or null for none; a missing key is refused, because its default is the family's.
    pub fn number_or_null(&self, key: &str) -> Result<Option<f64>> {
        match self.0.contains_key(key) {
            true => self.number(key),
            false => Err(Error::input(format!("{key} is missing; it must be a number, or null for none"))),
        }
    }

    /// Refuses a key that says `refused`: this decoder would compute something else.
    pub fn refuse_flag(&self, key: &str, refused: bool) -> Result<()> {
        match self.get(key).and_then(Value::as_bool) {
            Some(flag) if flag == refused => {
                Err(Error::input(format!("{key} is {flag}; this decoder has only {key} = {}", !refused)))
            }
            _ => Ok(()),
        }
    }

    /// Refuses any activation under `key` but those named.
    pub fn activation(&self, key: &str, family: Family, allowed: &[&str]) -> Result<()> {
        match self.string(key)?.filter(|name| !allowed.contains(name)) {
            None => Ok(()),
            Some(act) => {
                let (family, allowed) = (family.name(), allowed.join("\" and \""));
                Err(Error::input(format!("{key} is {act:?}; the {family} decoder here has only \"{allowed}\"")))
            }
        }
    }

    /// Whether each layer slides, as `layer_types` says; None without the key.
    pub fn layer_types(&self, layers: usize) -> Result<Option<Vec<bool>>> {
        let Some(value) = self.get("layer_types") else { return Ok(None) };
        let types = value.as_array().ok_or_else(|| Self::wrong("layer_types", value, "a list"))?;
        if types.len() != layers {
            return Err(Error::input(format!("layer_types names {} layers of {layers}", types.len())));
        }
        let slides = |t: &Value| match t.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(Self::wrong("layer_types", t, "\"full_attention\" or \"sliding_attention\"")),
        };
        types.iter().map(slides).collect::<Result<_>>().map(Some)
    }
}
