//! Digests of what a run reads, by name: a resumed run must find it unchanged.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::config::plan::Plan;
use crate::config::{ChatTemplate, StudentSource, TeacherConfig, TeacherKind};
use crate::error::{Error, Result};
use crate::model::weight_files;
use crate::student::Companions;
use crate::units::hex;

/// The digests of data, templates, tokenizer and models.
pub fn of(plan: &Plan, companions: &Companions) -> Result<BTreeMap<String, String>> {
    let mut prints = BTreeMap::new();
    let mut add = |name: &str, digest: [u8; 32]| {
        prints.insert(name.to_owned(), hex(&digest));
    };
    add("the training data", plan.train.digest());
    if let Some(held_out) = &plan.held_out {
        add("the held-out data", held_out.index.digest());
    }
    add("the student's tokenizer", companions.digest());
    if let ChatTemplate::File(file) = &plan.config.data.chat_template {
        add("the chat template", of_file(file)?);
    }
    if let StudentSource::Fresh { config, .. } = &plan.config.student.source {
        add("student.config", of_file(&shape_file(config))?);
    }
    // A checkpoint holds the adapters alone of what goes on; the rest is read again.
    if let StudentSource::Lora { from, .. } = &plan.config.student.source {
        add("the model that student.from adapts", of_weights(&folder_files(from)?)?);
    }
    match (&plan.cache, &plan.config.teacher) {
        (Some(cache), _) => {
            let mut header = cache.header().clone();
            header.parts.clear();
            add("the teacher's cache", Sha256::digest(header.to_bytes()?).into());
            add("the run's rows in the teacher's cache", plan.cached_rows);
        }
        (None, Some(teacher)) => add("the teacher", of_weights(&teacher_files(teacher)?)?),
        (None, None) => {}
    }
    Ok(prints)
}

/// The files of a live teacher.
pub fn teacher_files(teacher: &TeacherConfig) -> Result<Vec<PathBuf>> {
    Ok(match teacher.kind {
        TeacherKind::Local => folder_files(&teacher.path)?,
        TeacherKind::Gguf | TeacherKind::Cache => vec![teacher.path.clone()],
    })
}

/// The file that a fresh student's `config` names: a config.json or the folder of one.
pub fn shape_file(config: &Path) -> PathBuf {
    if config.is_dir() { config.join("config.json") } else { config.to_owned() }
}

/// The files of a model's folder that say what it computes.
pub fn folder_files(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok([weight_files(folder)?, vec![folder.join("config.json")]].concat())
}

/// The names of what has changed, as a list in words. None: nothing.
pub fn changed(saved: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Option<String> {
    let changed: Vec<&str> =
        saved.iter().filter(|(name, digest)| now.get(*name) != Some(digest)).map(|(name, _)| name.as_str()).collect();
    (!changed.is_empty()).then(|| changed.join(", "))
}

/// Refuses to go on when what the run reads has changed, naming it.
pub fn check(saved: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Result<()> {
    match changed(saved, now) {
        None => Ok(()),
        Some(changed) => Err(Error::input(format!(
            "cannot resume: {changed} changed since the run began; restore it, or start a new run in another --output"
        ))),
    }
}

fn of_file(path: &Path) -> Result<[u8; 32]> {
    Ok(Sha256::digest(std::fs::read(path).map_err(|e| Error::unreadable(path, e))?).into())
}

/// A digest of a model's files by sample: their sizes, and 64 KiB at each of 64 even places and at the end. It tells two
/// models apart without reading gigabytes.
fn of_weights(files: &[PathBuf]) -> Result<[u8; 32]> {
    const PLACES: u64 = 64;
    const BLOCK: usize = 64 << 10;
    let mut hasher = Sha256::new();
    for path in files {
        let unreadable = |e| Error::unreadable(path, e);
        let file = File::open(path).map_err(unreadable)?;
        let len = file.metadata().map_err(unreadable)?.len();
        hasher.update(len.to_le_bytes());
        let mut block = vec![0u8; BLOCK];
        for at in (0..PLACES).map(|place| len / PLACES * place).chain([len.saturating_sub(BLOCK as u64)]) {
            let n = file.read_at(&mut block, at).map_err(unreadable)?;
            hasher.update(&block[..n]);
        }
    }
    Ok(hasher.finalize().into())
}
