//! SIGINT, SIGTERM and SIGUSR1 (a batch system's warning): what the first one does, and what the second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::checkpoint::atomic;
use crate::error::{Error, Result};
use crate::metrics::Screen;

/// Signals closer together than this are one: `timeout` and supervisors signal the process and then its group.
const ONE_SIGNAL: Duration = Duration::from_secs(1);

/// The exit code of what can be gone on with (EX_TEMPFAIL).
const STOPPED: i32 = 75;

/// A command that can be gone on with: the first signal raises a flag that it looks at between its units of work, another one,
/// a moment later, exits at once.
pub struct Watch {
    stop: Arc<AtomicBool>,
    at_once: Arc<Mutex<Option<&'static str>>>,
}

impl Watch {
    /// `unit`: what is finished first, such as "step".
    pub fn new(unit: &'static str, screen: &Screen) -> Result<Self> {
        let watch = Self { stop: Arc::default(), at_once: Arc::default() };
        let (stop, at_once, screen) = (watch.stop.clone(), watch.at_once.clone(), screen.clone());
        let mut first: Option<Instant> = None;
        listen(move |signal| match first {
            None => {
                // Held while it exits, so that nothing is begun meanwhile.
                let at_once = at_once.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                if let Some(message) = *at_once {
                    screen.line(message);
                    std::process::exit(STOPPED);
                }
                first = Some(Instant::now());
                stop.store(true, Ordering::Relaxed);
                screen.line(&format!("stopping after this {unit}; once more quits without saving it"));
            }
            Some(at) if at.elapsed() < ONE_SIGNAL => {}
            Some(_) => std::process::exit(128 + signal),
        })?;
        Ok(watch)
    }

    /// Raised by the first signal.
    pub fn flag(&self) -> &AtomicBool {
        &self.stop
    }

    /// From now on there is nothing to finish or to save: a signal ends the process with this message (exit 75). None: there is
    /// again.
    pub fn quit_at_once(&self, message: Option<&'static str>) {
        *self.at_once.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = message;
    }
}

/// A command that starts over: a signal ends it with 128 + its number, and what it was writing is removed.
pub fn quit() -> Result<()> {
    listen(|signal| atomic::abandon(128 + signal))
}

fn listen(mut arrived: impl FnMut(i32) + Send + 'static) -> Result<()> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGUSR1]).map_err(|e| Error::run(format!("cannot watch for signals: {e}")))?;
    std::thread::spawn(move || signals.forever().for_each(&mut arrived));
    Ok(())
}
