//! The writer's side of a run's checkpoints: save, mark the best, delete the old.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use super::atomic::{self, Staging, Unsynced};
use super::disk;
use super::find;
use super::layout::{self, BEST, CHECKPOINTS, LATEST, MANIFEST, STARTING};
use super::lock::RunLock;
use super::manifest::{Damage, Manifest, Parent, verify};
use crate::error::{Error, Result};

/// The checkpoints of one run, open for writing; holds the run's lock.
#[derive(Debug)]
pub struct Store {
    lock: RunLock,
    dir: PathBuf,
    /// Where the run stands: what the next checkpoint goes on from.
    last: Mutex<Option<Manifest>>,
}

/// A checkpoint whose files are written and not yet durable; removed if it is dropped before [`Store::commit`].
pub struct Staged {
    step: u64,
    staging: Staging,
    unsynced: Unsynced,
}

/// Which checkpoints stay.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// The newest so many. 0 counts as 1.
    pub last: usize,
    /// Besides, those of every so many steps.
    pub every: Option<u64>,
}

/// What [`Store::retain`] did.
#[derive(Debug, Default)]
pub struct Retained {
    /// Folders deleted, oldest first.
    pub deleted: Vec<PathBuf>,
    /// Why nothing was deleted: the newest checkpoint, or a pointer, does not read back.
    pub damage: Option<Damage>,
    /// Why less was deleted than could have been.
    pub trouble: Option<Error>,
}

impl Store {
    /// Opens `run_dir` for writing (created if absent; checkpoints/ only by the first save) and cleans up after a
    /// killed writer.
    ///
    /// Errors (exit 1): another process writes to the run; the disk refuses.
    pub fn open(run_dir: &Path) -> Result<Self> {
        let lock = RunLock::acquire(run_dir)?;
        let dir = run_dir.join(CHECKPOINTS);
        // Only under the lock: without it this would pull the folder from under a living writer.
        atomic::recover(run_dir)?;
        atomic::recover(&dir)?;
        Ok(Self { lock, dir, last: Mutex::default() })
    }

    /// Marks the folder as one in which a run only begins, until its first checkpoint is saved.
    ///
    /// Errors (exit 1): the disk refuses.
    pub fn begin(&self) -> Result<()> {
        atomic::write_file(&self.run_dir().join(STARTING), b"")
    }

    /// Whether it has no checkpoint yet since [`Store::begin`].
    pub fn is_beginning(&self) -> bool {
        self.run_dir().join(STARTING).exists()
    }

    pub fn run_dir(&self) -> &Path {
        self.lock.dir()
    }

    /// The run goes on from this checkpoint, which may be another run's.
    pub fn go_on_from(&self, manifest: &Manifest) {
        *self.last() = Some(manifest.clone());
    }

    fn last(&self) -> MutexGuard<'_, Option<Manifest>> {
        self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What the checkpoint of `step` goes on from. One that replaces the last goes on from where that did.
    fn parent(&self, step: u64) -> Option<Parent> {
        match &*self.last() {
            Some(last) if last.step == step => last.parent.clone(),
            last => last.as_ref().map(Manifest::as_parent),
        }
    }

    /// Begins the checkpoint of `step`: `fill` writes its files into the folder it is given, and returns those that it has open.
    /// Nothing counts before [`Store::commit`].
    ///
    /// Errors (exit 1): `fill` fails or the disk does. What was half written is removed.
    pub fn stage(&self, step: u64, fill: impl FnOnce(&Path) -> Result<Unsynced>) -> Result<Staged> {
        let begin = || -> Result<Staged> {
            let staging = Staging::beside(&self.dir.join(layout::folder_name(step)))?;
            let unsynced = fill(staging.folder())?;
            Ok(Staged { step, staging, unsynced })
        };
        begin().map_err(|error| unsaved(step, error))
    }

    /// Makes what was staged durable, then a checkpoint, then what `latest` names.
    ///
    /// A checkpoint of the same step is replaced (a resumed run comes by it again), or left alone if it is valid and
    /// has the same files, whatever its parent is. Call [`Store::point_best_at`] and then [`Store::retain`] afterwards: this deletes nothing.
    ///
    /// Errors (exit 1): the disk refuses. What was staged is removed, older checkpoints stay.
    pub fn commit(&self, Staged { step, staging, unsynced }: Staged) -> Result<()> {
        let name = layout::folder_name(step);
        let path = self.dir.join(&name);
        let write = || -> Result<()> {
            unsynced.sync()?;
            let manifest = Manifest::of(staging.folder(), step, self.parent(step))?;
            let existing = if path.exists() { verify(&path).ok() } else { None };
            let manifest = match existing.filter(|existing| existing.is_same(&manifest)) {
                Some(existing) => existing,
                None => {
                    let file = staging.folder().join(MANIFEST);
                    disk::write(&file, &manifest.to_bytes()).map_err(|cause| Error::unwritable(&file, cause))?;
                    staging.commit()?;
                    manifest
                }
            };
            atomic::write_pointer(&self.dir, LATEST, &name)?;
            let starting = self.run_dir().join(STARTING);
            disk::delete(&starting).map_err(|cause| Error::unwritable(&starting, cause))?;
            *self.last() = Some(manifest);
            Ok(())
        };
        write().map_err(|error| unsaved(step, error))
    }

    /// Makes `latest` name the checkpoint of `step`: what is newer is a future that was left.
    ///
    /// Errors (exit 1): there is no checkpoint of that step; the disk refuses.
    pub fn set_latest(&self, step: u64) -> Result<()> {
        self.point(LATEST, step)
    }

    /// Makes `best` name the checkpoint of `step`, or nothing: without a step, and where that checkpoint is gone.
    ///
    /// Errors (exit 1): the disk refuses.
    pub fn point_best_at(&self, step: Option<u64>) -> Result<()> {
        match step.filter(|&step| self.dir.join(layout::folder_name(step)).is_dir()) {
            Some(step) => self.point(BEST, step),
            None => {
                let best = self.dir.join(BEST);
                disk::delete(&best).map_err(|cause| Error::unwritable(&best, cause))
            }
        }
    }

    fn point(&self, pointer: &str, step: u64) -> Result<()> {
        let name = layout::folder_name(step);
        if !self.dir.join(&name).is_dir() {
            return Err(Error::run(format!("{pointer} cannot name step {step}: it has no checkpoint")));
        }
        atomic::write_pointer(&self.dir, pointer, &name)
    }

    /// Deletes the oldest checkpoints until those that `keep` names are left up to `latest`. Never deleted: `latest`, `best`, and
    /// what is newer than `latest` (the future that a resume from an older step left; it is replaced when reached).
    ///
    /// Before anything is deleted `latest` is read back in full. If it is damaged, everything stays.
    pub fn retain(&self, keep: Retention) -> Result<Retained> {
        let steps = find::steps(self.run_dir())?;
        let latest = match find::pointed(&self.dir, LATEST) {
            Ok(latest) => latest.or(steps.last().copied()),
            Err(damage) => return Ok(Retained { damage: Some(damage), ..Retained::default() }),
        };
        let best = match find::pointed(&self.dir, BEST) {
            Ok(best) => best,
            Err(damage) => return Ok(Retained { damage: Some(damage), ..Retained::default() }),
        };
        let past: Vec<u64> = steps.into_iter().filter(|&step| latest.is_some_and(|latest| step <= latest)).collect();
        let old = &past[..past.len().saturating_sub(keep.last.max(1))];
        let milestone = |step: u64| step > 0 && keep.every.is_some_and(|every| step.is_multiple_of(every));
        let doomed: Vec<u64> = old.iter().copied().filter(|&step| Some(step) != best && !milestone(step)).collect();
        let mut done = Retained::default();
        if let (Some(latest), false) = (latest, doomed.is_empty())
            && let Err(damage) = verify(&self.dir.join(layout::folder_name(latest)))
        {
            done.damage = Some(damage);
            return Ok(done);
        }
        for step in doomed {
            let path = self.dir.join(layout::folder_name(step));
            match atomic::remove_folder(&path) {
                Ok(()) => done.deleted.push(path),
                // The new checkpoint stands: an old one too many is no reason to end a run.
                Err(error) => done.trouble = Some(error),
            }
        }
        Ok(done)
    }
}

fn unsaved(step: u64, error: Error) -> Error {
    error.context(format!("cannot save the checkpoint of step {step}"))
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
