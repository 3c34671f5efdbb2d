//! Which keys exist, which are announced but not built yet, and what a misspelled one was probably meant to be.

use super::problem::Problems;
use super::raw::{Node, Table, Value, shown_key};

pub struct Section {
    pub name: &'static str,
    pub keys: &'static [&'static str],
    /// Documented for a later version: refused by name, so that nobody believes they took effect.
    pub later: &'static [&'static str],
}

/// Keys outside any section.
pub const TOP: &[&str] = &["seed"];
const LATER_SECTIONS: &[&str] = &[];

pub const SECTIONS: &[Section] = &[
    Section { name: "teacher", keys: &["kind", "path", "tokenizer", "dtype", "device"], later: &[] },
    Section {
        name: "student",
        keys: &[
            "kind",
            "path",
            "config",
            "tokenizer",
            "layers",
            "count",
            "rows",
            "from",
            "rank",
            "alpha",
            "targets",
            "device",
        ],
        later: &[],
    },
    Section { name: "cache", keys: &["codec", "k", "draws", "values", "write_through"], later: &[] },
    Section {
        name: "data",
        keys: &[
            "train",
            "eval",
            "max_length",
            "loss_on",
            "chat_template",
            "packing",
            "shuffle",
            "on_bad_record",
            "max_bad",
        ],
        later: &[],
    },
    Section {
        name: "rollout",
        keys: &["from", "fraction", "max_new_tokens", "temperature", "top_p", "every_steps", "buffer"],
        later: &[],
    },
    Section {
        name: "loss",
        keys: &[
            "kind",
            "temperature",
            "hard_label_weight",
            "scale_by_temperature_squared",
            "beta",
            "lambda",
            "normalize",
            "mix",
            "hidden",
            "tail",
        ],
        later: &[],
    },
    Section {
        name: "train",
        keys: &[
            "steps",
            "epochs",
            "max_time",
            "batch_size",
            "micro_batch_size",
            "learning_rate",
            "schedule",
            "warmup_steps",
            "beta1",
            "beta2",
            "epsilon",
            "weight_decay",
            "max_grad_norm",
            "dtype",
            "checkpoint_activations",
            "tf32",
        ],
        later: &[],
    },
    Section { name: "eval", keys: &["every_steps", "max_rows", "exact_match"], later: &[] },
    Section { name: "checkpoint", keys: &["every_steps", "keep_last", "keep_every", "keep_best"], later: &[] },
    Section { name: "output", keys: &["dir", "dtype"], later: &[] },
];

/// The keys of tables below a section's key; `[]`: of each table of a list.
const TABLES: &[(&str, &[&str])] = &[
    ("loss.mix[]", &["kind", "weight", "beta", "lambda", "normalize"]),
    ("loss.hidden", &["layers", "kind", "weight"]),
    ("loss.temperature", &["from", "to", "schedule"]),
    ("loss.hard_label_weight", &["from", "to", "schedule"]),
];

/// The keys that the table at `path` holds, if it may be one.
fn keys_of(path: &str) -> Option<&'static [&'static str]> {
    TABLES.iter().find(|(table, _)| *table == path).map(|(_, keys)| *keys)
}

/// Whether `key` (dotted, an element of a list as `[i]`) is one that this version reads.
pub fn knows(key: &str) -> bool {
    match key.rsplit_once('.') {
        None => TOP.contains(&key),
        Some((section, key)) if !section.contains('.') => {
            SECTIONS.iter().any(|s| s.name == section && s.keys.contains(&key))
        }
        Some((table, key)) => {
            let table = table.split_once('[').map_or(table.to_owned(), |(list, _)| format!("{list}[]"));
            keys_of(&table).is_some_and(|keys| keys.contains(&key))
        }
    }
}

/// Reports what the tables at or in the list at `path` hold that this version does not read.
fn check_below(path: &str, node: &Node, problems: &mut Problems) {
    let tables: Vec<(String, &Table)> = match &node.value {
        Value::Table(table) => vec![(path.to_owned(), table)],
        Value::Array(items) => {
            let tables = items.iter().enumerate().filter_map(|(i, item)| Some((i, item.value.table()?)));
            tables.map(|(i, table)| (format!("{path}[{i}]"), table)).collect()
        }
        _ => vec![],
    };
    let list = matches!(node.value, Value::Array(_));
    let Some(known) = keys_of(&if list { format!("{path}[]") } else { path.to_owned() }) else { return };
    for (name, table) in tables {
        for (key, node) in table.iter().filter(|(key, _)| !known.contains(&key.as_str())) {
            let hint = match closest(key, known) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("known there: {}", known.join(", ")),
            };
            problems.add(node.place, format!("unknown key {name}.{}: {hint}", shown_key(key)));
        }
    }
}

/// Reports every key of the tree that this version does not read.
pub fn check(tree: &Table, problems: &mut Problems) {
    for (name, node) in tree {
        if let Some(section) = SECTIONS.iter().find(|s| s.name == name) {
            match &node.value {
                Value::Table(keys) => keys.iter().for_each(|(key, node)| check_key(section, key, node, problems)),
                other => problems.add(
                    node.place,
                    format!("{name} = {} is {}, wanted a section [{name}]", other.shown(), other.type_name()),
                ),
            }
        } else if LATER_SECTIONS.contains(&name.as_str()) {
            let sections = SECTIONS.iter().map(|s| format!("[{}]", s.name)).collect::<Vec<_>>().join(", ");
            problems.add(node.place, format!("[{name}] is not available in this version; available: {sections}"));
        } else if !TOP.contains(&name.as_str()) {
            problems.add(node.place, unknown_top(name));
        }
    }
}

fn check_key(section: &Section, key: &str, node: &Node, problems: &mut Problems) {
    let name = section.name;
    if section.later.contains(&key) {
        let keys = section.keys.join(", ");
        problems
            .add(node.place, format!("{name}.{key} is not available in this version; available in [{name}]: {keys}"));
    } else if !section.keys.contains(&key) {
        let hint = match closest(key, section.keys.iter().chain(section.later)).or_else(|| home_of(key)) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("known in [{name}]: {}", section.keys.join(", ")),
        };
        problems.add(node.place, format!("unknown key {name}.{}: {hint}", shown_key(key)));
    } else {
        check_below(&format!("{name}.{key}"), node, problems);
    }
}

fn unknown_top(name: &str) -> String {
    let sections = SECTIONS.iter().map(|s| &s.name);
    let hint = match home_of(name).or_else(|| closest(name, sections.clone().chain(TOP))) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("known: seed and the sections {}", sections.copied().collect::<Vec<_>>().join(", ")),
    };
    format!("unknown key {}: {hint}", shown_key(name))
}

/// The full name of a key that stands in the wrong section, where it belongs to one or two others.
fn home_of(key: &str) -> Option<String> {
    if TOP.contains(&key) {
        return Some(format!("{key}` before the first section, or `--set {key}=…"));
    }
    let homes: Vec<String> = SECTIONS
        .iter()
        .filter(|section| section.keys.contains(&key))
        .map(|section| format!("{}.{key}", section.name))
        .collect();
    (1..=2).contains(&homes.len()).then(|| homes.join("` or `"))
}

/// The known word that `word` was probably meant to be.
pub fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a &'a str>) -> Option<String> {
    // Longer than any key: no typo, and the distance would cost its square.
    if word.len() > 64 {
        return None;
    }
    let folded = word.to_lowercase().replace('-', "_");
    let near = |k: &str| (strsim::damerau_levenshtein(&folded, k), strsim::jaro_winkler(&folded, k));
    let best =
        known.into_iter().map(|k| (near(k), *k)).min_by(|a, b| (a.0.0).cmp(&b.0.0).then(b.0.1.total_cmp(&a.0.1)))?;
    let ((edits, likeness), name) = best;
    (edits <= 1 + name.len() / 5 || likeness >= 0.9).then(|| name.to_owned())
}
