//! Named points between a save's writes, fsyncs and renames, where a test fails the save or photographs the disk.
//!
//! Outside of tests this is nothing.

#[cfg(not(test))]
pub(super) fn reach(_name: &'static str) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) use testing::*;

#[cfg(test)]
mod testing {
    use std::cell::RefCell;
    use std::fs;
    use std::io;
    use std::path::Path;
    use tempfile::TempDir;

    type Hook = Box<dyn FnMut(&'static str) -> io::Result<()>>;
    thread_local!(static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) });

    pub fn reach(name: &'static str) -> io::Result<()> {
        HOOK.with_borrow_mut(|hook| hook.as_mut().map_or(Ok(()), |hook| hook(name)))
    }

    /// Runs `save` and copies `dir` at every point: each copy is what a kill there would leave.
    pub fn snapshots(dir: &Path, save: impl FnOnce()) -> Vec<TempDir> {
        let (seen, dir) = (std::rc::Rc::new(RefCell::new(vec![])), dir.to_owned());
        let sink = seen.clone();
        HOOK.set(Some(Box::new(move |_| {
            let copy = tempfile::tempdir()?;
            copy_folder(&dir, copy.path())?;
            sink.borrow_mut().push(copy);
            Ok(())
        })));
        save();
        HOOK.set(None);
        seen.take()
    }

    /// Runs `save` with the `nth` point failing as a full disk does; returns whether that point was reached.
    pub fn fail_at<T>(nth: usize, save: impl FnOnce() -> T) -> (T, bool) {
        let count = std::rc::Rc::new(RefCell::new(0));
        let counter = count.clone();
        HOOK.set(Some(Box::new(move |_| {
            *counter.borrow_mut() += 1;
            if *counter.borrow() == nth { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        })));
        let result = save();
        HOOK.set(None);
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
