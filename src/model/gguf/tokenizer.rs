//! The tokenizer of a GGUF file: a tokenizer.json that is given or lies beside it, or one built from the file's own metadata.

use std::path::Path;

use super::{Gguf, Value};
use crate::corpus::{Split, StoredSettings, StoredTokenizer, TextTokenizer, TokenKind, TokenizerFiles};
use crate::error::{Error, Result};

impl Gguf {
    /// The tokenizer in the folder `given`, else that of a tokenizer.json beside the file, each with what its folder does not
    /// say (special tokens, chat template) from the metadata; else one built from the metadata.
    ///
    /// Input errors: a tokenizer.json of another vocabulary, metadata that is missing, damaged, or of a tokenizer that is not
    /// built here; the message names the way out.
    pub fn tokenizer(&self, given: Option<&Path>) -> Result<TextTokenizer> {
        let beside = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let beside = Some(beside).filter(|folder| folder.join("tokenizer.json").exists());
        let Some(folder) = given.or(beside) else { return self.built_tokenizer() };
        let mut files = TokenizerFiles::read(folder)?;
        let settings = self.settings().and_then(|settings| settings.files(&self.path));
        files.complete(settings.map_err(|e| e.context(self.path.display()))?);
        let tokenizer = TextTokenizer::new(files)?;
        self.check_tokenizer(&tokenizer)?;
        Ok(tokenizer)
    }

    /// Refuses a tokenizer that numbers its tokens differently from the file.
    fn check_tokenizer(&self, tokenizer: &TextTokenizer) -> Result<()> {
        match tokenizer.difference_from(self.tokens()?) {
            None => Ok(()),
            Some(difference) => Err(Error::input(format!(
                "the tokenizer in {} is not that of {}: {difference}; {WAY_OUT}",
                tokenizer.origin().display(),
                self.path.display()
            ))),
        }
    }

    fn built_tokenizer(&self) -> Result<TextTokenizer> {
        let built = || TextTokenizer::new(self.stored_tokenizer()?.files(&self.path)?);
        let file = self.path.display();
        built()
            .map_err(|e| Error::input(format!("no tokenizer can be built from the metadata of {file}: {e}; {WAY_OUT}")))
    }

    /// The parts, as the metadata has them.
    fn stored_tokenizer(&self) -> Result<StoredTokenizer<'_>> {
        match self.text("tokenizer.ggml.model")? {
            Some("gpt2") => {}
            other => return Err(unsupported("tokenizer.ggml.model", other, "gpt2")),
        }
        let name = self.text("tokenizer.ggml.pre")?;
        let split = name.and_then(Split::named).ok_or_else(|| {
            let known: Vec<&str> = Split::ALL.iter().map(|(name, _)| *name).collect();
            unsupported("tokenizer.ggml.pre", name, &known.join(", "))
        })?;
        let settings = self.settings()?;
        let merges = match self.value("tokenizer.ggml.merges") {
            Some(Value::Texts(merges)) => merges.as_slice(),
            _ => return Err(Error::input("tokenizer.ggml.merges is missing")),
        };
        let (kinds, tokens) = (self.kinds(), settings.tokens.len());
        if kinds.len() != tokens {
            let n = kinds.len();
            return Err(Error::input(format!("tokenizer.ggml.token_type has {n} entries for {tokens} tokens")));
        }
        Ok(StoredTokenizer {
            split,
            kinds: kinds.iter().map(|kind| kind_of(*kind)).collect(),
            merges,
            add_bos: self.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(split.adds_bos()),
            add_eos: self.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            settings,
        })
    }

    fn settings(&self) -> Result<StoredSettings<'_>> {
        // Files without such a token may give the id of any: naming that one would make a word special.
        let kinds = self.kinds();
        let special =
            |id: &u32| kinds.get(*id as usize).is_some_and(|kind| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind));
        Ok(StoredSettings {
            tokens: self.tokens()?,
            bos: self.id("bos")?,
            eos: self.id("eos")?,
            unk: self.id("unknown")?.filter(special),
            pad: self.id("padding")?.filter(special),
            stops: [self.id("eot")?, self.id("eom")?].into_iter().flatten().collect(),
            chat_template: self.text("tokenizer.chat_template")?,
            context: self.config.max_position_embeddings,
        })
    }

    /// llama.cpp's number for the kind of each token.
    fn kinds(&self) -> &[f64] {
        match self.value("tokenizer.ggml.token_type") {
            Some(Value::Numbers(kinds)) => kinds,
            _ => &[],
        }
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.header.metadata.get(key)
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(Error::input(format!("{key} is not a text"))),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(Error::input(format!("{key} is not a boolean"))),
        }
    }

    /// `tokenizer.ggml.NAME_token_id`; all bits set mean none.
    fn id(&self, name: &str) -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let id = match self.value(&key) {
            None | Some(Value::Signed(-1)) => return Ok(None),
            Some(Value::Unsigned(id)) => u32::try_from(*id).ok(),
            Some(Value::Signed(id)) => u32::try_from(*id).ok(),
            Some(_) => None,
        };
        let id = id.ok_or_else(|| Error::input(format!("{key} is no token's id")))?;
        Ok(Some(id).filter(|id| *id != u32::MAX))
    }
}

const WAY_OUT: &str = "name the folder of this model's own tokenizer.json (teacher.tokenizer in a config, --tokenizer of \
                       export), or put its tokenizer.json beside the file";

fn unsupported(key: &str, found: Option<&str>, supported: &str) -> Error {
    match found {
        None => Error::input(format!("{key} is missing")),
        Some(found) => Error::input(format!("{key} is \"{}\"; supported: {supported}", found.escape_debug())),
    }
}

/// llama.cpp's numbers.
const UNKNOWN: f64 = 2.0;
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;
const UNUSED: f64 = 5.0;

/// Byte tokens are SentencePiece's, which is not built here.
fn kind_of(number: f64) -> TokenKind {
    match number {
        UNKNOWN | CONTROL => TokenKind::Control,
        USER_DEFINED => TokenKind::UserDefined,
        UNUSED => TokenKind::Unused,
        _ => TokenKind::Normal,
    }
}
