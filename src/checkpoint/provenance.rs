//! provenance.json: what a model was made from, so that every claim about it can be held against the files it names.
//!
//! Nothing of wall time and of interruptions is in it: a run that was stopped and resumed writes the bytes of the unbroken
//! one. What a run does not have is absent. docs/provenance.md describes the fields.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::layout::PROVENANCE;
use super::manifest::{Damage, FileEntry, describe, unreadable};
use crate::corpus::{LossOn, TemplateChoice};
use crate::error::{Error, Result};
use crate::units::hex;

/// Raised when the meaning of a field changes.
const FORMAT: u32 = 1;

/// What stands in provenance.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    pub format: u32,
    /// The subcommand.
    pub made_by: String,
    /// Builds and machines that computed it, in the order in which they came: one, unless a run was resumed elsewhere.
    pub environments: Vec<Environment>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<Source>,
    /// Where the first weights come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub student: Option<Source>,
    pub tokenizer: Source,
    /// A chat template that is a file of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<FileAt>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corpus: Option<Corpus>,
    /// Rows that evaluations use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<FileAt>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Config>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<Training>,
    /// Every other file of the folder, where no manifest.json lists them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<BTreeMap<String, FileEntry>>,
    /// SHA-256 of this file with this field empty.
    pub digest: String,
}

/// What computed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// Of distill; absent where a checkpoint that did not record it was resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// SHA-256 of the program itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<String>,
    /// The CPU's instructions or the GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<String>,
    /// Where results depend on their number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
}

/// A file and what was in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileAt {
    pub path: PathBuf,
    /// In bytes.
    pub size: u64,
    pub sha256: String,
}

impl FileAt {
    pub fn new(path: PathBuf, FileEntry { size, sha256 }: FileEntry) -> Self {
        Self { path, size, sha256 }
    }

    pub fn entry(&self) -> FileEntry {
        FileEntry { size: self.size, sha256: self.sha256.clone() }
    }
}

/// A model, a tokenizer or a cache on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// As in the config: local, gguf, cache; fresh, pruned, lora. Of a tokenizer: folder or gguf.
    pub kind: String,
    pub path: PathBuf,
    /// `org/name@revision`, of what the hub's cache holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<String>,
    /// SHA-256 over the digests of its weights and its config, as caches name a teacher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// Of a tokenizer and of a cache: SHA-256 of the vocabulary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<String>,
    /// Of a cache: SHA-256 of its header without the list of its rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Of a cache: SHA-256 over the entries of the run's rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<License>,
    /// Its files, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, FileEntry>,
}

impl Source {
    /// Where a file of it is.
    pub fn file(&self, name: &str) -> PathBuf {
        let own = self.path.file_name().and_then(|own| own.to_str());
        match own.is_some_and(|own| self.files.contains_key(own)) {
            true => self.path.with_file_name(name),
            false => self.path.join(name),
        }
    }
}

/// On which terms a model may be used, as its own folder says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct License {
    /// As written, for example "apache-2.0".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Where that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said_in: Option<String>,
    /// The licence's text, one of the source's files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Corpus {
    pub files: Vec<FileAt>,
    /// Distinct rows up to here, as the next three.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<Rows>,
    /// Of responses that the teacher wrote: what these follow from, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub written_from: BTreeMap<String, String>,
    /// And the files whose prompts it answered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<PathBuf>,
}

/// What became of distinct rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rows {
    pub used: u64,
    pub dropped: u64,
    pub truncated: u64,
    pub rejected: u64,
}

/// The resolved config, but for the keys that a resumed run may change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// SHA-256 of `keys` as compact JSON.
    pub sha256: String,
    /// Dotted.
    pub keys: BTreeMap<String, serde_json::Value>,
}

impl Config {
    /// Errors: a value that JSON cannot hold.
    pub fn of(keys: BTreeMap<String, serde_json::Value>) -> Result<Self> {
        let text = serde_json::to_vec(&keys).map_err(|e| Error::run(format!("{PROVENANCE}: {e}")))?;
        Ok(Self { sha256: hex(&Sha256::digest(text)), keys })
    }
}

/// How far a run was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    pub seed: u64,
    pub steps: u64,
    pub target_tokens: u64,
    pub order: Order,
    /// What the student wrote itself and learnt from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollouts: Option<Rollouts>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollouts {
    pub rows: u64,
    /// Prompts not counted.
    pub tokens: u64,
}

/// The order in which rows of the corpus were read, and what it takes, besides corpus and tokenizer, to find it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// [`crate::corpus::LoaderState::order`] after the last step.
    pub digest: String,
    pub shuffle: bool,
    pub packing: bool,
    pub batch_size: usize,
    pub max_length: usize,
    pub loss_on: LossOn,
    pub chat_template: TemplateChoice,
    /// Whether prompts without a response are rows.
    pub prompts: bool,
}

impl Provenance {
    /// Of a model made by `made_by` with the tokenizer `tokenizer`; what else is known is filled in by the caller.
    pub fn new(made_by: &str, environments: Vec<Environment>, tokenizer: Source) -> Self {
        Self {
            format: FORMAT,
            made_by: made_by.into(),
            environments,
            teacher: None,
            student: None,
            tokenizer,
            chat_template: None,
            corpus: None,
            held_out: None,
            config: None,
            training: None,
            files: None,
            digest: String::new(),
        }
    }

    /// Writes provenance.json into the folder of a checkpoint, whose manifest lists its files.
    pub fn write(self, dir: &Path) -> Result<()> {
        let path = dir.join(PROVENANCE);
        let bytes = self.sealed().map_err(|e| Error::run(format!("cannot write {}: {e}", path.display())))?;
        fs::write(&path, bytes).map_err(|e| Error::unwritable(&path, e))
    }

    /// [`Self::write`] for a folder that stands by itself: with all files that are in it now.
    pub fn write_over(mut self, dir: &Path) -> Result<()> {
        self.files = Some(describe(dir, PROVENANCE)?);
        self.write(dir)
    }

    /// Reads and checks provenance.json of `dir`, not yet the files it lists.
    pub fn read(dir: &Path) -> Result<Self, Damage> {
        let file = dir.join(PROVENANCE);
        let bytes = fs::read(&file).map_err(|cause| unreadable(&file, cause))?;
        let altered = |reason: &str| Damage::Manifest { file: file.clone(), reason: reason.to_owned() };
        let json: serde_json::Value = serde_json::from_slice(&bytes).map_err(|cause| altered(&cause.to_string()))?;
        if let Some(found) = json["format"].as_u64().filter(|&found| found > FORMAT.into()) {
            return Err(Damage::NewerProvenance { file, found });
        }
        let provenance: Self = serde_json::from_value(json).map_err(|cause| altered(&cause.to_string()))?;
        // Compared as bytes, as a manifest is.
        if provenance.clone().sealed().ok() != Some(bytes) {
            return Err(altered("its own digest does not match"));
        }
        let mut names = provenance.files.iter().flatten().map(|(name, _)| name);
        match names.find(|name| Path::new(name).file_name() != Some(name.as_ref())) {
            Some(name) => Err(altered(&format!("{name:?} is no file name"))),
            None => Ok(provenance),
        }
    }

    /// The bytes of the file, its digest filled in. A path that is not UTF-8 cannot be written.
    fn sealed(mut self) -> serde_json::Result<Vec<u8>> {
        let bytes = |this: &Self| {
            serde_json::to_vec_pretty(this).map(|mut bytes| {
                bytes.push(b'\n');
                bytes
            })
        };
        self.digest.clear();
        self.digest = hex(&Sha256::digest(bytes(&self)?));
        bytes(&self)
    }
}
