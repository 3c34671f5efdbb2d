//! Which tokenizer a run has: the student's folder's, or that of a GGUF file.

use std::path::{Path, PathBuf};

use super::types::TeacherKind;
use crate::corpus::TextTokenizer;
use crate::error::Result;
use crate::model::Gguf;

/// The tokenizer at `dir`, a model folder or a GGUF file, and the name of what is at fault if it is an error.
///
/// `teacher`: a GGUF teacher with its path. `given`: what the config names as its tokenizer, which is compared with its
/// vocabulary whether the student takes it or not.
pub(super) fn students_tokenizer(
    dir: &Path,
    teacher: Option<(&Path, &Gguf)>,
    given: Option<&PathBuf>,
) -> (&'static str, Result<TextTokenizer>) {
    if let Some(((_, file), given)) = teacher.zip(given) {
        let checked = file.tokenizer(Some(given));
        // Not the folder alone: what it lacks, the file fills in.
        if given == dir || checked.is_err() {
            return ("teacher.tokenizer", checked);
        }
    }
    let tokenizer = match teacher {
        // It may have any name.
        Some((path, file)) if path == dir => file.tokenizer(None),
        _ if TeacherKind::of(dir) == TeacherKind::Gguf => Gguf::open(dir).and_then(|file| file.tokenizer(None)),
        _ => TextTokenizer::from_dir(dir),
    };
    ("the student's tokenizer", tokenizer)
}
