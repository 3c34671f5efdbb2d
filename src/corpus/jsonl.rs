//! One line of JSONL to one record, or the reason why not. Knows nothing of files, templates or tokens.

use std::collections::HashSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::printable::printable;

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
    /// `{"messages": [{"role", "content"}, …]}` with at least one assistant turn.
    Chat(Vec<Message>),
    /// `{"prompt", "response"}`; the response is not empty.
    Pair { prompt: String, response: String },
    /// `{"text"}`, not empty.
    Text(String),
}

impl Record {
    /// Parses one line without its line end. Where a row has several kinds of fields, `messages` wins over
    /// `prompt` and `response`, and these over `text`; every other field is ignored. A field that is null counts as absent
    /// as long as another kind is there.
    ///
    /// The error is a reason for a message, safe to print.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        let line = std::str::from_utf8(line).map_err(|e| format!("invalid UTF-8 at byte {}", e.valid_up_to() + 1))?;
        let top: Top = serde_json::from_str(line).map_err(|e| {
            let text = e.to_string();
            let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
            format!("malformed JSON at column {}: {}", e.column(), printable(text))
        })?;
        top.into_record()
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
            Record::Text(text) => text.hash(&mut hasher),
        }
        hasher.finish()
    }
}

/// A value as far as its type decides anything. Containers are walked without being kept.
#[derive(Debug)]
enum Field {
    Text(String),
    Messages(Vec<Turn>),
    /// Of another type, named as JSON names it.
    Other(&'static str),
}

impl Field {
    fn kind(&self) -> &'static str {
        match self {
            Field::Text(_) => "string",
            Field::Messages(_) => "array",
            Field::Other(kind) => kind,
        }
    }

    fn text(self, name: &str) -> Result<String, String> {
        match self {
            Field::Text(text) => Ok(text),
            other => Err(format!("{name} must be a string, found {}", other.kind())),
        }
    }
}

/// One element of `messages`.
#[derive(Debug)]
enum Turn {
    Object { role: Option<Field>, content: Option<Field>, calls_tools: bool, duplicate: Option<String> },
    Other(&'static str),
}

#[derive(Debug, Default)]
struct Fields {
    messages: Option<Field>,
    prompt: Option<Field>,
    response: Option<Field>,
    completion: Option<Field>,
    text: Option<Field>,
    duplicate: Option<String>,
}

enum Top {
    Object(Box<Fields>),
    Other(&'static str),
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
            (Some(prompt), None, _) => {
                prompt.text(r#""prompt""#)?;
                Err(r#"a "prompt" without a "response" has no target: it needs rollouts, which this version does not have"#.into())
            }
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
    if !messages.iter().any(|m| m.role == "assistant") {
        return Err(r#""messages" has no assistant turn: the row has no target"#.into());
    }
    Ok(Record::Chat(messages))
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", printable(text))
}

/// Walks the rest of an object; `take` sees each key once and may read its value. Returns the first repeated key.
fn walk<'de, M: MapAccess<'de>>(
    map: &mut M,
    mut take: impl FnMut(&str, &mut M) -> Result<bool, M::Error>,
) -> Result<Option<String>, M::Error> {
    let (mut seen, mut duplicate) = (HashSet::new(), None);
    while let Some(key) = map.next_key::<String>()? {
        let repeated = seen.contains(&key);
        if repeated || !take(&key, map)? {
            map.next_value::<IgnoredAny>()?;
        }
        if repeated {
            duplicate.get_or_insert(key);
        } else {
            seen.insert(key);
        }
    }
    Ok(duplicate)
}

/// The visitor methods of every value whose type alone matters.
macro_rules! scalars {
    ($make:expr) => {
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("any JSON value")
        }
        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok($make("boolean"))
        }
        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok($make("number"))
        }
        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok($make("number"))
        }
        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok($make("number"))
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok($make("null"))
        }
    };
}

fn skip_array<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<(), A::Error> {
    while seq.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}

impl<'de> Deserialize<'de> for Top {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Top;
            scalars!(Top::Other);
            fn visit_str<E>(self, _: &str) -> Result<Top, E> {
                Ok(Top::Other("string"))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Top, A::Error> {
                skip_array(seq).map(|()| Top::Other("array"))
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Top, M::Error> {
                let mut fields = Fields::default();
                let duplicate = walk(&mut map, |key, map| {
                    let field = match key {
                        "messages" => &mut fields.messages,
                        "prompt" => &mut fields.prompt,
                        "response" => &mut fields.response,
                        "completion" => &mut fields.completion,
                        "text" => &mut fields.text,
                        _ => return Ok(false),
                    };
                    *field = Some(map.next_value()?);
                    Ok(true)
                })?;
                fields.duplicate = duplicate;
                Ok(Top::Object(Box::new(fields)))
            }
        }
        deserializer.deserialize_any(V)
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Field;
            scalars!(Field::Other);
            fn visit_str<E>(self, text: &str) -> Result<Field, E> {
                Ok(Field::Text(text.into()))
            }
            fn visit_string<E>(self, text: String) -> Result<Field, E> {
                Ok(Field::Text(text))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Field, A::Error> {
                let mut turns = vec![];
                while let Some(turn) = seq.next_element()? {
                    // A row of numbers costs 2 bytes each in the file and many times that here.
                    if turns.len() == 1 << 16 {
                        return Err(A::Error::custom("an array of more than 65536 elements"));
                    }
                    turns.push(turn);
                }
                Ok(Field::Messages(turns))
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Field, M::Error> {
                walk(&mut map, |_, _| Ok(false)).map(|_| Field::Other("object"))
            }
        }
        deserializer.deserialize_any(V)
    }
}

impl<'de> Deserialize<'de> for Turn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Turn;
            scalars!(Turn::Other);
            fn visit_str<E>(self, _: &str) -> Result<Turn, E> {
                Ok(Turn::Other("string"))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Turn, A::Error> {
                skip_array(seq).map(|()| Turn::Other("array"))
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Turn, M::Error> {
                let (mut role, mut content, mut calls_tools) = (None, None, false);
                let duplicate = walk(&mut map, |key, map| {
                    match key {
                        "role" => role = Some(map.next_value()?),
                        "content" => content = Some(map.next_value()?),
                        "tool_calls" => {
                            let calls: Field = map.next_value()?;
                            calls_tools = match calls {
                                Field::Messages(calls) => !calls.is_empty(),
                                other => other.kind() != "null",
                            };
                        }
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?;
                Ok(Turn::Object { role, content, calls_tools, duplicate })
            }
        }
        deserializer.deserialize_any(V)
    }
}
