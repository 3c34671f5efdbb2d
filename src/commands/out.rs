//! Results on stdout.

use std::io::{ErrorKind, Write};

use crate::error::{Error, Result};

/// Writes `text` to stdout. A reader that has gone (`| head`) is no error.
pub fn write(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::run(format!("cannot write to stdout: {e}"))),
        _ => Ok(()),
    }
}
