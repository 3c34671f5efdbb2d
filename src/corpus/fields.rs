//! The fields of a JSONL row as serde finds them: types and repeated keys are seen, and nothing is kept that no record needs.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A value as far as its type decides anything. Containers are walked without being kept.
#[derive(Debug)]
pub(super) enum Field {
    Text(String),
    Flag(bool),
    Messages(Vec<Turn>),
    /// Of another type, named as JSON names it.
    Other(&'static str),
}

impl Field {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Field::Text(_) => "string",
            Field::Flag(_) => "boolean",
            Field::Messages(_) => "array",
            Field::Other(kind) => kind,
        }
    }

    pub(super) fn text(self, name: &str) -> Result<String, String> {
        match self {
            Field::Text(text) => Ok(text),
            other => Err(format!("{name} must be a string, found {}", other.kind())),
        }
    }
}

/// One element of `messages`.
#[derive(Debug)]
pub(super) enum Turn {
    Object { role: Option<Field>, content: Option<Field>, calls_tools: bool, duplicate: Option<String> },
    Other(&'static str),
}

#[derive(Debug, Default)]
pub(super) struct Fields {
    pub(super) messages: Option<Field>,
    pub(super) prompt: Option<Field>,
    pub(super) response: Option<Field>,
    pub(super) completion: Option<Field>,
    pub(super) text: Option<Field>,
    pub(super) unfinished: Option<bool>,
    pub(super) duplicate: Option<String>,
}

/// Any field but `messages`: of a container nothing is kept but whether it is an empty list. A list of numbers takes 2 bytes each in the file and many times that as turns.
struct Leaf(Field);

/// Elements of a list and keys of an object: far above any row's, and small enough to hold.
const MOST: usize = 1 << 16;

pub(super) enum Top {
    Object(Box<Fields>),
    Other(&'static str),
}

/// Walks the rest of an object; `take` sees each key once and may read its value. Returns the first repeated key.
fn walk<'de, M: MapAccess<'de>>(
    map: &mut M,
    mut take: impl FnMut(&str, &mut M) -> Result<bool, M::Error>,
) -> Result<Option<String>, M::Error> {
    let (mut seen, mut duplicate) = (HashSet::new(), None);
    while let Some(key) = map.next_key::<String>()? {
        let repeated = seen.contains(&key);
        if seen.len() == MOST {
            return Err(M::Error::custom(format!("an object of more than {MOST} keys")));
        }
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
        scalars!($make, |_: bool| $make("boolean"));
    };
    ($make:expr, $flag:expr) => {
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("any JSON value")
        }
        fn visit_bool<E>(self, flag: bool) -> Result<Self::Value, E> {
            Ok($flag(flag))
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
                        "messages" => {
                            fields.messages = Some(map.next_value()?);
                            return Ok(true);
                        }
                        "unfinished" => {
                            // Of any other type it is a field like any other.
                            if let Leaf(Field::Flag(flag)) = map.next_value()? {
                                fields.unfinished = Some(flag);
                            }
                            return Ok(true);
                        }
                        "prompt" => &mut fields.prompt,
                        "response" => &mut fields.response,
                        "completion" => &mut fields.completion,
                        "text" => &mut fields.text,
                        _ => return Ok(false),
                    };
                    *field = Some(map.next_value::<Leaf>()?.0);
                    Ok(true)
                })?;
                fields.duplicate = duplicate;
                Ok(Top::Object(Box::new(fields)))
            }
        }
        deserializer.deserialize_any(V)
    }
}

impl<'de> Deserialize<'de> for Leaf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Leaf;
            scalars!(|kind| Leaf(Field::Other(kind)), |flag| Leaf(Field::Flag(flag)));
            fn visit_str<E>(self, text: &str) -> Result<Leaf, E> {
                Ok(Leaf(Field::Text(text.into())))
            }
            fn visit_string<E>(self, text: String) -> Result<Leaf, E> {
                Ok(Leaf(Field::Text(text)))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Leaf, A::Error> {
                if seq.next_element::<IgnoredAny>()?.is_none() {
                    return Ok(Leaf(Field::Messages(vec![])));
                }
                skip_array(seq).map(|()| Leaf(Field::Other("array")))
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Leaf, M::Error> {
                walk(&mut map, |_, _| Ok(false)).map(|_| Leaf(Field::Other("object")))
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
            scalars!(Field::Other, Field::Flag);
            fn visit_str<E>(self, text: &str) -> Result<Field, E> {
                Ok(Field::Text(text.into()))
            }
            fn visit_string<E>(self, text: String) -> Result<Field, E> {
                Ok(Field::Text(text))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Field, A::Error> {
                let mut turns = vec![];
                while let Some(turn) = seq.next_element()? {
                    if turns.len() == MOST {
                        return Err(A::Error::custom(format!("an array of more than {MOST} elements")));
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
                        "role" => role = Some(map.next_value::<Leaf>()?.0),
                        "content" => content = Some(map.next_value::<Leaf>()?.0),
                        "tool_calls" => {
                            // An empty list and null are none.
                            let Leaf(calls) = map.next_value()?;
                            calls_tools = !matches!(calls, Field::Messages(_)) && calls.kind() != "null";
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
