//! Whether a safetensors file is all there: its header is held against the file's length before anything is mapped.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::hub;

/// Far above every model's, and small enough to allocate.
const LONGEST_HEADER: u64 = 32 << 20;
/// The header's length, little-endian, stands before it.
const LENGTH: u64 = 8;

/// One entry of the header; `__metadata__` has no offsets.
#[derive(Deserialize)]
struct Entry {
    /// Behind the header.
    #[serde(default)]
    data_offsets: Option<(u64, u64)>,
}

/// Input errors: a Git LFS pointer, a header that is none, a file that is shorter or longer than its header says. Shapes, types
/// and overlaps are left to the reader.
pub(super) fn whole(path: &Path) -> Result<()> {
    let unreadable = |e| Error::unreadable(path, e);
    let file = File::open(path).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len();
    let mut head = [0; 256];
    let n = file.read_at(&mut head, 0).map_err(unreadable)?;
    hub::not_a_pointer(path, &head[..n])?;
    let refused = |what: String| {
        let path = path.display();
        Error::input(format!("{path} is not a whole safetensors file: {what}: fetch it again"))
    };
    let length = u64::from_le_bytes(std::array::from_fn(|i| head[i]));
    if size < LENGTH {
        return Err(refused(format!("it has {size} bytes")));
    }
    if length > size - LENGTH {
        return Err(refused(format!("it has {size} bytes, and its header alone would take {length}")));
    }
    if length > LONGEST_HEADER {
        return Err(refused(format!("its header takes {length} bytes; at most {LONGEST_HEADER} are read")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact_at(&mut header, LENGTH).map_err(unreadable)?;
    let header: HashMap<String, Entry> =
        serde_json::from_slice(&header).map_err(|e| refused(format!("its header cannot be read ({e})")))?;
    let end = header.values().filter_map(|entry| entry.data_offsets).map(|(_, end)| end).max().unwrap_or(0);
    let needed = end.saturating_add(LENGTH + length);
    match needed.cmp(&size) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(refused(format!(
            "it has {size} of the {needed} bytes that its header speaks of, as a download that broke off"
        ))),
        std::cmp::Ordering::Less => {
            Err(refused(format!("it has {size} bytes, where its header speaks of {needed}: something else follows")))
        }
    }
}
