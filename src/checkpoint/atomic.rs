//! Writes that survive a kill and a power cut: all of the new content or all of the old, never a mixture.
//!
//! The order is always the same: write beside the destination, fsync the files and their folder, rename into place,
//! fsync the parent. A rename is atomic but not durable; without the last fsync the *name* can be lost.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::disk;
use crate::error::{Error, Result};

/// Unfinished content: worthless after a kill.
const TEMPORARY: &str = ".tmp-";
/// A folder that is being replaced: the only copy if the kill came before the new one was in place.
const REPLACED: &str = ".old-";

/// Replaces the content of the file `path`, durably.
pub fn write_file(path: &Path, content: &[u8]) -> Result<()> {
    let temporary = sibling(path, TEMPORARY)?;
    let _unfinished = Unfinished::new(&temporary);
    let write = || -> io::Result<()> {
        disk::write(&temporary, content)?;
        disk::sync(&temporary)?;
        disk::rename(&temporary, path)?;
        disk::sync_folder(parent(path))
    };
    write().map_err(|cause| {
        let _ = fs::remove_file(&temporary);
        Error::unwritable(path, cause)
    })
}

/// Points `dir/name` at the folder `target` beside it: one line of text.
pub fn write_pointer(dir: &Path, name: &str, target: &str) -> Result<()> {
    write_file(&dir.join(name), format!("{target}\n").as_bytes())
}

/// Writes the folder `path` through `fill`, durably: it appears complete or not at all, and replaces an older folder
/// of that name. What `fill` left unfinished is removed when it fails.
///
/// `path` must be a folder of files. Its parent is created.
pub fn write_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let staging = Staging::beside(path)?;
    fill(staging.folder())?;
    staging.commit()
}

/// Files that are written and not yet on the disk. They stay open: some file systems tell what went wrong to none but the handle that
/// wrote.
#[must_use = "what is not synced may be lost"]
#[derive(Debug, Default)]
pub struct Unsynced(Vec<(PathBuf, File)>);

impl Unsynced {
    pub(super) fn of(path: &Path, file: File) -> Self {
        Self(vec![(path.to_owned(), file)])
    }

    pub fn and(mut self, more: Self) -> Self {
        self.0.extend(more.0);
        self
    }

    /// Waits until they are on the disk.
    ///
    /// Errors (exit 1): the disk (the file is named).
    pub fn sync(self) -> Result<()> {
        self.0.iter().try_for_each(|(path, file)| disk::sync_open(path, file).map_err(|e| Error::unwritable(path, e)))
    }
}

/// A folder under construction; removed when dropped before [`Staging::commit`].
pub(super) struct Staging {
    temporary: PathBuf,
    path: PathBuf,
}

impl Staging {
    /// Starts the folder that will become `path`.
    pub(super) fn beside(path: &Path) -> Result<Self> {
        let staging = Self { temporary: sibling(path, TEMPORARY)?, path: path.to_owned() };
        under_construction(|folders| folders.push(staging.temporary.clone()));
        let start = || -> io::Result<()> {
            create_folders(parent(path))?;
            disk::delete(&staging.temporary)?;
            disk::create_folder(&staging.temporary)
        };
        start().map_err(|cause| Error::unwritable(path, cause))?;
        Ok(staging)
    }

    /// Where to write.
    pub(super) fn folder(&self) -> &Path {
        &self.temporary
    }

    /// Makes the content durable and moves it into place.
    pub(super) fn commit(self) -> Result<()> {
        self.rename().map_err(|cause| Error::unwritable(&self.path, cause))
    }

    fn rename(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.temporary)? {
            disk::sync(&entry?.path())?;
        }
        disk::sync_folder(&self.temporary)?;
        let old = sibling(&self.path, REPLACED).map_err(io::Error::other)?;
        let replaces = self.path.exists();
        if replaces {
            // A folder cannot be renamed over one that has files. `recover` undoes a kill between the two renames.
            disk::delete(&old)?;
            disk::rename(&self.path, &old)?;
        }
        if let Err(cause) = disk::rename(&self.temporary, &self.path) {
            if replaces {
                disk::rename(&old, &self.path)?;
            }
            return Err(cause);
        }
        disk::sync_folder(parent(&self.path))?;
        // The new folder is in place and durable; a leftover is only litter, which the next `recover` removes.
        let _ = disk::delete(&old);
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = disk::delete(&self.temporary);
        under_construction(|folders| folders.retain(|folder| folder != &self.temporary));
    }
}

fn under_construction(change: impl FnOnce(&mut Vec<PathBuf>)) {
    static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(vec![]);
    change(&mut FOLDERS.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
}

/// A folder that is written in place: removed when the process is told to quit before this is dropped.
pub struct Unfinished(PathBuf);

impl Unfinished {
    pub fn new(path: &Path) -> Self {
        under_construction(|folders| folders.push(path.to_owned()));
        Self(path.to_owned())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        under_construction(|folders| folders.retain(|folder| folder != &self.0));
    }
}

/// Removes what this process has under construction and exits with `code`. Its writers may still be at work: who begins
/// something new waits here for the end.
pub fn abandon(code: i32) {
    under_construction(|folders| {
        for folder in folders {
            // A file that is created meanwhile keeps a folder from going; its writer is not given the time for many.
            (0..100).find(|_| disk::delete(folder).is_ok() && !folder.exists());
        }
        std::process::exit(code);
    });
}

/// Cleans up after a killed writer: puts a half-replaced folder back, removes what was never finished.
///
/// Call it only while no other process writes into `dir`. An absent `dir` is fine.
pub fn recover(dir: &Path) -> Result<()> {
    let clean = || -> io::Result<()> {
        let mut changed = false;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if let Some(original) = name.strip_prefix(REPLACED).map(|name| dir.join(name))
                && !original.exists()
            {
                disk::rename(&entry.path(), &original)?;
            } else if name.starts_with(TEMPORARY) || name.starts_with(REPLACED) {
                disk::delete(&entry.path())?;
            } else {
                continue;
            }
            changed = true;
        }
        if changed { disk::sync_folder(dir) } else { Ok(()) }
    };
    match clean() {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound && !dir.exists() => Ok(()),
        done => done.map_err(|cause| Error::run(format!("cannot clean up {}: {cause}", dir.display()))),
    }
}

/// Removes a folder so that a kill midway leaves litter for [`recover`], never a folder with some of its files.
pub fn remove_folder(path: &Path) -> Result<()> {
    let remove = || -> io::Result<()> {
        let doomed = sibling(path, TEMPORARY).map_err(io::Error::other)?;
        disk::delete(&doomed)?;
        disk::rename(path, &doomed)?;
        disk::sync_folder(parent(path))?;
        disk::delete(&doomed)
    };
    remove().map_err(|cause| Error::run(format!("cannot delete {}: {cause}", path.display())))
}

/// Whether `name` is one of ours that [`recover`] handles.
pub(super) fn is_leftover(name: &str) -> bool {
    name.starts_with(TEMPORARY) || name.starts_with(REPLACED)
}

/// `create_dir_all` whose new names are durable too.
pub(super) fn create_folders(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    create_folders(parent(dir))?;
    match disk::create_folder(dir) {
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(cause) => Err(cause),
        Ok(()) => disk::sync_folder(parent(dir)),
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn sibling(path: &Path, prefix: &str) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(Error::run(format!("cannot write {}: it has no name of its own", path.display())));
    };
    let mut sibling = std::ffi::OsString::from(prefix);
    sibling.push(name);
    Ok(parent(path).join(sibling))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_pointer_is_the_old_or_the_new_line_at_every_point_of_its_write() {
        let dir = tempfile::tempdir().unwrap();
        write_pointer(dir.path(), "latest", "step-00000001").unwrap();
        let seen = disk::snapshots(dir.path(), || write_pointer(dir.path(), "latest", "step-00000002").unwrap());
        assert!(seen.len() >= 4);
        for snapshot in seen {
            let text = fs::read_to_string(snapshot.path().join("latest")).unwrap();
            assert!(text == "step-00000001\n" || text == "step-00000002\n", "{text:?}");
            recover(snapshot.path()).unwrap();
            assert_eq!(names(snapshot.path()), ["latest"]);
        }
        assert_eq!(fs::read_to_string(dir.path().join("latest")).unwrap(), "step-00000002\n");
    }

    #[test]
    fn a_folder_being_replaced_is_whole_after_a_kill_at_any_point() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("student");
        let fill = |text: &'static str| move |d: &Path| write_file(&d.join("model"), text.as_bytes());
        write_folder(&target, fill("old")).unwrap();
        for snapshot in disk::snapshots(dir.path(), || write_folder(&target, fill("new")).unwrap()) {
            recover(snapshot.path()).unwrap();
            assert_eq!(names(snapshot.path()), ["student"]);
            let text = fs::read_to_string(snapshot.path().join("student/model")).unwrap();
            assert!(text == "old" || text == "new");
        }
        assert_eq!(fs::read_to_string(target.join("model")).unwrap(), "new");
        assert_eq!(names(dir.path()), ["student"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_content_and_no_litter() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("student");
        write_folder(&target, |d| write_file(&d.join("model"), b"old")).unwrap();
        let error = write_folder(&target, |d| {
            write_file(&d.join("model"), b"new")?;
            Err(Error::run("no space left"))
        });
        assert_eq!(error.unwrap_err().to_string(), "no space left");
        assert_eq!(fs::read_to_string(target.join("model")).unwrap(), "old");
        assert_eq!(names(dir.path()), ["student"]);
    }

    #[test]
    fn an_unwritable_place_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let blocked = dir.path().join("file");
        fs::write(&blocked, "x").unwrap();
        let message = write_file(&blocked.join("latest"), b"").unwrap_err().to_string();
        assert!(message.contains("file/latest"), "{message}");
        let message = write_folder(&blocked.join("step"), |_| Ok(())).unwrap_err().to_string();
        assert!(message.contains("file/step"), "{message}");
    }
}
