//! Ctrl-C and SIGTERM as a flag that training looks at between steps; the second one exits at once.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::error::{Error, Result};

/// The flag that the first signal sets.
pub fn watch() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for (signal, code) in [(SIGINT, 130), (SIGTERM, 143)] {
        // In this order: the first signal finds the flag down and raises it, the second finds it up and exits.
        flag::register_conditional_shutdown(signal, code, stop.clone())
            .and_then(|_| flag::register(signal, stop.clone()))
            .map_err(|e| Error::run(format!("cannot watch for signals: {e}")))?;
    }
    Ok(stop)
}
