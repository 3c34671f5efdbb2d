//! Results on stdout.

use std::io::{ErrorKind, IsTerminal, Write};

use crate::error::{Error, Result};
use crate::printable::{lines, prose};

/// Writes the lines of a result. Paths and names in it are data: what a terminal would obey is escaped, wherever it goes.
pub fn write(text: &str) -> Result<()> {
    exactly(&lines(text))
}

/// Writes what a model says: to a terminal what can be shown of it, to a file or a pipe every byte.
pub fn generated(text: &str) -> Result<()> {
    match std::io::stdout().is_terminal() {
        true => exactly(&prose(text)),
        false => exactly(text),
    }
}

/// Writes `text` as it is: JSON, which has escapes of its own. A reader that has gone (`| head`) is no error.
pub fn exactly(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::run(format!("cannot write to stdout: {e}"))),
        _ => Ok(()),
    }
}
