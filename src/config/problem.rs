//! Problems of a config, collected so that the user sees all of them at once.

use std::collections::HashSet;
use std::path::Path;

use crate::error::Error;

/// Where a value was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// 1-based line of the config file.
    Line(usize),
    /// `--set` or `--output`.
    CommandLine,
    /// Nowhere: a key is missing.
    Nowhere,
}

/// One thing that is wrong: the key, what was given, what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Problem {
    pub place: Place,
    pub message: String,
}

/// Problems that are listed.
const SHOWN: usize = 100;

#[derive(Debug, Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub fn add(&mut self, place: Place, message: impl Into<String>) {
        self.0.push(Problem { place, message: message.into() });
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One input error that lists every problem on a line of its own: by line, then the command line's, then what is missing.
    /// Beyond [`SHOWN`] they are counted: such a file is no config.
    pub fn into_error(mut self, file: &Path) -> Error {
        self.0.sort_by_key(|p| p.place);
        // Two checks may see the same fault.
        let mut seen = HashSet::new();
        let firsts: Vec<bool> = self.0.iter().map(|problem| seen.insert(problem)).collect();
        let mut firsts = firsts.into_iter();
        self.0.retain(|_| firsts.next().unwrap_or_default());
        let file = file.display();
        let mut text = match self.0.len() {
            1 => format!("the config {file} has a problem:"),
            n => format!("the config {file} has {n} problems:"),
        };
        for Problem { place, message } in self.0.iter().take(SHOWN) {
            text += &match place {
                Place::Line(line) => format!("\n  {file}:{line}: {message}"),
                Place::CommandLine => format!("\n  command line: {message}"),
                Place::Nowhere => format!("\n  {file}: {message}"),
            };
        }
        if self.0.len() > SHOWN {
            text += &format!("\n  … and {} more", self.0.len() - SHOWN);
        }
        Error::input(text)
    }
}
