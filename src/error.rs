//! What can go wrong, in the two classes a script can tell apart: the input was wrong (exit 2) or the run failed (exit 1).
//!
//! Parts with several distinct causes keep an enum of their own beside their code and convert it into [`Error`] once.

use std::path::Path;

/// Who has to act: decides the exit code and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Usage, config or input is wrong: exit 2.
    Input,
    /// The run failed: exit 1.
    Run,
}

/// An error with its class. The message says what is wrong, the value given, what is allowed and the way out.
#[derive(Debug)]
pub struct Error {
    class: Class,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The user's input is wrong.
    pub fn input(message: impl Into<String>) -> Self {
        Self { class: Class::Input, message: message.into(), source: None }
    }

    /// The run failed on good input.
    pub fn run(message: impl Into<String>) -> Self {
        Self { class: Class::Run, message: message.into(), source: None }
    }

    /// A file of the user's that cannot be read: an input error that names the path.
    pub fn unreadable(path: &Path, cause: std::io::Error) -> Self {
        Self::input(format!("cannot read {}: {cause}", path.display()))
    }

    /// A file of the run that cannot be written: a failed run that names the path.
    pub fn unwritable(path: &Path, cause: std::io::Error) -> Self {
        Self::run(format!("cannot write {}: {cause}", path.display()))
    }

    /// Puts a frame before the message: `context: message`.
    pub fn context(mut self, context: impl std::fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    pub fn class(&self) -> Class {
        self.class
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| s.as_ref() as _)
    }
}

/// How the message of a GPU whose memory is used up begins.
const OUT_OF_MEMORY: &str = "the GPU's memory is used up";

impl Error {
    /// Whether a GPU had too little memory.
    pub fn is_out_of_memory(&self) -> bool {
        self.message.contains(OUT_OF_MEMORY)
    }
}

impl From<candle_core::Error> for Error {
    fn from(cause: candle_core::Error) -> Self {
        let text = cause.to_string();
        let message = match text.contains("OUT_OF_MEMORY") || text.contains("ALLOC_FAILED") {
            true => format!(
                "{OUT_OF_MEMORY}: lower train.micro_batch_size or data.max_length, set train.checkpoint_activations = true, \
                 hold the teacher in bf16 (teacher.dtype), or put it on another device (teacher.device)"
            ),
            false => format!("tensor computation failed: {text}"),
        };
        Self { class: Class::Run, message, source: Some(Box::new(cause)) }
    }
}
