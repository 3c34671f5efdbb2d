//! Checkpoints that are written and become durable while the training goes on.
//!
//! What a checkpoint holds changes only at the end of the next step, when its gradients are there: until then the files are
//! written from the weights and moments themselves, without a copy. From then on only the disk is waited for.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use crate::checkpoint::{Retained, Retention, Store, Unsynced};
use crate::error::{Error, Result};

/// Writes a checkpoint's files into the folder it is given; returns those that it has open.
pub type Writer = Box<dyn FnOnce(&Path) -> Result<Unsynced> + Send>;

/// Saves one checkpoint at a time. Dropped, it waits for the one under way.
pub struct Saver {
    store: Arc<Store>,
    keep: Retention,
    newest: Option<u64>,
    under_way: Option<UnderWay>,
}

struct UnderWay {
    step: u64,
    best: bool,
    again: bool,
    /// Closed once its files are written.
    writing: Receiver<()>,
    thread: JoinHandle<Result<Retained>>,
}

/// A checkpoint that is on the disk and that `latest` names.
pub struct Saved {
    pub step: u64,
    pub best: bool,
    /// This run has saved it before, or went on from it: it only gained its evaluation.
    pub again: bool,
    pub retained: Retained,
}

impl Saver {
    /// `newest`: the step of the checkpoint that a run goes on from in the same folder.
    pub fn new(store: Arc<Store>, keep: Retention, newest: Option<u64>) -> Self {
        Self { store, keep, newest, under_way: None }
    }

    /// The step of the newest checkpoint, which may be under way.
    pub fn newest(&self) -> Option<u64> {
        self.newest
    }

    /// Leaves the checkpoint of `step` to a thread: it writes the files, makes them durable, points `latest` and, if it is the
    /// best, `best` at them, and deletes what is old. [`Saver::wait_until_written`] before what is written changes, and
    /// [`Saver::wait`] before the next.
    ///
    /// Errors (exit 1): there is no thread to be had.
    pub fn begin(&mut self, step: u64, best: bool, write: Writer) -> Result<()> {
        assert!(self.under_way.is_none(), "a checkpoint is still being saved");
        let (store, keep) = (self.store.clone(), self.keep);
        let (written, writing) = channel();
        let save = move || {
            let staged = store.stage(step, write)?;
            drop::<Sender<()>>(written);
            store.commit(staged)?;
            if best {
                store.point_best_at(Some(step))?;
            }
            store.retain(keep)
        };
        let thread = std::thread::Builder::new()
            .name("checkpoint".into())
            .spawn(save)
            .map_err(|cause| Error::run(format!("no thread to save the checkpoint of step {step}: {cause}")))?;
        let again = self.newest.replace(step) == Some(step);
        self.under_way = Some(UnderWay { step, best, again, writing, thread });
        Ok(())
    }

    /// From here on weights, moments and state may change. One that could not be written is not told of here.
    pub fn wait_until_written(&self) {
        if let Some(under_way) = &self.under_way {
            // Nothing is ever sent: this returns when the other end is gone, after an error or a panic too.
            let _ = under_way.writing.recv();
        }
    }

    /// The checkpoint that was under way and is saved by now.
    ///
    /// Errors (exit 1): it could not be saved. It is gone, older ones stay.
    pub fn done(&mut self) -> Result<Option<Saved>> {
        match &self.under_way {
            Some(under_way) if under_way.thread.is_finished() => self.wait(),
            _ => Ok(None),
        }
    }

    /// The checkpoint that was under way, once it is saved.
    ///
    /// Errors: as of [`Saver::done`].
    pub fn wait(&mut self) -> Result<Option<Saved>> {
        let Some(UnderWay { step, best, again, thread, .. }) = self.under_way.take() else { return Ok(None) };
        let retained = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(Some(Saved { step, best, again, retained }))
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        // After an error, or while a panic unwinds: the process must not end in the middle of it.
        if let Some(under_way) = self.under_way.take() {
            let _ = under_way.thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::checkpoint::latest_valid;

    fn saver(dir: &Path) -> Saver {
        let store = Store::open(dir).unwrap();
        Saver::new(Arc::new(store), Retention { last: 2, every: None }, None)
    }

    fn begin(saver: &mut Saver, step: u64) {
        let write = move |dir: &Path| {
            fs::write(dir.join("model"), step.to_string()).unwrap();
            Ok(Unsynced::default())
        };
        saver.begin(step, false, Box::new(write)).unwrap();
    }

    fn latest(dir: &Path) -> u64 {
        latest_valid(dir).unwrap().checkpoint.unwrap().step()
    }

    #[test]
    fn a_checkpoint_counts_when_it_is_said_to() {
        let dir = tempfile::tempdir().unwrap();
        let mut saver = saver(dir.path());
        assert!(saver.wait().unwrap().is_none());
        for step in 1..=4 {
            begin(&mut saver, step);
            assert_eq!(saver.newest(), Some(step));
            let saved = std::iter::repeat_with(|| saver.done().unwrap()).flatten().next().unwrap();
            assert!(saved.step == step && !saved.again);
            assert_eq!(latest(dir.path()), step);
            assert_eq!(saved.retained.deleted.len(), usize::from(step > 2));
        }
        begin(&mut saver, 4);
        assert!(saver.wait().unwrap().unwrap().again);
    }

    #[test]
    fn what_changes_after_it_was_written_is_not_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut saver = saver(dir.path());
        let weight = Arc::new(AtomicU64::new(1));
        let slow = {
            let weight = weight.clone();
            move |dir: &Path| {
                std::thread::sleep(Duration::from_millis(50));
                fs::write(dir.join("model"), weight.load(Ordering::SeqCst).to_string()).unwrap();
                Ok(Unsynced::default())
            }
        };
        saver.begin(7, false, Box::new(slow)).unwrap();
        saver.wait_until_written();
        weight.store(2, Ordering::SeqCst);
        saver.wait_until_written();
        assert_eq!(saver.wait().unwrap().unwrap().step, 7);
        assert_eq!(fs::read_to_string(dir.path().join("checkpoints/step-00000007/model")).unwrap(), "1");
    }

    #[test]
    fn one_that_cannot_be_written_holds_nothing_up_and_is_an_error_when_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut saver = saver(dir.path());
        saver.begin(3, false, Box::new(|_| Err(Error::run("no space left")))).unwrap();
        saver.wait_until_written();
        let message = saver.wait().err().unwrap().to_string();
        assert_eq!(message, "cannot save the checkpoint of step 3: no space left");
        assert!(latest_valid(dir.path()).unwrap().checkpoint.is_none());
    }

    #[test]
    fn one_that_the_disk_refuses_is_an_error_once_and_the_one_before_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut saver = saver(dir.path());
        begin(&mut saver, 1);
        saver.wait().unwrap();
        let pointer = dir.path().join("checkpoints/latest");
        fs::remove_file(&pointer).unwrap();
        fs::create_dir_all(pointer.join("in the way")).unwrap();
        begin(&mut saver, 2);
        let message = saver.wait().err().unwrap().to_string();
        assert!(message.starts_with("cannot save the checkpoint of step 2: cannot write "), "{message}");
        assert!(saver.wait().unwrap().is_none());
        fs::remove_dir_all(&pointer).unwrap();
        assert!(dir.path().join("checkpoints/step-00000001/manifest.json").exists());
    }

    #[test]
    fn one_under_way_is_finished_before_the_run_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut dropped = saver(dir.path());
        begin(&mut dropped, 1);
        drop(dropped);
        assert_eq!(latest(dir.path()), 1);
        // The lock is free again.
        saver(dir.path());
    }
}
