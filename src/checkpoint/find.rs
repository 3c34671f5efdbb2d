//! Finding a checkpoint to go on from. Reads only: it needs no lock and cleans nothing up.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::layout::{self, BEST, CHECKPOINTS, LATEST};
use super::manifest::{Damage, Manifest, verify};
use crate::error::{Error, Result};

/// A checkpoint whose every file was verified when this was made.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    dir: PathBuf,
    manifest: Manifest,
}

impl Checkpoint {
    /// Verifies the checkpoint at `path`: its folder, or a pointer (`checkpoints/best`) to it.
    ///
    /// Errors: there is nothing (exit 2); it is damaged (exit 1, the file is named).
    pub fn open(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(Error::input(format!(
                "there is no checkpoint {}; give the folder of one, such as RUN/checkpoints/step-00000100",
                path.display()
            )));
        }
        let dir = if path.is_file() { follow(path) } else { Ok(path.to_owned()) };
        dir.and_then(Self::verified).map_err(|damage| {
            Error::run(format!(
                "checkpoint {} is damaged: {damage}; --resume auto takes the newest valid one",
                path.display()
            ))
        })
    }

    fn verified(dir: PathBuf) -> Result<Self, Damage> {
        verify(&dir).map(|manifest| Self { dir, manifest })
    }

    /// Optimizer steps done.
    pub fn step(&self) -> u64 {
        self.manifest.step
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of one of its files (names in [`layout`]).
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Whether it has this file.
    pub fn has(&self, name: &str) -> bool {
        self.manifest.files.contains_key(name)
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

/// What a search found, and what it had to pass over.
#[derive(Debug, Default)]
pub struct Found {
    /// None: the run has no checkpoint yet.
    pub checkpoint: Option<Checkpoint>,
    /// Newest first: to be shown as warnings.
    pub damage: Vec<Damage>,
}

/// The checkpoint that `latest` names; if it is damaged, the newest valid one before it; failing that, any valid one.
///
/// Errors (exit 1): there are checkpoints, but none is valid; one that counts is of a newer version, which is no damage and nothing
/// to go back behind.
pub fn latest_valid(run_dir: &Path) -> Result<Found> {
    let dir = run_dir.join(CHECKPOINTS);
    let mut found = Found::default();
    let mut steps = steps(run_dir)?;
    steps.reverse();
    match pointed(&dir, LATEST) {
        // Newer than `latest` is a save killed before it counted, or a future that a resume from an older step left.
        Ok(Some(latest)) => {
            if !steps.contains(&latest) {
                found.damage.push(Damage::Missing(dir.join(layout::folder_name(latest))));
            }
            steps.sort_by_key(|&step| (step > latest, std::cmp::Reverse(step)));
        }
        Ok(None) => {}
        Err(damage) => found.damage.push(damage),
    }
    for step in steps {
        match Checkpoint::verified(dir.join(layout::folder_name(step))) {
            Ok(checkpoint) => {
                found.checkpoint = Some(checkpoint);
                return Ok(found);
            }
            Err(damage @ (Damage::Format { .. } | Damage::NewerProvenance { .. })) => {
                return Err(Error::run(format!(
                    "{damage}: resume with that version, or give --resume an older checkpoint"
                )));
            }
            Err(damage) => found.damage.push(damage),
        }
    }
    if found.damage.is_empty() {
        return Ok(found);
    }
    let list: Vec<_> = found.damage.iter().map(Damage::to_string).collect();
    Err(Error::run(format!("no valid checkpoint in {}: {}", dir.display(), list.join("; "))))
}

/// The steps of the checkpoints in `run_dir`, ascending, valid or not.
pub fn steps(run_dir: &Path) -> Result<Vec<u64>> {
    let dir = run_dir.join(CHECKPOINTS);
    let failed = |cause| Error::run(format!("cannot list {}: {cause}", dir.display()));
    let mut steps = vec![];
    match fs::read_dir(&dir) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(steps),
        entries => {
            for entry in entries.map_err(failed)? {
                let name = entry.map_err(failed)?.file_name();
                steps.extend(name.to_str().and_then(layout::parse_folder_name));
            }
        }
    }
    steps.sort_unstable();
    Ok(steps)
}

/// The step that `best` names, if it still exists.
pub fn best(run_dir: &Path) -> Option<u64> {
    let dir = run_dir.join(CHECKPOINTS);
    let step = pointed(&dir, BEST).ok()??;
    dir.join(layout::folder_name(step)).is_dir().then_some(step)
}

/// The step that the pointer `dir/name` names, `None` if there is no pointer.
pub fn pointed(dir: &Path, name: &str) -> Result<Option<u64>, Damage> {
    let file = dir.join(name);
    match fs::read(&file) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Damage::Unreadable { file, cause }),
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            match layout::parse_folder_name(text.trim_end()) {
                Some(step) => Ok(Some(step)),
                None => Err(Damage::Pointer { file, text: text.chars().take(80).collect() }),
            }
        }
    }
}

/// The folder that the pointer `pointer` names.
pub fn follow(pointer: &Path) -> Result<PathBuf, Damage> {
    let (dir, name) = (pointer.parent().unwrap_or(Path::new("")), pointer.file_name().unwrap_or_default());
    match name.to_str().map(|name| pointed(dir, name)) {
        Some(Ok(Some(step))) => Ok(dir.join(layout::folder_name(step))),
        Some(Err(damage)) => Err(damage),
        _ => Err(Damage::Missing(pointer.to_owned())),
    }
}
