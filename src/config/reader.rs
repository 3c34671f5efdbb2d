//! Typed access to the tree by dotted key. Each read checks type and range, notes a problem where they are wrong and
//! goes on with the default, so that one pass sees every problem.

use std::path::{Path, PathBuf};

use super::problem::{Place, Problems};
use super::raw::{Node, Table, Value};
use super::schema;
use super::types::{Schedule, Scheduled, Word};
use crate::hub;

/// What relative paths and hub ids are looked up in.
pub struct Surroundings {
    pub working_dir: PathBuf,
    pub hub_cache: Option<PathBuf>,
}

/// Numbers that a float key takes; all of them finite.
#[derive(Debug, Clone, Copy)]
pub enum Numbers {
    Positive,
    NonNegative,
    /// [0, 1]
    Fraction,
    /// (0, 1]
    Share,
    /// [0, 1)
    Decay,
    /// [0.001, 1000]: 1 / T and T² stay far from what f32 cannot hold.
    Temperature,
    /// [0.01, 0.99]: a mixture of which both parts count.
    Mixture,
    /// [1e-30, 1]: not lost in f32.
    Epsilon,
}

impl Numbers {
    fn contain(self, x: f64) -> bool {
        x.is_finite()
            && match self {
                Self::Positive => x > 0.0,
                Self::NonNegative => x >= 0.0,
                Self::Fraction => (0.0..=1.0).contains(&x),
                Self::Share => x > 0.0 && x <= 1.0,
                Self::Decay => (0.0..1.0).contains(&x),
                Self::Temperature => (1e-3..=1e3).contains(&x),
                Self::Mixture => (0.01..=0.99).contains(&x),
                Self::Epsilon => (1e-30..=1.0).contains(&x),
            }
    }

    fn allowed(self) -> &'static str {
        match self {
            Self::Positive => "a finite number > 0",
            Self::NonNegative => "a finite number ≥ 0",
            Self::Fraction => "a number from 0 to 1",
            Self::Share => "a number > 0 and ≤ 1",
            Self::Decay => "a number ≥ 0 and < 1",
            Self::Temperature => "a finite number > 0, from 0.001 to 1000",
            Self::Mixture => "a number from 0.01 to 0.99",
            Self::Epsilon => "a finite number > 0, from 1e-30 to 1",
        }
    }
}

pub struct Reader<'a> {
    tree: &'a Table,
    config_dir: &'a Path,
    around: &'a Surroundings,
    pub problems: Problems,
}

impl<'a> Reader<'a> {
    pub fn new(tree: &'a Table, config_dir: &'a Path, around: &'a Surroundings, problems: Problems) -> Self {
        Self { tree, config_dir, around, problems }
    }

    /// The section's keys; `None` where it is absent or no section.
    pub fn section(&self, name: &str) -> Option<&'a Table> {
        self.tree.get(name)?.value.table()
    }

    pub fn node(&self, key: &str) -> Option<&'a Node> {
        debug_assert!(schema::knows(key), "{key} is not in the schema");
        let mut table = self.tree;
        let mut segments = key.split('.').peekable();
        loop {
            let segment = segments.next()?;
            let (name, i) = segment.strip_suffix(']').and_then(|s| s.split_once('[')).unwrap_or((segment, ""));
            let mut node = table.get(name)?;
            if let (Ok(i), Value::Array(items)) = (i.parse::<usize>(), &node.value) {
                node = items.get(i)?;
            }
            if segments.peek().is_none() {
                return Some(node);
            }
            table = node.value.table()?;
        }
    }

    /// The number of tables in the list at `key`, whose keys are read as `key[i].name`.
    pub fn items(&mut self, key: &str) -> usize {
        match self.node(key).map(|node| &node.value) {
            None => 0,
            Some(Value::Array(items)) if !items.is_empty() && items.iter().all(|i| i.value.table().is_some()) => {
                items.len()
            }
            Some(_) => {
                self.outside(key, format!("a list of tables, each written as [[{key}]]"));
                0
            }
        }
    }

    pub fn has(&self, key: &str) -> bool {
        self.node(key).is_some()
    }

    fn note(&mut self, key: &str, what: &str) {
        match self.node(key) {
            Some(node) => self.problems.add(node.place, format!("{key} = {}{what}", node.value.shown())),
            None => self.problems.add(Place::Nowhere, format!("{key}{what}")),
        }
    }

    /// A problem with the value at `key`; `why` goes on the sentence: "is …", "excludes …".
    pub fn refuse(&mut self, key: &str, why: impl std::fmt::Display) {
        self.note(key, &format!(" {why}"));
    }

    /// A value at `key` that is not among the `allowed`.
    pub fn outside(&mut self, key: &str, allowed: impl std::fmt::Display) {
        self.note(key, &format!(": allowed: {allowed}"));
    }

    fn refuse_type(&mut self, key: &str, node: &Node, wanted: &str) {
        self.problems
            .add(node.place, format!("{key} = {} is {}, wanted {wanted}", node.value.shown(), node.value.type_name()));
    }

    /// A problem with a key that is not there; silent where its section is something else than a section.
    pub fn missing(&mut self, key: &str, way_out: &str) {
        let section = key.split_once('.').map_or(key, |(section, _)| section);
        if self.section(section).is_some() || !self.tree.contains_key(section) {
            self.problems.add(Place::Nowhere, format!("{key} is missing: {way_out}"));
        }
    }

    /// An integer ≥ `least`.
    pub fn integer(&mut self, key: &str, least: u64) -> Option<u64> {
        let node = self.node(key)?;
        let Value::Integer(number) = node.value else {
            self.refuse_type(key, node, "an integer");
            return None;
        };
        let fits = u64::try_from(number).ok().filter(|&n| n >= least);
        if fits.is_none() {
            self.outside(key, format!("an integer ≥ {least}"));
        }
        fits
    }

    pub fn size(&mut self, key: &str, least: usize) -> Option<usize> {
        self.integer(key, least as u64).map(|n| usize::try_from(n).unwrap_or(usize::MAX))
    }

    pub fn float(&mut self, key: &str, default: f64, allowed: Numbers) -> f64 {
        let Some(node) = self.node(key) else { return default };
        let number = match node.value {
            Value::Float(f) => f,
            Value::Integer(i) => i as f64,
            _ => {
                self.refuse_type(key, node, "a number");
                return default;
            }
        };
        if !allowed.contain(number) {
            self.outside(key, allowed.allowed());
            return default;
        }
        number
    }

    /// A number, or `{ from, to, schedule }`.
    pub fn scheduled(&mut self, key: &str, default: f64, allowed: Numbers) -> Scheduled {
        if self.node(key).is_none_or(|node| node.value.table().is_none()) {
            return Scheduled::Constant(self.float(key, default, allowed));
        }
        let mut end = |name: &str| {
            let key = format!("{key}.{name}");
            if !self.has(&key) {
                self.missing(&key, &format!("give {}", allowed.allowed()));
            }
            self.float(&key, default, allowed)
        };
        let (from, to) = (end("from"), end("to"));
        let ways = [Schedule::Linear, Schedule::Cosine];
        let schedule = self.choice(&format!("{key}.schedule"), Schedule::Linear, &ways, &[]);
        Scheduled::Moving { from, to, schedule }
    }

    pub fn flag(&mut self, key: &str, default: bool) -> bool {
        match self.node(key) {
            None => default,
            Some(Node { value: Value::Bool(flag), .. }) => *flag,
            Some(node) => {
                self.refuse_type(key, node, "a boolean");
                default
            }
        }
    }

    pub fn text(&mut self, key: &str) -> Option<&'a str> {
        let node = self.node(key)?;
        match &node.value {
            Value::String(text) if text.is_empty() => {
                self.refuse(key, "is empty");
                None
            }
            Value::String(text) => Some(text),
            _ => {
                self.refuse_type(key, node, "a string");
                None
            }
        }
    }

    /// One of `available`; those of `later` are refused as not built yet.
    pub fn word(&mut self, key: &str, available: &[&'static str], later: &[&str]) -> Option<&'static str> {
        let given = self.text(key)?;
        let found = available.iter().copied().find(|word| *word == given);
        if found.is_none() {
            let list = available.join(" | ");
            if later.contains(&given) {
                self.refuse(key, format!("is not available in this version; available: {list}"));
            } else {
                let hint = schema::closest(given, available.iter().chain(later));
                let hint = hint.map(|meant| format!(" (did you mean {meant:?}?)")).unwrap_or_default();
                self.outside(key, format!("{list}{hint}"));
            }
        }
        found
    }

    pub fn choice<W: Word>(&mut self, key: &str, default: W, available: &[W], later: &[&str]) -> W {
        let words: Vec<&'static str> = available.iter().map(|w| w.word()).collect();
        let word = self.word(key, &words, later);
        available.iter().copied().find(|w| Some(w.word()) == word).unwrap_or(default)
    }

    fn base(&self, place: Place) -> &'a Path {
        if place == Place::CommandLine { &self.around.working_dir } else { self.config_dir }
    }

    pub fn path(&mut self, key: &str) -> Option<PathBuf> {
        let text = self.text(key)?;
        Some(absolute(self.base(self.node(key)?.place), Path::new(text)))
    }

    /// The path of a model or a part of one: local, or, where nothing is there, a hub id in the cache.
    pub fn model(&mut self, key: &str) -> Option<PathBuf> {
        let text = self.text(key)?;
        let base = self.base(self.node(key)?.place);
        match hub::locate_in(self.around.hub_cache.as_deref(), text, base) {
            Ok(path) => Some(absolute(base, &path)),
            Err(error) => {
                self.note(key, &format!(": {error}"));
                None
            }
        }
    }

    /// A list of paths, or a single one.
    pub fn paths(&mut self, key: &str) -> Option<Vec<PathBuf>> {
        let node = self.node(key)?;
        let Value::Array(items) = &node.value else { return self.path(key).map(|path| vec![path]) };
        if items.is_empty() {
            self.outside(key, "at least one file");
        }
        let mut paths = vec![];
        for (i, item) in items.iter().enumerate() {
            match &item.value {
                Value::String(text) if !text.is_empty() => paths.push(absolute(self.base(item.place), Path::new(text))),
                Value::String(_) => self.problems.add(item.place, format!("{key}[{i}] is empty")),
                _ => self.refuse_type(&format!("{key}[{i}]"), item, "a string"),
            }
        }
        Some(paths)
    }

    pub fn is_text(&self, key: &str) -> bool {
        matches!(self.node(key), Some(Node { value: Value::String(_), .. }))
    }

    /// A list of distinct names.
    pub fn names(&mut self, key: &str) -> Option<Vec<String>> {
        let node = self.node(key)?;
        let Value::Array(items) = &node.value else {
            self.refuse_type(key, node, "a list of strings");
            return None;
        };
        let mut names: Vec<String> = vec![];
        for (i, item) in items.iter().enumerate() {
            let name = format!("{key}[{i}]");
            match &item.value {
                Value::String(text) if names.contains(text) => {
                    self.problems.add(item.place, format!("{name} = {text:?}: allowed: each name once"));
                }
                Value::String(text) => names.push(text.clone()),
                _ => self.refuse_type(&name, item, "a string"),
            }
        }
        if items.is_empty() {
            self.outside(key, "at least one name; without the key all matrices of the blocks are meant");
        }
        Some(names)
    }

    /// A list of non-negative integers in strictly ascending order.
    pub fn ascending(&mut self, key: &str) -> Option<Vec<usize>> {
        let node = self.node(key)?;
        let Value::Array(items) = &node.value else {
            self.refuse_type(key, node, "a list of integers");
            return None;
        };
        let mut numbers: Vec<usize> = vec![];
        for (i, item) in items.iter().enumerate() {
            let name = format!("{key}[{i}]");
            match item.value {
                Value::Integer(n) => match usize::try_from(n) {
                    Ok(n) if numbers.last().is_none_or(|&last| last < n) => numbers.push(n),
                    Ok(_) => {
                        self.problems.add(item.place, format!("{name} = {n}: allowed: ascending order, each once"))
                    }
                    Err(_) => self.problems.add(item.place, format!("{name} = {n}: allowed: an integer ≥ 0")),
                },
                _ => self.refuse_type(&name, item, "an integer"),
            }
        }
        if items.is_empty() {
            self.outside(key, "at least one layer");
        }
        Some(numbers)
    }
}

/// `path` from `base`, without `.` and, where the folder exists, without `..`: so one place has one spelling, and a
/// resumed run sees the same config from any working directory. Links are kept as the user named them.
pub fn absolute(base: &Path, path: &Path) -> PathBuf {
    let joined = base.join(path);
    // Collecting the components drops a trailing slash.
    let joined: PathBuf = std::path::absolute(&joined).unwrap_or(joined).components().collect();
    if !joined.components().any(|c| c == std::path::Component::ParentDir) {
        return joined;
    }
    // `..` means what the file system says it means; what does not exist yet hangs below what does.
    let existing = joined.ancestors().find_map(|folder| Some((folder, folder.canonicalize().ok()?)));
    match existing {
        // Collected again: joining an empty rest would leave a trailing slash, which no file has.
        Some((folder, real)) => real.join(joined.strip_prefix(folder).unwrap_or(Path::new(""))).components().collect(),
        None => joined,
    }
}
