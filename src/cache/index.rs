//! index.bin: where each row's record is, in the order of the rows' digests.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::block::Placed;
use crate::error::{Error, Result};

/// At the start of the file; the digest of header.json, the bytes of signal.bin, the number of entries, the entries and a
/// digest of all that follow.
const MAGIC: &[u8; 4] = b"DTI1";
const HEAD: u64 = 4 + 32 + 8 + 8;
const ENTRY: u64 = 32 + 8 + 3 * 4;
const SUM: u64 = 32;

/// A row's record.
pub type Entry = Placed;

/// The bytes of the index of a cache whose header has the digest `header` and whose signal.bin is `signal` bytes long. Of rows
/// with one digest the first stays.
pub(super) fn to_bytes(header: [u8; 32], signal: u64, entries: &[Entry]) -> Vec<u8> {
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by(|a, b| a.digest.cmp(&b.digest).then(a.offset.cmp(&b.offset)));
    sorted.dedup_by_key(|entry| entry.digest);
    let mut out = Vec::with_capacity((HEAD + sorted.len() as u64 * ENTRY + SUM) as usize);
    out.extend(MAGIC);
    out.extend(header);
    out.extend(signal.to_le_bytes());
    out.extend((sorted.len() as u64).to_le_bytes());
    for entry in sorted {
        out.extend(entry.digest);
        out.extend(entry.offset.to_le_bytes());
        [entry.frame, entry.length, entry.targets].iter().for_each(|field| out.extend(field.to_le_bytes()));
    }
    let sum: [u8; 32] = Sha256::digest(&out).into();
    out.extend(sum);
    out
}

/// An index on the disk. Entries are looked up there: memory does not grow with the rows.
#[derive(Debug)]
pub struct Index {
    file: File,
    path: PathBuf,
    signal_bytes: u64,
    entries: u64,
}

impl Index {
    /// Opens `path`, once it has been held against its digest and against `header`, that of header.json. None: it belongs to
    /// another header, as while rows are being added.
    ///
    /// Input errors: it cannot be read, or is damaged.
    pub fn open(path: &Path, header: [u8; 32]) -> Result<Option<Self>> {
        let unreadable = |cause| Error::unreadable(path, cause);
        let file = File::open(path).map_err(unreadable)?;
        let damaged = || {
            Error::input(format!(
                "{} is damaged: remove it, and `distill cache --resume` builds it again",
                path.display()
            ))
        };
        let length = file.metadata().map_err(unreadable)?.len();
        let mut head = [0; HEAD as usize];
        if length < HEAD + SUM {
            return Err(damaged());
        }
        file.read_exact_at(&mut head, 0).map_err(unreadable)?;
        let [signal_bytes, entries] = [36, 44].map(|at| u64::from_le_bytes(std::array::from_fn(|i| head[at + i])));
        let wanted = entries.checked_mul(ENTRY).and_then(|bytes| bytes.checked_add(HEAD + SUM));
        if !head.starts_with(MAGIC)
            || wanted != Some(length)
            || !matches_its_digest(&file, length).map_err(unreadable)?
        {
            return Err(damaged());
        }
        Ok((head[4..36] == header).then(|| Self { file, path: path.to_owned(), signal_bytes, entries }))
    }

    /// Length of the signal.bin that it is of.
    pub fn signal_bytes(&self) -> u64 {
        self.signal_bytes
    }

    /// Number of rows.
    pub fn len(&self) -> u64 {
        self.entries
    }

    /// Entry `i`, in the order of digests.
    pub fn get(&self, i: u64) -> Result<Entry> {
        let mut bytes = [0; ENTRY as usize];
        self.file.read_exact_at(&mut bytes, HEAD + i * ENTRY).map_err(|e| Error::unreadable(&self.path, e))?;
        let field = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[40 + 4 * at + i]));
        Ok(Entry {
            digest: std::array::from_fn(|i| bytes[i]),
            offset: u64::from_le_bytes(std::array::from_fn(|i| bytes[32 + i])),
            frame: field(0),
            length: field(1),
            targets: field(2),
        })
    }

    /// The row with this digest.
    pub fn find(&self, digest: &[u8; 32]) -> Result<Option<Entry>> {
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = self.get(middle)?;
            match entry.digest.cmp(digest) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(Some(entry)),
            }
        }
        Ok(None)
    }
}

fn matches_its_digest(file: &File, length: u64) -> io::Result<bool> {
    let mut reader = io::BufReader::with_capacity(1 << 20, file).take(length);
    let (mut hasher, mut left) = (Sha256::new(), length - SUM);
    let mut buffer = vec![0; 1 << 16];
    while left > 0 {
        let n = (buffer.len() as u64).min(left) as usize;
        reader.read_exact(&mut buffer[..n])?;
        hasher.update(&buffer[..n]);
        left -= n as u64;
    }
    let mut sum = [0; SUM as usize];
    reader.read_exact(&mut sum)?;
    Ok(hasher.finalize()[..] == sum)
}
