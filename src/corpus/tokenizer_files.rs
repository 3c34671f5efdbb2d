//! The files that make up a tokenizer, held in memory: what was read is what a checkpoint gets, whatever becomes of the folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::hub;
use crate::{Error, Result};

pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(super) const CHAT_TEMPLATE: &str = "chat_template.jinja";
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";
/// The model's, which may name ids; it is read but is no part of the tokenizer.
pub(super) const MODEL_CONFIG: &str = "config.json";

/// Files that are copied into every checkpoint, so that it is a complete model.
const OWN: [&str; 5] = [TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json", CHAT_TEMPLATE, GENERATION_CONFIG];

/// Files by name, and where they come from.
#[derive(Debug, Clone)]
pub struct TokenizerFiles {
    origin: PathBuf,
    files: Vec<(&'static str, Arc<[u8]>)>,
}

impl TokenizerFiles {
    /// Reads what a model folder has of them. Input errors: no tokenizer.json, and those of [`hub::read`].
    pub fn read(dir: &Path) -> Result<Self> {
        let mut files = vec![];
        for name in OWN.into_iter().chain([MODEL_CONFIG]) {
            let path = dir.join(name);
            if name == TOKENIZER || path.exists() {
                files.push((name, hub::read(&path)?.into()));
            }
        }
        Ok(Self { origin: dir.to_owned(), files })
    }

    /// The names that a tokenizer's own files may have.
    pub const NAMES: [&str; 5] = OWN;

    /// Files that were made from something else, which `origin` names.
    pub(super) fn made(origin: &Path, files: Vec<(&'static str, Vec<u8>)>) -> Self {
        let files = files.into_iter().map(|(name, content)| (name, content.into())).collect();
        Self { origin: origin.to_owned(), files }
    }

    /// Where they come from: a folder, or the file they were made from.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// The tokenizer's own files, for a checkpoint: names and contents.
    pub fn own(&self) -> impl Iterator<Item = (&'static str, &Arc<[u8]>)> {
        self.files.iter().filter(|(name, _)| *name != MODEL_CONFIG).map(|(name, content)| (*name, content))
    }

    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        self.files.iter().find(|(known, _)| *known == name).map(|(_, content)| content.as_ref())
    }

    /// Where a file is or would be, for a message.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.origin.join(name)
    }

    /// A JSON file; Null where there is none. An input error names it.
    pub(super) fn json(&self, name: &str) -> Result<Value> {
        let Some(bytes) = self.get(name) else { return Ok(Value::Null) };
        serde_json::from_slice(bytes)
            .map_err(|e| Error::input(format!("{} is not valid JSON: {e}", self.path(name).display())))
    }

    /// Takes from `other` the files that are missing here.
    pub fn complete(&mut self, other: Self) {
        let missing: Vec<_> = other.files.into_iter().filter(|(name, _)| self.get(name).is_none()).collect();
        self.files.extend(missing);
    }
}
