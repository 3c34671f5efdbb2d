//! What a resumed run may not change: everything that would make it another run.

use std::collections::BTreeMap;

use super::types::RunConfig;
use crate::error::{Error, Result};

/// A key whose value differs; `None` where it is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub key: String,
    pub saved: Option<String>,
    pub new: Option<String>,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "absent".into());
        write!(f, "{}: {} in the run, now {}", self.key, text(&self.saved), text(&self.new))
    }
}

/// The length of the run, where it goes, and how often it looks at itself.
fn may_differ(key: &str) -> bool {
    matches!(key, "train.steps" | "train.epochs" | "train.max_time" | "eval.every_steps")
        // The way out of a record that turns out bad in the middle of a run.
        || matches!(key, "data.on_bad_record" | "data.max_bad")
        // Another machine may have other devices; what that changes is warned of.
        || matches!(key, "teacher.device" | "student.device")
        || key.starts_with("output.")
        || key.starts_with("checkpoint.")
}

/// The keys that make a run this one, dotted: all that a resumed run may not change.
///
/// # Errors
/// As [`super::to_toml`].
pub fn identity(config: &RunConfig) -> Result<BTreeMap<String, toml::Value>> {
    let mut keys = flat(config)?;
    keys.retain(|key, _| !may_differ(key));
    Ok(keys)
}

/// Every key that differs and may not, by name.
///
/// # Errors
/// As [`super::to_toml`].
pub fn resume_differences(saved: &RunConfig, new: &RunConfig) -> Result<Vec<Difference>> {
    let (saved, new) = (flat(saved)?, flat(new)?);
    let mut keys: Vec<&String> = saved.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    let differs = |key: &&String| saved.get(*key) != new.get(*key) && !may_differ(key);
    let difference = |key: &String| Difference {
        key: key.clone(),
        saved: saved.get(key).map(ToString::to_string),
        new: new.get(key).map(ToString::to_string),
    };
    Ok(keys.into_iter().filter(differs).map(difference).collect())
}

/// Dotted keys and their values.
pub fn flat(config: &RunConfig) -> Result<BTreeMap<String, toml::Value>> {
    let table =
        toml::Table::try_from(config).map_err(|e| Error::input(format!("the config cannot be written: {e}")))?;
    let mut flat = BTreeMap::new();
    for (name, value) in table {
        match value {
            toml::Value::Table(keys) => flat.extend(keys.into_iter().map(|(key, v)| (format!("{name}.{key}"), v))),
            value => drop(flat.insert(name, value)),
        }
    }
    Ok(flat)
}
