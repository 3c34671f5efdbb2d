//! A model folder's tokenizer: tokenizer.json and what the files beside it say about its special tokens.

use std::collections::HashMap;
use std::fmt::Display;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::chat::SpecialTokens;
use super::tokenizer_files::{GENERATION_CONFIG, MODEL_CONFIG, TOKENIZER, TOKENIZER_CONFIG, TokenizerFiles};
use super::tokenizer_parts;
use crate::printable::excerpt;
use crate::{Error, Result};

/// Text to token ids and back. Cheap to share between threads.
#[derive(Debug)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    files: TokenizerFiles,
    special: SpecialTokens,
    bos_id: Option<u32>,
    eos_id: Option<u32>,
    stop_ids: Vec<u32>,
    /// Texts that are one special token each, the longest first.
    special_texts: Vec<String>,
    /// The bytes that one of them starts with: all other positions of a text are passed over.
    special_starts: [bool; 256],
    vocab: HashMap<String, u32>,
}

impl TextTokenizer {
    /// [`Self::new`] of a model folder's files.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        Self::new(TokenizerFiles::read(dir)?)
    }

    /// Loads tokenizer.json. BOS and EOS come from tokenizer_config.json, then special_tokens_map.json, then the ids in
    /// generation_config.json and config.json. Truncation and padding stored in the file are switched off.
    ///
    /// Input errors: a file that is malformed, a special token that the vocabulary does not have.
    pub fn new(files: TokenizerFiles) -> Result<Self> {
        let path = files.path(TOKENIZER);
        let json = files.get(TOKENIZER).unwrap_or_default();
        let refuse = |e: &dyn Display| {
            Error::input(format!("{} is not a tokenizer: {}", path.display(), excerpt(&e.to_string())))
        };
        tokenizer_parts::check(json).map_err(|e| refuse(&e))?;
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(|e| refuse(&e))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| Error::input(format!("{}: {e}", path.display())))?;

        let named = [files.json(TOKENIZER_CONFIG)?, files.json("special_tokens_map.json")?];
        let numbered = [files.json(GENERATION_CONFIG)?, files.json(MODEL_CONFIG)?];
        let text = |name: &str| {
            named
                .iter()
                .find_map(|json| json[name].as_str().or_else(|| json[name]["content"].as_str()).map(str::to_owned))
        };
        let from_ids = |name: &str| numbered.iter().map(|json| ids(&json[name])).find(|ids| !ids.is_empty());
        let mut special = SpecialTokens {
            bos: text("bos_token"),
            eos: text("eos_token"),
            unk: text("unk_token"),
            pad: text("pad_token"),
        };
        for (token, name) in [(&mut special.bos, "bos_token_id"), (&mut special.eos, "eos_token_id")] {
            if token.is_none() {
                *token = from_ids(name).and_then(|ids| tokenizer.id_to_token(ids[0]));
            }
        }
        let id = |token: &Option<String>| -> Result<Option<u32>> {
            let Some(token) = token else { return Ok(None) };
            let id = tokenizer.token_to_id(token).ok_or_else(|| {
                Error::input(format!(
                    "{}: the special token \"{}\" is not in the vocabulary",
                    path.display(),
                    excerpt(token)
                ))
            })?;
            Ok(Some(id))
        };
        let (bos_id, eos_id) = (id(&special.bos)?, id(&special.eos)?);
        let mut stop_ids: Vec<u32> = eos_id.into_iter().collect();
        for json in &numbered {
            stop_ids.extend(ids(&json["eos_token_id"]));
        }
        let mut unique = std::collections::HashSet::new();
        stop_ids.retain(|&id| unique.insert(id));

        let added = tokenizer.get_added_tokens_decoder();
        let mut special_texts: Vec<String> = added.values().filter(|t| t.special).map(|t| t.content.clone()).collect();
        special_texts.extend([&special.bos, &special.eos, &special.pad].into_iter().flatten().cloned());
        special_texts.retain(|text| !text.is_empty());
        special_texts.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
        special_texts.dedup();

        let mut special_starts = [false; 256];
        special_texts.iter().for_each(|text| special_starts[text.as_bytes()[0] as usize] = true);

        let vocab = tokenizer.get_vocab(true);
        Ok(Self { tokenizer, files, special, bos_id, eos_id, stop_ids, special_texts, special_starts, vocab })
    }

    /// Where it came from: a folder, or the file it was made from.
    pub fn origin(&self) -> &Path {
        self.files.origin()
    }

    /// What it was loaded from.
    pub fn files(&self) -> &TokenizerFiles {
        &self.files
    }

    /// Token ids of `text`; with `add_special` the ones that the tokenizer itself puts around a text come along.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, add_special);
        let encoding =
            encoding.map_err(|e| Error::input(format!("cannot be tokenised: {}", excerpt(&e.to_string()))))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`; unknown ids are left out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.tokenizer.decode(ids, skip_special).map_err(|e| Error::run(format!("token ids cannot be decoded: {e}")))
    }

    /// One token for a message: its text where it is text by itself, else its name in the vocabulary; safe to print.
    pub fn token(&self, id: u32) -> String {
        // A decoder drops the space before a first word; the piece itself shows it.
        if let Some(piece) = self.tokenizer.id_to_token(id).filter(|piece| piece.contains('▁')) {
            return excerpt(&piece.replace('▁', " "));
        }
        let text = self.tokenizer.decode(&[id], false).ok().filter(|t| !t.is_empty() && !t.contains('\u{fffd}'));
        match text.or_else(|| self.tokenizer.id_to_token(id)) {
            Some(text) => excerpt(&text),
            None => format!("#{id}"),
        }
    }

    /// Number of tokens, added ones included. Ids may have holes: see [`TextTokenizer::max_token_id`].
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// The highest id that encoding can yield: a model needs more rows than that.
    pub fn max_token_id(&self) -> u32 {
        self.vocab.values().copied().max().unwrap_or(0)
    }

    /// SHA-256 over every token with its id, in the order of ids: the same for tokenizers that number the same tokens alike.
    pub fn vocabulary_digest(&self) -> [u8; 32] {
        let mut tokens: Vec<(u32, &str)> = self.vocab.iter().map(|(token, id)| (*id, token.as_str())).collect();
        tokens.sort_unstable();
        let mut hasher = Sha256::new();
        for (id, token) in tokens {
            hasher.update(id.to_le_bytes());
            hasher.update((token.len() as u64).to_le_bytes());
            hasher.update(token);
        }
        hasher.finalize().into()
    }

    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    pub fn eos_id(&self) -> Option<u32> {
        self.eos_id
    }

    /// Where generation stops: EOS, then what generation_config.json and config.json name besides.
    pub fn eos_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// Where `other` maps a token to another id, or None if the two vocabularies are the same map. Sizes decide nothing:
    /// two tokenizers of one size can number their tokens differently.
    pub fn vocabulary_difference(&self, other: &TextTokenizer) -> Option<String> {
        let shown = |id: Option<&u32>| id.map_or("absent".into(), |id| id.to_string());
        let mut different: Vec<(u32, &str)> = vec![];
        for (token, id) in &self.vocab {
            if other.vocab.get(token) != Some(id) {
                different.push((*id, token));
            }
        }
        different
            .extend(other.vocab.iter().filter(|(t, _)| !self.vocab.contains_key(*t)).map(|(t, id)| (*id, t.as_str())));
        if different.is_empty() {
            return None;
        }
        different.sort();
        let examples: Vec<String> = different
            .iter()
            .take(3)
            .map(|(_, t)| {
                format!("\"{}\" is {} and {}", excerpt(t), shown(self.vocab.get(*t)), shown(other.vocab.get(*t)))
            })
            .collect();
        let (ours, theirs) = (self.max_token_id(), other.max_token_id());
        let count = different.len();
        Some(format!("{count} tokens differ: {}; the highest ids are {ours} and {theirs}", examples.join(", ")))
    }

    /// Where a list of tokens, by id, is another vocabulary than this one; None if it is the same. Names that only the list
    /// has are its padding.
    pub fn difference_from(&self, tokens: &[String]) -> Option<String> {
        let other = |(token, id): &(&String, &u32)| tokens.get(**id as usize) != Some(*token);
        let mut different: Vec<(&String, &u32)> = self.vocab.iter().filter(other).collect();
        different.sort_by_key(|(_, id)| **id);
        let (token, id) = different.first()?;
        let theirs = tokens.get(**id as usize).map_or("absent".into(), |theirs| format!("\"{}\"", excerpt(theirs)));
        let count = different.len();
        Some(format!("{count} tokens differ: {id} is \"{}\" and {theirs}", excerpt(token)))
    }

    /// The first special token in `text` at or after byte `from`: where it starts and ends.
    pub(super) fn find_special(&self, text: &str, from: usize) -> Option<(usize, usize)> {
        let bytes = text.as_bytes();
        (from..bytes.len()).filter(|&at| self.special_starts[bytes[at] as usize]).find_map(|at| {
            let special = self.special_texts.iter().find(|s| bytes[at..].starts_with(s.as_bytes()))?;
            Some((at, at + special.len()))
        })
    }
}

fn ids(json: &Value) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match json {
        Value::Array(list) => list.iter().filter_map(one).collect(),
        other => one(other).into_iter().collect(),
    }
}
