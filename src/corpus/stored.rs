//! A byte-level BPE tokenizer as a model file carries it (tokens, merges, the name of the way text is split), written out as
//! the files that a model folder would have.

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::tokenizer_files::{GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, TokenizerFiles};
use crate::printable::excerpt;
use crate::{Error, Result};

/// How text is cut into words before merges apply, by the names that llama.cpp's converter gives. Each is the model's
/// original tokenizer.json, where llama.cpp differs too: it does not normalise Qwen's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    Gpt2,
    /// GPT-2's, and every digit by itself.
    SmolLm,
    Qwen2,
    /// Llama 3's. A word that is a token is taken whole, whatever the merges make of it.
    LlamaBpe,
}

impl Split {
    pub const ALL: [(&'static str, Self); 4] =
        [("gpt-2", Self::Gpt2), ("smollm", Self::SmolLm), ("qwen2", Self::Qwen2), ("llama-bpe", Self::LlamaBpe)];

    /// The split called `name`, if it is one of [`Self::ALL`].
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, split)| split)
    }

    /// Whether a text begins with BOS where the file does not say.
    pub fn adds_bos(self) -> bool {
        self == Self::LlamaBpe
    }

    /// The `pre_tokenizer` of tokenizer.json.
    fn json(self) -> Value {
        let bytes = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
        let sequence = |first: Value, bytes: Value| json!({ "type": "Sequence", "pretokenizers": [first, bytes] });
        // Qwen's numbers are single digits, Llama's are cut into threes; the rest is one expression.
        let pattern = |number: &str| {
            let text = format!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{number}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            );
            json!({ "type": "Split", "pattern": { "Regex": text }, "behavior": "Isolated", "invert": false })
        };
        match self {
            Self::Gpt2 => bytes(true),
            Self::SmolLm => sequence(json!({ "type": "Digits", "individual_digits": true }), bytes(true)),
            Self::Qwen2 => sequence(pattern(r"\p{N}"), bytes(false)),
            Self::LlamaBpe => sequence(pattern(r"\p{N}{1,3}"), bytes(false)),
        }
    }
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Reached by merges.
    Normal,
    /// Found in text as it stands, and no text itself.
    Control,
    /// Found in text as it stands.
    UserDefined,
    /// A row of the embedding that no text reaches.
    Unused,
}

/// A tokenizer in parts.
#[derive(Debug, Clone)]
pub struct StoredTokenizer<'a> {
    pub split: Split,
    /// Of each token.
    pub kinds: Vec<TokenKind>,
    /// "left right", the first to apply first.
    pub merges: &'a [String],
    pub add_bos: bool,
    pub add_eos: bool,
    pub settings: StoredSettings<'a>,
}

/// What a file says of its tokens besides how text becomes them.
#[derive(Debug, Clone)]
pub struct StoredSettings<'a> {
    /// By id.
    pub tokens: &'a [String],
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unk: Option<u32>,
    pub pad: Option<u32>,
    /// Where generation stops besides EOS.
    pub stops: Vec<u32>,
    pub chat_template: Option<&'a str>,
    /// Tokens the model was made for.
    pub context: usize,
}

impl StoredTokenizer<'_> {
    /// tokenizer.json, tokenizer_config.json and generation_config.json, as transformers reads them. `origin` is the file it
    /// comes from.
    ///
    /// Input errors: a token that is there twice, a merge that is none, an id without a token.
    pub fn files(&self, origin: &Path) -> Result<TokenizerFiles> {
        let mut files = TokenizerFiles::made(origin, vec![(TOKENIZER, text(&self.tokenizer()?))]);
        files.complete(self.settings.files(origin)?);
        Ok(files)
    }

    fn tokenizer(&self) -> Result<Value> {
        let mut vocab = Map::new();
        let mut added = vec![];
        for (id, (token, kind)) in self.settings.tokens.iter().zip(&self.kinds).enumerate() {
            if *kind == TokenKind::Unused {
                continue;
            }
            if let Some(first) = vocab.insert(token.clone(), id.into()) {
                return Err(Error::input(format!("the tokens {first} and {id} are both \"{}\"", excerpt(token))));
            }
            // transformers makes BOS and EOS special whatever the file says.
            let named = [self.settings.bos, self.settings.eos].contains(&Some(id as u32));
            if named || *kind != TokenKind::Normal {
                added.push(json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                    "special": named || *kind == TokenKind::Control
                }));
            }
        }
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": if self.split == Split::Qwen2 { json!({ "type": "NFC" }) } else { Value::Null },
            "pre_tokenizer": self.split.json(),
            "post_processor": self.post_processor()?,
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": self.split == Split::LlamaBpe, "merges": self.merges(&vocab)?, "vocab": vocab,
            },
        }))
    }

    /// Pairs of tokens that together are a token.
    fn merges(&self, vocab: &Map<String, Value>) -> Result<Vec<[&str; 2]>> {
        let mut seen = HashSet::new();
        let mut pairs = vec![];
        for (i, merge) in self.merges.iter().enumerate() {
            let wrong = |why: &str| Err(Error::input(format!("merge {i} is \"{}\", {why}", excerpt(merge))));
            let Some((left, right)) = merge.split_once(' ') else {
                return wrong("not two tokens with a space between");
            };
            if ![left, right, &[left, right].concat()].iter().all(|token| vocab.contains_key(*token)) {
                return wrong("but one of the two, or both together, is no token");
            }
            if !seen.insert(merge) {
                return wrong("for the second time");
            }
            pairs.push([left, right]);
        }
        Ok(pairs)
    }

    /// What encoding with special tokens puts around a text.
    fn post_processor(&self) -> Result<Value> {
        let mut special = Map::new();
        let mut place = |wanted: bool, id: Option<u32>, what: &str| -> Result<Vec<Value>> {
            if !wanted {
                return Ok(vec![]);
            }
            let id = id.ok_or_else(|| Error::input(format!("{what} is missing, and every text is to have it")))?;
            let token = self.settings.token(id, what)?;
            special.insert(token.into(), json!({ "id": token, "ids": [id], "tokens": [token] }));
            Ok(vec![json!({ "SpecialToken": { "id": token, "type_id": 0 } })])
        };
        let before = place(self.add_bos, self.settings.bos, "the BOS id")?;
        let after = place(self.add_eos, self.settings.eos, "the EOS id")?;
        let around =
            |name: &str| [&before[..], &[json!({ "Sequence": { "id": name, "type_id": 0 } })], &after].concat();
        let (single, pair) = (around("A"), [around("A"), around("B")].concat());
        Ok(json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special }))
    }
}

impl StoredSettings<'_> {
    /// tokenizer_config.json and generation_config.json.
    ///
    /// Input errors: an id without a token.
    pub fn files(&self, origin: &Path) -> Result<TokenizerFiles> {
        let files = vec![
            (TOKENIZER_CONFIG, text(&self.tokenizer_config()?)),
            (GENERATION_CONFIG, text(&self.generation_config())),
        ];
        Ok(TokenizerFiles::made(origin, files))
    }

    fn token(&self, id: u32, what: &str) -> Result<&str> {
        let beyond =
            || Error::input(format!("{what} is {id}; the ids are 0 to {}", self.tokens.len().saturating_sub(1)));
        self.tokens.get(id as usize).map(String::as_str).ok_or_else(beyond)
    }

    fn tokenizer_config(&self) -> Result<Value> {
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        let named =
            [("bos_token", self.bos), ("eos_token", self.eos), ("unk_token", self.unk), ("pad_token", self.pad)];
        for (key, id) in named.into_iter().filter_map(|(key, id)| Some((key, id?))) {
            config.insert(key.into(), self.token(id, key)?.into());
        }
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        config.insert("model_max_length".into(), self.context.into());
        if let Some(template) = self.chat_template {
            config.insert("chat_template".into(), template.into());
        }
        Ok(Value::Object(config))
    }

    fn generation_config(&self) -> Value {
        let mut config = Map::new();
        config.extend(self.bos.map(|id| ("bos_token_id".into(), id.into())));
        let mut stops: Vec<u32> = self.eos.into_iter().collect();
        for id in &self.stops {
            if !stops.contains(id) && (*id as usize) < self.tokens.len() {
                stops.push(*id);
            }
        }
        match *stops {
            [] => {}
            [one] => drop(config.insert("eos_token_id".into(), one.into())),
            _ => drop(config.insert("eos_token_id".into(), stops.into())),
        }
        Value::Object(config)
    }
}

fn text(json: &Value) -> Vec<u8> {
    (format!("{json:#}") + "\n").into_bytes()
}
