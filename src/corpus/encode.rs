//! A record to rows of token ids, with the mask of the tokens that are to be predicted. DESIGN's "Which tokens count" is here
//! and nowhere else.

use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::batch::{Row, RowRef};
use super::chat::ChatTemplate;
use super::index::Place;
use super::jsonl::{Message, Record};
use super::tokenizer::TextTokenizer;
use super::turns::{Turn, Turns};
use crate::{Error, Result};

/// Which tokens of a row are targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossOn {
    /// What the assistant says, with the token that ends its turn.
    #[default]
    Completion,
    /// Every token but the first.
    All,
}

/// Which chat template turns conversations into text.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TemplateChoice {
    /// The one in the tokenizer's folder.
    #[default]
    Auto,
    /// None: a prompt and its response as they stand.
    Off,
    File(PathBuf),
}

/// A row, or where it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedRow {
    /// None: no target was left, the row is dropped.
    pub row: Option<Row>,
    /// Tokens beyond `max_length` were cut off.
    pub truncated: bool,
}

/// What one record became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// In the order of the turns; one row unless `split`.
    pub rows: Vec<EncodedRow>,
    /// The template rewrites earlier turns, so each assistant turn is a row of its own.
    pub split: bool,
}

/// Why a record became nothing.
#[derive(Debug)]
pub enum EncodeError {
    /// The record is at fault: a reason, safe to print. `on_bad_record` decides.
    Record(String),
    /// The set-up is at fault: no record would pass.
    Setup(Error),
}

impl From<String> for EncodeError {
    fn from(reason: String) -> Self {
        Self::Record(reason)
    }
}

/// Turns records into rows. Cheap to share between threads.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Arc<TextTokenizer>,
    template: Template,
    eos: u32,
    max_length: usize,
    loss_on: LossOn,
    /// Whether something to answer is a row.
    prompts: bool,
}

#[derive(Debug)]
enum Template {
    Chat(ChatTemplate),
    Off,
    /// Asked for, but the folder has none: an error as soon as a record needs it (`text` rows do not).
    Missing,
}

/// Tokens as they are laid end to end.
#[derive(Default)]
struct Tokens {
    ids: Vec<u32>,
    targets: Vec<bool>,
}

impl Tokens {
    fn extend(&mut self, ids: &[u32], target: bool) {
        self.ids.extend_from_slice(ids);
        self.targets.resize(self.ids.len(), target);
    }
}

impl Encoder {
    /// Input errors: a template that cannot be read or does not compile, a tokenizer that names no EOS token,
    /// a `max_length` below 2 (one token has nothing to be predicted from).
    pub fn new(
        tokenizer: Arc<TextTokenizer>,
        choice: &TemplateChoice,
        max_length: usize,
        loss_on: LossOn,
    ) -> Result<Self> {
        let special = tokenizer.special().clone();
        let template = match choice {
            TemplateChoice::Off => Template::Off,
            TemplateChoice::File(file) => Template::Chat(ChatTemplate::from_file(file, special)?),
            TemplateChoice::Auto => {
                ChatTemplate::of(tokenizer.files(), special)?.map_or(Template::Missing, Template::Chat)
            }
        };
        let eos = tokenizer.eos_id().ok_or_else(|| {
            let origin = tokenizer.origin().display();
            Error::input(format!(
                "the tokenizer in {origin} names no end-of-sequence token: set eos_token in tokenizer_config.json"
            ))
        })?;
        if max_length < 2 {
            return Err(Error::input(format!("max_length = {max_length}: a row needs at least 2 tokens")));
        }
        Ok(Self { tokenizer, template, eos, max_length, loss_on, prompts: false })
    }

    /// Takes prompts without a response too, as rows without a target.
    pub fn with_prompts(mut self) -> Self {
        self.prompts = true;
        self
    }

    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// SHA-256 of the chat template, where there is one.
    pub fn template_digest(&self) -> Option<[u8; 32]> {
        match &self.template {
            Template::Chat(template) => Some(template.digest()),
            Template::Off | Template::Missing => None,
        }
    }

    /// The rows of `record`, which stands at `place`.
    pub fn encode(&self, record: &Record, place: &Place) -> Result<Encoded, EncodeError> {
        let mut rows = vec![];
        let (record, unfinished) = match record {
            Record::Unfinished(record) => (&**record, true),
            record => (record, false),
        };
        match (record, &self.template) {
            (Record::Unfinished(_), _) => return Err("a row is unfinished once".to_string().into()),
            (Record::Text(text), _) => rows.push(self.text(text)?),
            (_, Template::Missing) => return Err(EncodeError::Setup(self.missing())),
            (Record::Chat(_), Template::Off) => {
                return Err(r#""messages" need a chat template, and chat_template is "none""#.to_string().into());
            }
            (Record::Prompt(prompt), _) => return self.unanswered(self.prompt_ids(prompt), place),
            (Record::Chat(messages), _) if !messages.iter().any(|m| m.role == "assistant") => {
                return self.unanswered(self.conversation_ids(messages), place);
            }
            (Record::Pair { prompt, response }, Template::Off) => rows.push(self.pair(prompt, response)?),
            (Record::Pair { prompt, response }, Template::Chat(template)) => {
                let messages = vec![Message::new("user", prompt), Message::new("assistant", response)];
                rows = self.chat(template, messages, unfinished)?;
            }
            (Record::Chat(messages), Template::Chat(template)) => {
                rows = self.chat(template, messages.clone(), unfinished)?;
            }
        }
        // What would end the last answer is the last token: of a pair and of a text EOS, of a conversation its turn's end.
        if let Some(last) = rows.last_mut().filter(|_| unfinished) {
            last.ids.pop();
            last.targets.pop();
        }
        let split = rows.len() > 1;
        Ok(Encoded { rows: rows.into_iter().map(|tokens| self.finish(tokens, place)).collect(), split })
    }

    /// A row without a target: something for the student to answer, with room for a token at least.
    fn unanswered(&self, ids: Result<Vec<u32>>, place: &Place) -> Result<Encoded, EncodeError> {
        if !self.prompts {
            return Err(EncodeError::Record("a prompt without a response has no target".into()));
        }
        let tokens = ids.map_err(|e| match &self.template {
            Template::Chat(template) if template.hung() => EncodeError::Setup(e),
            _ => EncodeError::Record(e.to_string()),
        })?;
        let row = (tokens.len() < self.max_length && !tokens.is_empty()).then(|| {
            let targets = vec![false; tokens.len()];
            let source = RowRef { digest: row_digest(&tokens, &targets), file: place.file.clone(), line: place.line };
            Row { tokens, targets, source }
        });
        Ok(Encoded { rows: vec![EncodedRow { row, truncated: false }], split: false })
    }

    /// What a model is given to answer `prompt`: through the chat template with its generation prompt, or as it stands
    /// with the tokenizer's own special tokens.
    pub fn prompt_ids(&self, prompt: &str) -> Result<Vec<u32>> {
        match &self.template {
            Template::Off => self.tokenizer.encode(prompt, true),
            _ => self.conversation_ids(&[Message::new("user", prompt)]),
        }
    }

    /// What a model is given to continue a conversation; needs a chat template.
    pub fn conversation_ids(&self, messages: &[Message]) -> Result<Vec<u32>> {
        match &self.template {
            Template::Chat(template) => self.tokenizer.encode(&template.render(messages, true)?, false),
            Template::Off => Err(Error::input("a conversation needs a chat template, and chat_template is \"none\"")),
            Template::Missing => Err(self.missing()),
        }
    }

    fn missing(&self) -> Error {
        Error::input(format!(
            "{} has no chat template (neither chat_template.jinja nor chat_template in tokenizer_config.json): \
             name a file, or set chat_template = \"none\" (on the command line --chat-template none) to take text as it stands",
            self.tokenizer.origin().display()
        ))
    }

    fn ids(&self, text: &str, add_special: bool) -> Result<Vec<u32>, String> {
        self.tokenizer.encode(text, add_special).map_err(|e| e.to_string())
    }

    fn text(&self, text: &str) -> Result<Tokens, String> {
        let mut tokens = Tokens::default();
        tokens.extend(&self.ids(text, true)?, true);
        // Some tokenizers end every text with EOS by themselves.
        if tokens.ids.last() != Some(&self.eos) {
            tokens.extend(&[self.eos], true);
        }
        Ok(tokens)
    }

    fn pair(&self, prompt: &str, response: &str) -> Result<Tokens, String> {
        let mut tokens = Tokens::default();
        tokens.extend(&self.ids(prompt, true)?, false);
        tokens.extend(&self.ids(response, false)?, true);
        tokens.extend(&[self.eos], true);
        Ok(tokens)
    }

    fn chat(
        &self,
        template: &ChatTemplate,
        messages: Vec<Message>,
        unfinished: bool,
    ) -> Result<Vec<Tokens>, EncodeError> {
        let turns = Turns::find(template, &self.tokenizer, messages).map_err(|reason| match template.hung() {
            // No record passes after that, and what was left behind goes on eating: the run must end.
            true => EncodeError::Setup(Error::input(reason)),
            false => EncodeError::Record(reason),
        })?;
        match turns {
            Turns::Together { turns, tail } => {
                let mut tokens = Tokens::default();
                for turn in &turns {
                    self.append(&mut tokens, turn)?;
                }
                // Nothing after the last answer is predicted, unless everything is.
                if self.loss_on == LossOn::All && !unfinished {
                    tokens.extend(&self.ids(&tail, false)?, true);
                }
                Ok(vec![tokens])
            }
            Turns::Apart(turns) => {
                let row = |turn| {
                    let mut tokens = Tokens::default();
                    self.append(&mut tokens, turn).map(|()| tokens)
                };
                Ok(turns.iter().map(row).collect::<Result<_, String>>()?)
            }
        }
    }

    /// Context and answer are encoded apart, as they are at inference, where the answer is generated after the context.
    fn append(&self, tokens: &mut Tokens, turn: &Turn) -> Result<(), String> {
        tokens.extend(&self.ids(&turn.context, false)?, false);
        tokens.extend(&self.ids(&turn.answer, false)?, true);
        if !turn.ended {
            tokens.extend(&[self.eos], true);
        }
        Ok(())
    }

    fn finish(&self, tokens: Tokens, place: &Place) -> EncodedRow {
        let Tokens { mut ids, mut targets } = tokens;
        let truncated = ids.len() > self.max_length;
        ids.truncate(self.max_length);
        targets.truncate(self.max_length);
        if self.loss_on == LossOn::All {
            targets.fill(true);
        }
        if let Some(first) = targets.first_mut() {
            *first = false;
        }
        if !targets.contains(&true) {
            return EncodedRow { row: None, truncated };
        }
        let source = RowRef { digest: row_digest(&ids, &targets), file: place.file.clone(), line: place.line };
        ids.shrink_to_fit();
        targets.shrink_to_fit();
        EncodedRow { row: Some(Row { tokens: ids, targets, source }), truncated }
    }
}

/// SHA-256 over the ids, four little-endian bytes each, then the mask, one byte (0 or 1) each.
pub fn row_digest(ids: &[u32], targets: &[bool]) -> [u8; 32] {
    let mut bytes = Vec::with_capacity(5 * ids.len());
    ids.iter().for_each(|id| bytes.extend(id.to_le_bytes()));
    bytes.extend(targets.iter().map(|&t| t as u8));
    Sha256::digest(&bytes).into()
}
