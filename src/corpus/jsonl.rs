//! One line of JSONL to one record, or the reason why not. Knows nothing of files, templates or tokens.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::fields::{Field, Fields, Top, Turn};
use crate::printable::excerpt;

/// The longest line that is read, in bytes: bounds the memory that one line can ask for.
pub const LONGEST_LINE: usize = 16 << 20;

const ROLES: [&str; 5] = ["system", "user", "assistant", "tool", "developer"];

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Message {
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// What a row says, before any template or tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// `{"messages": [{"role", "content"}, …]}`, not empty. Without an assistant turn it is a prompt.
    Chat(Vec<Message>),
    /// `{"prompt", "response"}`; the response is not empty.
    Pair { prompt: String, response: String },
    /// `{"prompt"}` alone: something to answer.
    Prompt(String),
    /// `{"text"}`, not empty.
    Text(String),
    /// One of the others with `"unfinished": true`: the last answer breaks off, so its end is nothing to learn.
    Unfinished(Box<Record>),
}

/// Why a line, or the record in it, cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where in its line, in characters from 1, if it stands at one place.
    pub column: Option<usize>,
    /// Safe to print.
    pub reason: String,
}

impl Fault {
    /// At the byte `byte` (from 0) of `line`, whose text up to there is UTF-8.
    fn at(line: &[u8], byte: usize, reason: String) -> Self {
        let before = &line[..byte.min(line.len())];
        // All bytes but those that go on with a character.
        let column = before.iter().filter(|b| **b & 0xc0 != 0x80).count() + 1;
        Self { column: Some(column), reason }
    }
}

impl<S: Into<String>> From<S> for Fault {
    fn from(reason: S) -> Self {
        Self { column: None, reason: reason.into() }
    }
}

impl Record {
    /// Parses one line without its line end. Where a row has several kinds of fields, `messages` wins over
    /// `prompt` and `response`, and these over `text`; every other field is ignored. A field that is null counts as absent
    /// as long as another kind is there.
    ///
    /// The error is a reason for a message, with its place in the line where there is one.
    pub fn parse(line: &[u8]) -> Result<Self, Fault> {
        let text = std::str::from_utf8(line).map_err(|e| Fault::at(line, e.valid_up_to(), "invalid UTF-8".into()))?;
        let top: Top = serde_json::from_str(text).map_err(|e| {
            let what = e.to_string();
            let what = what.rsplit_once(" at line ").map_or(what.as_str(), |(what, _)| what);
            // serde_json counts bytes from 1, and names the last one where the line is too short.
            Fault::at(line, e.column().saturating_sub(1), format!("malformed JSON: {}", excerpt(what)))
        })?;
        Ok(top.into_record()?)
    }

    /// Why a record is no row to learn from: it has nothing but a prompt. None: it has more.
    pub fn unanswered(&self) -> Option<&'static str> {
        match self {
            Self::Prompt(_) => {}
            Self::Chat(messages) if !messages.iter().any(|m| m.role == "assistant") => {}
            Self::Unfinished(record) => return record.unanswered(),
            _ => return None,
        }
        Some(
            "a prompt without a response has no target: give one (data.train may hold prompts alone where [rollout] has \
             them answered)",
        )
    }

    /// A 64-bit hash of the content: equal for a pair and for the conversation that says the same.
    /// Stable within one build only.
    pub fn content_hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        match self {
            Record::Chat(messages) => messages.hash(&mut hasher),
            Record::Pair { prompt, response } => {
                vec![Message::new("user", prompt), Message::new("assistant", response)].hash(&mut hasher)
            }
            Record::Prompt(prompt) => vec![Message::new("user", prompt)].hash(&mut hasher),
            Record::Text(text) => text.hash(&mut hasher),
            Record::Unfinished(record) => return record.content_hash(),
        }
        hasher.finish()
    }
}

impl Top {
    fn into_record(self) -> Result<Record, String> {
        let fields = match self {
            Top::Object(fields) => *fields,
            Top::Other(kind) => return Err(format!("a row must be a JSON object, found {kind}")),
        };
        if let Some(key) = fields.duplicate {
            return Err(format!("duplicate key {}", quoted(&key)));
        }
        match fields.unfinished {
            Some(true) => fields.into_record().map(|record| Record::Unfinished(Box::new(record))),
            _ => fields.into_record(),
        }
    }
}

impl Fields {
    fn into_record(self) -> Result<Record, String> {
        let fields = self;
        let given = |f: &Option<Field>| f.as_ref().is_some_and(|f| f.kind() != "null");
        let no_other = !given(&fields.prompt) && !given(&fields.response) && !given(&fields.completion);
        if given(&fields.messages) || (fields.messages.is_some() && no_other && !given(&fields.text)) {
            return conversation(fields.messages.expect("it is given"));
        }
        if given(&fields.response) && given(&fields.completion) {
            return Err(r#"both "response" and "completion": name one"#.into());
        }
        let response = if fields.completion.is_some() && !given(&fields.response) {
            fields.completion.map(|f| (r#""completion""#, f))
        } else {
            fields.response.map(|f| (r#""response""#, f))
        };
        match (fields.prompt, response, fields.text) {
            (prompt, response, Some(text))
                if no_other && (text.kind() != "null" || (prompt.is_none() && response.is_none())) =>
            {
                let text = text.text(r#""text""#)?;
                if text.is_empty() {
                    return Err(r#""text" is empty: the row has no target"#.into());
                }
                Ok(Record::Text(text))
            }
            (None, None, _) => Err(r#"missing fields: expected "messages", "prompt" and "response", or "text""#.into()),
            (None, Some(_), _) => Err(r#"missing field "prompt""#.into()),
            (Some(prompt), None, _) => Ok(Record::Prompt(prompt.text(r#""prompt""#)?)),
            (Some(prompt), Some((name, response)), _) => {
                let (prompt, response) = (prompt.text(r#""prompt""#)?, response.text(name)?);
                if response.is_empty() {
                    return Err(format!("{name} is empty: the row has no target"));
                }
                Ok(Record::Pair { prompt, response })
            }
        }
    }
}

fn conversation(messages: Field) -> Result<Record, String> {
    let turns = match messages {
        Field::Messages(turns) => turns,
        other => return Err(format!(r#""messages" must be an array, found {}"#, other.kind())),
    };
    let mut messages = Vec::with_capacity(turns.len());
    for (i, turn) in turns.into_iter().enumerate() {
        let (role, content) = match turn {
            Turn::Other(kind) => return Err(format!("messages[{i}] must be an object, found {kind}")),
            Turn::Object { duplicate: Some(key), .. } => {
                return Err(format!("duplicate key {} in messages[{i}]", quoted(&key)));
            }
            Turn::Object { calls_tools: true, .. } => {
                return Err(format!(r#"messages[{i}] has "tool_calls", which this version does not render"#));
            }
            Turn::Object { role, content, .. } => (role, content),
        };
        let role = role.ok_or_else(|| format!(r#"messages[{i}]: missing field "role""#))?;
        let role = role.text(&format!(r#"messages[{i}]: "role""#))?;
        if !ROLES.contains(&role.as_str()) {
            return Err(format!("messages[{i}]: unknown role {} (allowed: {})", quoted(&role), ROLES.join(", ")));
        }
        let content = content.ok_or_else(|| format!(r#"messages[{i}]: missing field "content""#))?;
        let content = content.text(&format!(r#"messages[{i}]: "content""#))?;
        messages.push(Message { role, content });
    }
    if messages.is_empty() {
        return Err(r#""messages" is empty"#.into());
    }
    Ok(Record::Chat(messages))
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", excerpt(text))
}
