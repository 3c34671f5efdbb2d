//! What a durable write asks of the file system. A test puts itself between: it records every operation, lets one fail as a full
//! disk does, or photographs what a kill before it would leave.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// One operation, named when it is about to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code))]
pub(super) enum Operation<'a> {
    CreateFolder(&'a Path),
    Write(&'a Path),
    /// The content of a file.
    Sync(&'a Path),
    /// The names in a folder.
    SyncFolder(&'a Path),
    Rename(&'a Path, &'a Path),
    Delete(&'a Path),
}

use Operation::*;

pub(super) fn create_folder(path: &Path) -> io::Result<()> {
    reach(CreateFolder(path))?;
    fs::create_dir(path)
}

/// Creates or empties the file; what it holds is not durable yet.
pub(super) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    reach(Write(path))?;
    File::create(path)?.write_all(content)
}

pub(super) fn sync(path: &Path) -> io::Result<()> {
    sync_open(path, &File::open(path)?)
}

/// The same, by a handle that is there already.
pub(super) fn sync_open(path: &Path, file: &File) -> io::Result<()> {
    reach(Sync(path))?;
    file.sync_all()
}

pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    reach(SyncFolder(path))?;
    File::open(path)?.sync_all()
}

pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    reach(Rename(from, to))?;
    fs::rename(from, to)
}

/// Removes a file or a folder with all it holds; what is not there is removed already.
pub(super) fn delete(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(cause) => Err(cause),
        Ok(found) => reach(Delete(path)).and_then(|()| match found.is_dir() {
            true => fs::remove_dir_all(path),
            false => fs::remove_file(path),
        }),
    };
    match removed {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(not(test))]
fn reach(_: Operation<'_>) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) use testing::*;

#[cfg(test)]
mod testing {
    use super::Operation;
    use std::cell::RefCell;
    use std::fs;
    use std::io;
    use std::path::Path;
    use std::rc::Rc;
    use tempfile::TempDir;

    type Hook = Box<dyn FnMut(Operation<'_>) -> io::Result<()>>;
    thread_local!(static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) });

    pub fn reach(operation: Operation<'_>) -> io::Result<()> {
        HOOK.with_borrow_mut(|hook| hook.as_mut().map_or(Ok(()), |hook| hook(operation)))
    }

    /// Runs `save` with every operation going through `hook`.
    fn through<T>(hook: impl FnMut(Operation<'_>) -> io::Result<()> + 'static, save: impl FnOnce() -> T) -> T {
        HOOK.set(Some(Box::new(hook)));
        let result = save();
        HOOK.set(None);
        result
    }

    /// Runs `save` and returns its operations in order, paths relative to `dir`.
    pub fn record(dir: &Path, save: impl FnOnce()) -> Vec<String> {
        let (seen, dir) = (Rc::new(RefCell::new(vec![])), dir.to_owned());
        let sink = seen.clone();
        let write_down = move |operation: Operation<'_>| {
            let name = |path: &Path| path.strip_prefix(&dir).unwrap().display().to_string();
            sink.borrow_mut().push(match operation {
                Operation::CreateFolder(path) => format!("create {}", name(path)),
                Operation::Write(path) => format!("write {}", name(path)),
                Operation::Sync(path) => format!("sync {}", name(path)),
                Operation::SyncFolder(path) => format!("sync {}/", name(path)),
                Operation::Rename(from, to) => format!("rename {} to {}", name(from), name(to)),
                Operation::Delete(path) => format!("delete {}", name(path)),
            });
            Ok(())
        };
        through(write_down, save);
        seen.take()
    }

    /// Runs `save` and copies `dir` before every operation: each copy is what a kill there would leave.
    pub fn snapshots(dir: &Path, save: impl FnOnce()) -> Vec<TempDir> {
        let (seen, dir) = (Rc::new(RefCell::new(vec![])), dir.to_owned());
        let sink = seen.clone();
        let copy = move |_: Operation<'_>| {
            let copy = tempfile::tempdir()?;
            copy_folder(&dir, copy.path())?;
            sink.borrow_mut().push(copy);
            Ok(())
        };
        through(copy, save);
        seen.take()
    }

    /// Runs `save` with the `nth` operation failing with `cause`; returns whether there was an `nth`.
    pub fn fail_at<T>(nth: usize, cause: io::ErrorKind, save: impl FnOnce() -> T) -> (T, bool) {
        let count = Rc::new(RefCell::new(0));
        let counter = count.clone();
        let fail = move |_: Operation<'_>| {
            *counter.borrow_mut() += 1;
            if *counter.borrow() == nth { Err(cause.into()) } else { Ok(()) }
        };
        let result = through(fail, save);
        (result, *count.borrow() >= nth)
    }

    fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let target = to.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                copy_folder(&entry.path(), &target)?;
            } else {
                fs::copy(entry.path(), target)?;
            }
        }
        Ok(())
    }
}
