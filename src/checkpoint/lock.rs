//! One writer per run: a locked file in the run directory that names who holds it.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::{atomic, layout};
use crate::error::{Error, Result};

/// The right to write into a run directory, held until dropped or until the process ends, however it ends.
///
/// The lock is on the open file, not its existence: what a killed process left behind holds nothing.
#[derive(Debug)]
pub struct RunLock {
    dir: PathBuf,
    _file: File,
}

impl RunLock {
    /// Takes the lock of `run_dir`, which is created if absent.
    ///
    /// Errors (exit 1): another process holds it (its PID and host are named), or the directory is not writable.
    pub fn acquire(run_dir: &Path) -> Result<Self> {
        let path = run_dir.join(layout::LOCK);
        let unwritable = |cause| Error::unwritable(&path, cause);
        atomic::create_folders(run_dir).map_err(|cause| Error::unwritable(run_dir, cause))?;
        // Neither truncated here nor ever deleted: both would disturb another holder.
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(unwritable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.take(256).read_to_string(&mut holder);
                let holder = if holder.trim().is_empty() { "another process" } else { holder.trim() };
                return Err(Error::run(format!(
                    "{} is being written by {}; wait for it, stop it, or use another --output",
                    run_dir.display(),
                    holder.escape_debug()
                )));
            }
            Err(TryLockError::Error(cause)) => {
                return Err(Error::run(format!("cannot lock {}: {cause}", path.display())));
            }
        }
        let holder = format!("PID {} on {}\n", std::process::id(), host());
        file.set_len(0).and_then(|()| file.rewind()).map_err(unwritable)?;
        file.write_all(holder.as_bytes()).map_err(unwritable)?;
        Ok(Self { dir: run_dir.to_owned(), _file: file })
    }

    /// The run directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::env::var("HOSTNAME"))
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "an unnamed host".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_is_refused_naming_pid_and_host() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("runs/a");
        let first = RunLock::acquire(&run).unwrap();
        let message = RunLock::acquire(&run).unwrap_err().to_string();
        assert!(message.contains(&format!("PID {} on {}", std::process::id(), host())), "{message}");
        drop(first);
        assert_eq!(RunLock::acquire(&run).unwrap().dir(), run);
    }

    #[test]
    fn what_a_killed_process_left_in_the_file_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(layout::LOCK), "PID 1 on a host with a long, long name\n").unwrap();
        let _lock = RunLock::acquire(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join(layout::LOCK)).unwrap();
        assert_eq!(text, format!("PID {} on {}\n", std::process::id(), host()));
    }
}
