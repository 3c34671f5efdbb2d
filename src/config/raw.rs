//! The config as it was written: a tree of values that remember their place. Joins the file and the `--set` overrides;
//! knows TOML, but no key.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use super::problem::{Place, Problems};

pub type Table = BTreeMap<String, Node>;

#[derive(Debug, Clone)]
pub struct Node {
    pub value: Value,
    pub place: Place,
}

#[derive(Debug, Clone)]
pub enum Value {
    Table(Table),
    Array(Vec<Node>),
    String(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    /// Valid TOML that no key can use, as written: a date, or a number beyond 64 bits.
    Other(&'static str, String),
}

impl Value {
    /// The table that it is.
    pub fn table(&self) -> Option<&Table> {
        match self {
            Self::Table(table) => Some(table),
            _ => None,
        }
    }

    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Table(_) => "a table",
            Self::Array(_) => "a list",
            Self::String(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Bool(_) => "a boolean",
            Self::Other(name, _) => name,
        }
    }

    /// As it would be written, shortened, and without any control character.
    pub fn shown(&self) -> String {
        match self {
            Self::Table(_) => "{…}".into(),
            Self::Array(items) if items.len() > 3 => format!("[{} items]", items.len()),
            Self::Array(items) => {
                format!("[{}]", items.iter().map(|n| n.value.shown()).collect::<Vec<_>>().join(", "))
            }
            Self::String(s) if s.chars().count() > 80 => format!("{:?}…", s.chars().take(80).collect::<String>()),
            Self::String(s) => format!("{s:?}"),
            Self::Integer(i) => i.to_string(),
            Self::Float(f) => format!("{f:?}"),
            Self::Bool(b) => b.to_string(),
            Self::Other(_, text) => text.chars().take(40).collect(),
        }
    }
}

/// A key of unknown origin, safe to print.
pub fn shown_key(key: &str) -> String {
    key.chars().take(64).collect::<String>().escape_debug().to_string()
}

/// Parses a config file's text; syntax errors go to `problems`, all of them.
pub fn parse(text: &str, problems: &mut Problems) -> Table {
    // Counted once: a file of nothing but keys asks a hundred thousand times.
    let ends: Vec<usize> = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect();
    let line = |offset: usize| 1 + ends.partition_point(|end| *end < offset);
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let place = error.span().map_or(Place::Nowhere, |s| Place::Line(line(s.start)));
        problems.add(place, format!("not valid TOML: {}", error.message()));
    }
    table_from(table.get_ref(), &|offset| Place::Line(line(offset)))
}

fn table_from(table: &DeTable<'_>, place: &dyn Fn(usize) -> Place) -> Table {
    let entry = |(key, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
        let key: &toml::Spanned<toml::de::DeString<'_>> = key;
        (key.get_ref().to_string(), node_from(value.get_ref(), place(key.span().start), place))
    };
    table.iter().map(entry).collect()
}

fn node_from(value: &DeValue<'_>, at: Place, place: &dyn Fn(usize) -> Place) -> Node {
    let value = match value {
        DeValue::Table(table) => Value::Table(table_from(table, place)),
        DeValue::Array(items) => {
            Value::Array(items.iter().map(|v| node_from(v.get_ref(), place(v.span().start), place)).collect())
        }
        DeValue::String(s) => Value::String(s.to_string()),
        DeValue::Boolean(b) => Value::Bool(*b),
        DeValue::Datetime(d) => Value::Other("a date", d.to_string()),
        DeValue::Integer(i) => match i64::from_str_radix(i.as_str(), i.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Other("an integer beyond 64 bits", i.as_str().to_owned()),
        },
        DeValue::Float(f) => match f.as_str().parse::<f64>() {
            Ok(number) => Value::Float(number),
            Err(_) => Value::Other("a float that cannot be read", f.as_str().to_owned()),
        },
    };
    Node { value, place: at }
}

/// Puts one `KEY=VALUE` into the tree. VALUE is TOML, or, where it is not, a plain string.
pub fn apply_override(tree: &mut Table, text: &str, problems: &mut Problems) {
    let mut wrong = |message: String| problems.add(Place::CommandLine, message);
    let Some((key, value)) = text.split_once('=') else {
        return wrong(format!("--set {text:?}: wanted KEY=VALUE, for example --set train.steps=100"));
    };
    let path: Vec<&str> = key.trim().split('.').collect();
    let plain = |p: &&str| !p.is_empty() && p.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    // No key lies deeper than a section.
    if path.len() > 3 || !path.iter().all(plain) {
        return wrong(format!("--set {text:?}: {:?} is no key; wanted SECTION.KEY=VALUE", key.trim()));
    }
    let value = match DeValue::parse(value.trim()) {
        Ok(value) => node_from(value.get_ref(), Place::CommandLine, &|_| Place::CommandLine).value,
        // A broken list must not become the name of a file.
        Err(error) if value.trim_start().starts_with(['[', '{', '"', '\'']) => {
            return wrong(format!("--set {text:?}: not valid TOML: {}", error.message()));
        }
        Err(_) => Value::String(value.to_owned()),
    };
    let (last, sections) = path.split_last().expect("split yields at least one part");
    let mut table = tree;
    for section in sections {
        let new = || Node { value: Value::Table(Table::new()), place: Place::CommandLine };
        match &mut table.entry((*section).to_owned()).or_insert_with(new).value {
            Value::Table(inner) => table = inner,
            other => {
                let found = other.type_name();
                return wrong(format!("--set {text:?}: {section} is {found}, not a section"));
            }
        }
    }
    table.insert((*last).to_owned(), Node { value, place: Place::CommandLine });
}
