//! What a model was made from, where it is still there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::folder::Made;
use super::{Finding, Report, order};
use crate::cache::{self, Header, is_cache};
use crate::checkpoint::provenance::{Corpus, FileAt, Provenance, Source};
use crate::checkpoint::{FileEntry, layout};
use crate::commands::provenance::{Digests, cache_identity, keys_of};
use crate::config;
use crate::metrics::Screen;

/// Checks the sources of all of `made`, each once, and the order of rows.
pub fn check(report: &mut Report, made: &[Made], screen: &Screen) {
    let digests = Digests::default();
    let mut wanted: Vec<(String, FileAt)> = vec![];
    let mut seen = BTreeSet::new();
    for Made { provenance, .. } in made {
        for (what, file) in files(provenance) {
            if seen.insert((file.path.clone(), file.sha256.clone())) {
                wanted.push((what, file));
            }
        }
    }
    let finding = |(what, file): (String, FileAt)| (what, held(&file.entry(), &file.path, &digests));
    report.checks.extend(wanted.into_par_iter().map(finding).collect::<Vec<_>>());
    let mut seen: Vec<&Source> = vec![];
    for source in made.iter().filter_map(|made| made.provenance.teacher.as_ref()).filter(|s| s.identity.is_some()) {
        if !seen.contains(&source) {
            teachers_cache(report, source);
            seen.push(source);
        }
    }
    let mut seen: Vec<&Corpus> = vec![];
    for corpus in made.iter().filter_map(|made| made.provenance.corpus.as_ref()) {
        let known = |other: &&Corpus| (&other.prompts, &other.written_from) == (&corpus.prompts, &corpus.written_from);
        if !corpus.prompts.is_empty() && !seen.iter().any(known) {
            prompts(report, corpus, &digests);
            seen.push(corpus);
        }
    }
    for made in made {
        run_config(report, made);
    }
    order::check(report, made, &digests, screen);
}

/// The files that a provenance names, and what each is to the model.
fn files(provenance: &Provenance) -> Vec<(String, FileAt)> {
    let models = [("teacher", &provenance.teacher), ("student's origin", &provenance.student)];
    let models = models.into_iter().filter_map(|(what, source)| Some((what, source.as_ref()?)));
    let sources = models.chain([("tokenizer", &provenance.tokenizer)]);
    let of_source = |(what, source): (&'static str, &Source)| {
        let source = source.clone();
        let files = source.files.clone().into_iter();
        files.map(move |(name, entry)| (format!("{what}: {name}"), FileAt::new(source.file(&name), entry)))
    };
    let mut files: Vec<(String, FileAt)> = sources.flat_map(of_source).collect();
    let named = |what: &str, file: &FileAt| {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (format!("{what}: {name}"), file.clone())
    };
    files.extend(provenance.chat_template.iter().map(|file| named("chat template", file)));
    files.extend(provenance.corpus.iter().flat_map(|corpus| &corpus.files).map(|file| named("corpus", file)));
    files.extend(provenance.held_out.iter().map(|file| named("held-out rows", file)));
    files
}

/// A file outside, which may be gone.
pub fn held(entry: &FileEntry, path: &Path, digests: &Digests) -> Finding {
    // Nothing but a plain file is opened: a pipe or a device would be read without end.
    let found = path.metadata().ok().filter(|found| found.is_file());
    let Some(found) = found else { return Finding::NotThere(path.display().to_string()) };
    // A file of another length is not read.
    let differs = |how: String| Finding::Differs(format!("{} {how}", path.display()));
    if found.len() != entry.size {
        return differs(format!("has {} bytes, it had {}", found.len(), entry.size));
    }
    match digests.of(path) {
        Ok(now) if now == *entry => Finding::AsRecorded,
        Ok(_) => differs("has another content (SHA-256)".into()),
        Err(cause) => Finding::NotThere(format!("{}: {cause}", path.display())),
    }
}

/// A teacher that is a cache. Rows may have come to it since.
fn teachers_cache(report: &mut Report, source: &Source) {
    let shown = source.path.display();
    if !is_cache(&source.path) {
        return report.add("teacher: cache", Finding::NotThere(shown.to_string()));
    }
    let identity = Header::read(&source.path).and_then(|(header, _)| cache_identity(&header));
    let differs = match identity {
        Ok(identity) if Some(&identity) == source.identity.as_ref() => None,
        Ok(_) => Some(format!("{shown} is another teacher's, or of other settings")),
        Err(error) => Some(error.to_string()),
    };
    report.judge("teacher: cache", differs);
    for (name, wrong) in cache::examine(&source.path) {
        report.judge(format!("teacher: {name}"), wrong);
    }
}

/// The prompts that a teacher answered.
fn prompts(report: &mut Report, corpus: &Corpus, digests: &Digests) {
    let what = "prompts of the teacher's responses";
    if let Some(gone) = corpus.prompts.iter().find(|path| !path.is_file()) {
        return report.add(what, Finding::NotThere(gone.display().to_string()));
    }
    let differs = match digests.over(&corpus.prompts) {
        Ok(now) if corpus.written_from.get("the training data") == Some(&now) => None,
        Ok(_) => Some("data.train is not what the teacher answered".into()),
        Err(error) => Some(error.to_string()),
    };
    report.judge(what, differs);
}

/// The config in the folder of the run that a model lies in.
fn run_config(report: &mut Report, made: &Made) {
    let Some(recorded) = made.provenance.config.as_ref().filter(|_| made.provenance.training.is_some()) else { return };
    let Some(file) = config_of(&made.dir) else {
        let what = format!("{}config.toml", made.prefix);
        return report.add(what, Finding::NotThere("no config.toml stands where that of a run does".into()));
    };
    let now = match config::load(&file, &[], None).and_then(|config| keys_of(&config)) {
        Ok(keys) => keys,
        Err(error) => return report.add("config.toml", Finding::Differs(error.to_string())),
    };
    let differing: Vec<&str> =
        recorded.keys.iter().filter(|(key, value)| now.get(*key) != Some(value)).map(|(key, _)| key.as_str()).collect();
    let differs = (!differing.is_empty()).then(|| format!("{} differ from what was trained", differing.join(", ")));
    let whose =
        if made.prefix.is_empty() { String::new() } else { format!(" of {}", made.prefix.trim_end_matches('/')) };
    report.judge(format!("config.toml{whose}"), differs);
}

/// The config.toml of the run that `dir`, a checkpoint or a student, lies in.
fn config_of(dir: &Path) -> Option<PathBuf> {
    let dir = std::path::absolute(dir).ok()?;
    let parent = dir.parent()?;
    let run = if parent.ends_with(layout::CHECKPOINTS) { parent.parent()? } else { parent };
    Some(run.join("config.toml")).filter(|file| file.is_file())
}
