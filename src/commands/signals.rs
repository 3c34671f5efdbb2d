//! Ctrl-C and SIGTERM as a flag that long work looks at between its units; another one, a moment later, exits at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::{Error, Result};
use crate::metrics::Screen;

/// Signals closer together than this are one: `timeout` and supervisors signal the process and then its group.
const ONE_SIGNAL: Duration = Duration::from_secs(1);

/// The flag that the first signal raises. `unit`: what is finished first, such as "step".
pub fn watch(unit: &'static str, screen: &Screen) -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut signals =
        Signals::new([SIGINT, SIGTERM]).map_err(|e| Error::run(format!("cannot watch for signals: {e}")))?;
    let (flag, screen) = (stop.clone(), screen.clone());
    std::thread::spawn(move || {
        let mut first: Option<Instant> = None;
        for signal in signals.forever() {
            match first {
                None => {
                    first = Some(Instant::now());
                    flag.store(true, Ordering::Relaxed);
                    screen.line(&format!("stopping after this {unit}; once more quits without saving it"));
                }
                Some(at) if at.elapsed() < ONE_SIGNAL => {}
                Some(_) => std::process::exit(128 + signal),
            }
        }
    });
    Ok(stop)
}
