//! Steps read ahead in a thread, so that training never waits for the disk, the template or the tokenizer.
//!
//! Nothing of it shows in what a run yields: with each step comes where the loader stood after it, so whoever has taken n
//! steps sees the state after n, however many more were read. An error waits its turn in the same queue.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Builder, JoinHandle};

use super::index::Rejections;
use super::loader::{Loader, LoaderState, Step};
use crate::{Error, Result};

/// Steps that are ready before they are asked for: one in the queue and one that waits to enter it.
const AHEAD: usize = 2;

/// What a step consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepShape {
    /// Rows or, with `packing`, packs.
    pub batch_size: usize,
    pub packing: bool,
}

/// A loader in a thread of its own. The thread ends with this value, at the latest when the step it is reading is read.
#[derive(Debug)]
pub struct ReadAhead {
    state: LoaderState,
    rejections: Rejections,
    /// None only while it is dropped.
    steps: Option<Receiver<Read>>,
    /// None once its panic was passed on.
    thread: Option<JoinHandle<()>>,
}

/// An answer of the loader, and what it says of itself after it.
struct Read {
    step: Result<Option<Step>>,
    state: LoaderState,
    /// None: as they were. There may be a thousand, which most steps add nothing to.
    rejections: Option<Rejections>,
}

impl ReadAhead {
    /// Begins to read where `loader` stands. A run error if the system gives no thread.
    pub fn new(mut loader: Loader, shape: StepShape) -> Result<Self> {
        let (state, rejections) = (loader.state().clone(), loader.rejections().clone());
        let mut rejected = rejections.count;
        Self::spawn(state, rejections, move || {
            let step = loader.next_step(shape.batch_size, shape.packing);
            let now = loader.rejections();
            let more = std::mem::replace(&mut rejected, now.count) != now.count;
            Read { step, rejections: more.then(|| now.clone()), state: loader.state().clone() }
        })
    }

    fn spawn(
        state: LoaderState,
        rejections: Rejections,
        mut read: impl FnMut() -> Read + Send + 'static,
    ) -> Result<Self> {
        let (sender, steps) = sync_channel(AHEAD - 1);
        let thread = Builder::new()
            .name("read-ahead".into())
            .spawn(move || while sender.send(read()).is_ok() {})
            .map_err(|e| Error::run(format!("cannot start the thread that reads the data: {e}")))?;
        Ok(Self { state, rejections, steps: Some(steps), thread: Some(thread) })
    }

    /// The next step, as [`Loader::next_step`] gives it, with its errors. Panics as the loader did.
    pub fn next_step(&mut self) -> Result<Option<Step>> {
        let Some(read) = self.steps.as_ref().and_then(|steps| steps.recv().ok()) else {
            // The thread goes on until nobody listens, so it can only have panicked.
            let ended = self.thread.take().expect("asked again after a panic").join();
            std::panic::resume_unwind(ended.expect_err("the thread ended while its steps were wanted"));
        };
        if let Some(rejections) = read.rejections {
            self.rejections = rejections;
        }
        let step = read.step?;
        self.state = read.state;
        Ok(step)
    }

    /// The loader's state after the last step that was asked for and came without an error.
    pub fn state(&self) -> &LoaderState {
        &self.state
    }

    /// The loader's rejections once the last step that was asked for had been read.
    pub fn rejections(&self) -> &Rejections {
        &self.rejections
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        // Wakes the thread if it waits to hand a step over.
        self.steps = None;
        // A panic over a step that nobody asked for is nobody's.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_thread_is_passed_on_at_its_own_step_and_never_a_hang() {
        let mut left = 3;
        let mut steps = ReadAhead::spawn(LoaderState::default(), Rejections::default(), move || {
            left -= 1;
            assert!(left > 0, "the tokenizer gave up");
            Read { step: Ok(Some(Step { items: vec![], epoch: 0 })), state: LoaderState::default(), rejections: None }
        })
        .unwrap();
        assert!(steps.next_step().unwrap().is_some());
        assert!(steps.next_step().unwrap().is_some());
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| steps.next_step())).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"the tokenizer gave up"));
    }
}
