//! Problems of a config, collected so that the user sees all of them at once.

use std::path::Path;

use crate::error::Error;

/// Where a value was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// 1-based line of the config file.
    Line(usize),
    /// `--set` or `--output`.
    CommandLine,
    /// Nowhere: a key is missing.
    Nowhere,
}

/// One thing that is wrong: the key, what was given, what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    pub message: String,
}

#[derive(Debug, Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub fn add(&mut self, place: Place, message: impl Into<String>) {
        let problem = Problem { place, message: message.into() };
        // Two checks may see the same fault.
        if !self.0.contains(&problem) {
            self.0.push(problem);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One input error that lists every problem on a line of its own: by line, then the command line's, then what is missing.
    pub fn into_error(mut self, file: &Path) -> Error {
        self.0.sort_by_key(|p| p.place);
        let file = file.display();
        let mut text = match self.0.len() {
            1 => format!("the config {file} has a problem:"),
            n => format!("the config {file} has {n} problems:"),
        };
        for Problem { place, message } in &self.0 {
            text += &match place {
                Place::Line(line) => format!("\n  {file}:{line}: {message}"),
                Place::CommandLine => format!("\n  command line: {message}"),
                Place::Nowhere => format!("\n  {file}: {message}"),
            };
        }
        Error::input(text)
    }
}
