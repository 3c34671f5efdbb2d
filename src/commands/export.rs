//! `distill export`: a GGUF file as a Hugging Face folder, its weights unpacked.

use std::io::ErrorKind;
use std::path::Path;

use super::{Outcome, build, out, provenance};
use crate::checkpoint::atomic;
use crate::cli::ExportArgs;
use crate::config::{self, Word, plan};
use crate::error::{Error, Result};
use crate::metrics::Screen;
use crate::model::Gguf;
use crate::student::{Companions, write_model};
use crate::units::{Bytes, Count, Rounded};

pub fn run(args: &ExportArgs) -> Result<Outcome> {
    let screen = Screen::stderr();
    check_output(&args.output)?;
    if args.file.is_dir() {
        return Err(Error::input(format!(
            "{} is a folder; export takes a GGUF file, and a Hugging Face folder is what it writes",
            args.file.display()
        )));
    }
    let file = Gguf::open(&args.file)?;
    let tokenizer = file.tokenizer(args.tokenizer.as_deref())?;
    plan::covers(&file.config, &tokenizer, "model")?;
    let companions = Companions::of(&tokenizer)?;
    let progress = screen.progress(&format!("exporting {}", args.file.display()), None);
    // The matrices stay quantised in memory and are unpacked one at a time.
    let model = file.decoder(build::precision(config::Dtype::F32))?;
    let dtype = build::stored(args.dtype);
    let provenance = provenance::of_export(&args.file, &tokenizer)?;
    atomic::write_folder(&args.output, |dir| {
        write_model(dir, &model, &companions, dtype)?.sync()?;
        provenance.write_over(dir)
    })?;
    progress.finish();
    let parameters = file.config.parameters() as u64;
    out::write(&format!(
        "{}: {} parameters, {} as {}; tokenizer of {} tokens from {}\n",
        args.output.display(),
        Rounded(parameters),
        Bytes(parameters * dtype.size() as u64),
        args.dtype.word(),
        Count(tokenizer.vocab_size() as u64),
        tokenizer.origin().display()
    ))?;
    Ok(Outcome::Done)
}

/// Refuses a place where something is.
pub(super) fn check_output(path: &Path) -> Result<()> {
    let taken = match std::fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == ErrorKind::NotFound => false,
        Err(e) if e.kind() == ErrorKind::NotADirectory => true,
        Err(e) => return Err(Error::unreadable(path, e)),
    };
    match taken {
        false => Ok(()),
        true => Err(Error::input(format!(
            "--output {} is there already and not an empty folder: name one that is absent or empty",
            path.display()
        ))),
    }
}
