//! header.json: what is stored, of whom, and over which text.

use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::HEADER;
use super::codec::{Codec, Values};
use crate::error::{Error, Result};

const FORMAT: &str = "distill teacher cache";
/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;
/// Far above any header; a file beyond it is something else.
const LARGEST: u64 = 1 << 20;

/// Everything a reader has to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    pub(super) format: String,
    pub(super) version: u32,
    pub codec: Codec,
    pub values: Values,
    /// V, the logits of a row that count: the teacher's, or those of a student with fewer.
    pub vocab_size: usize,
    /// At which what a codec leaves out is known, each once; 1 is the first.
    pub temperatures: Vec<f64>,
    pub teacher: TeacherId,
    pub data: DataId,
    /// In the order of their blocks: a corpus, and what was added to it later.
    pub parts: Vec<Part>,
    /// None: all blocks are here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
}

/// Whose word it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeacherId {
    pub architecture: String,
    pub parameters: u64,
    /// What its products were rounded to.
    pub dtype: String,
    /// SHA-256 of its weights and its config, in hexadecimal digits.
    pub weights: String,
    /// SHA-256 of its vocabulary.
    pub tokenizer: String,
}

/// How text became rows of tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataId {
    /// SHA-256 of the template, or "none".
    pub chat_template: String,
    pub max_length: usize,
    pub loss_on: String,
}

/// Rows that were written together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// SHA-256 of the corpus they are of.
    pub corpus: String,
    pub rows: u64,
    pub targets: u64,
    pub blocks: u64,
}

/// Some of the blocks: those of a job array's task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// 0-based.
    pub index: u64,
    pub count: u64,
}

impl Shard {
    /// Its share of `blocks`: neighbours, and as even as whole blocks allow.
    pub fn of(self, blocks: u64) -> Range<u64> {
        let bound = |i: u64| (blocks as u128 * i as u128 / self.count as u128) as u64;
        bound(self.index)..bound(self.index + 1)
    }
}

impl Header {
    /// A header without rows. `temperatures` are completed by 1.
    pub fn new(
        codec: Codec,
        values: Values,
        vocab_size: usize,
        temperatures: &[f64],
        teacher: TeacherId,
        data: DataId,
    ) -> Self {
        let mut all = vec![1.0];
        temperatures.iter().for_each(|t| {
            if !all.contains(t) {
                all.push(*t);
            }
        });
        let (format, version) = (FORMAT.to_owned(), VERSION);
        Self {
            format,
            version,
            codec,
            values,
            vocab_size,
            temperatures: all,
            teacher,
            data,
            parts: vec![],
            shard: None,
        }
    }

    /// Blocks of all parts.
    pub fn blocks(&self) -> u64 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.blocks))
    }

    /// Rows of all parts.
    pub fn rows(&self) -> u64 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.rows))
    }

    /// Targets of all parts.
    pub fn targets(&self) -> u64 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.targets))
    }

    /// Where `temperature` stands in `temperatures`.
    pub fn temperature(&self, temperature: f64) -> Option<usize> {
        self.temperatures.iter().position(|t| *t == temperature)
    }

    /// The first field by which `other` is not the same signal of the same teacher over the same kind of rows, with both
    /// values. Which rows there are does not matter.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let fields = |header: &Self| -> Vec<(&str, String)> {
            let (t, d) = (&header.teacher, &header.data);
            vec![
                ("codec", format!("{}", header.codec)),
                ("values", header.values.to_string()),
                ("vocab_size", header.vocab_size.to_string()),
                ("temperatures", format!("{:?}", header.temperatures)),
                ("teacher.architecture", t.architecture.clone()),
                ("teacher.parameters", t.parameters.to_string()),
                ("teacher.dtype", t.dtype.clone()),
                ("teacher.weights", t.weights.clone()),
                ("teacher.tokenizer", t.tokenizer.clone()),
                ("data.chat_template", d.chat_template.clone()),
                ("data.max_length", d.max_length.to_string()),
                ("data.loss_on", d.loss_on.clone()),
            ]
        };
        let pairs = fields(self).into_iter().zip(fields(other));
        pairs.filter(|(a, b)| a != b).map(|((name, a), (_, b))| format!("{name}: {a} and {b}")).next()
    }

    /// A digest of everything but which rows there are: every block names it, so that none is taken for another cache's.
    pub fn identity(&self) -> Result<[u8; 32]> {
        let bare = Self { parts: vec![], shard: None, ..self.clone() };
        Ok(Sha256::digest(bare.to_bytes()?).into())
    }

    /// The bytes of header.json: the same for the same header.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::run(format!("{HEADER}: {e}")))?;
        Ok((text + "\n").into_bytes())
    }

    /// Reads `dir`/header.json, and the SHA-256 of its bytes.
    ///
    /// Input errors: it is missing, malformed, of another version, or says what cannot be.
    pub fn read(dir: &Path) -> Result<(Self, [u8; 32])> {
        let path = dir.join(HEADER);
        let unreadable = |cause| Error::unreadable(&path, cause);
        let length = path.metadata().map_err(unreadable)?.len();
        if length > LARGEST {
            return Err(Error::input(format!("{} is {length} bytes long: not a cache's header", path.display())));
        }
        let bytes = std::fs::read(&path).map_err(unreadable)?;
        let header = Self::parse(&bytes).map_err(|reason| Error::input(format!("{}: {reason}", path.display())))?;
        Ok((header, Sha256::digest(&bytes).into()))
    }

    fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        #[derive(Deserialize)]
        struct Kind {
            format: String,
            version: u32,
        }
        let kind: Kind = serde_json::from_slice(bytes).map_err(|e| format!("not a cache's header: {e}"))?;
        if kind.format != FORMAT {
            return Err(format!("format is {:?}, wanted {FORMAT:?}", kind.format));
        }
        if kind.version != VERSION {
            return Err(format!(
                "the cache has version {}, this program reads version {VERSION}: make the cache again",
                kind.version
            ));
        }
        let header: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let limit = |name: &str, value: usize, least: usize, most: usize| match (least..=most).contains(&value) {
            true => Ok(()),
            false => Err(format!("{name} is {value}, allowed: {least} to {most}")),
        };
        limit("vocab_size", self.vocab_size, 1, 1 << 28)?;
        limit("data.max_length", self.data.max_length, 2, 1 << 24)?;
        limit("the number of temperatures", self.temperatures.len(), 1, 64)?;
        if self.temperatures[0] != 1.0 || !self.temperatures.iter().all(|t| t.is_finite() && *t > 0.0) {
            return Err(format!("temperatures are {:?}, wanted positive numbers, 1 first", self.temperatures));
        }
        match self.codec {
            Codec::TopK { k } => limit("k", k, 1, self.vocab_size)?,
            Codec::Sampled { draws, temperature, .. } => {
                limit("draws", draws, 1, u16::MAX as usize)?;
                self.temperature(temperature)
                    .ok_or(format!("draws at the temperature {temperature}, which is not listed"))?;
            }
            Codec::Dense => {}
        }
        match self.shard {
            Some(Shard { index, count }) if index >= count => Err(format!("shard {index} of {count} does not exist")),
            _ => Ok(()),
        }
    }
}
