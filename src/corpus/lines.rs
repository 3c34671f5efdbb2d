//! Lines of one file in bounded memory, with the SHA-256 of every byte that went by.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::jsonl::LONGEST_LINE;
use crate::{Error, Result};

/// One line; its bytes are lent by [`Lines::next`].
pub(super) struct Line {
    /// Where its first byte stands in the file.
    pub offset: u64,
    /// 1-based.
    pub number: u64,
    /// Longer than [`LONGEST_LINE`]; the bytes were passed over.
    pub too_long: bool,
}

pub(super) struct Lines<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    hasher: Sha256,
    offset: u64,
    number: u64,
    buffer: Vec<u8>,
}

/// What a compressed (or columnar) file starts with, its name, and the way out.
const MAGIC: [(&[u8], &str, &str); 6] = [
    (b"\x1f\x8b", "gzip-compressed", "gzip -dk"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "zstd -dk"),
    (b"BZh", "bzip2-compressed", "bzip2 -dk"),
    (b"\xfd7zXZ\0", "xz-compressed", "xz -dk"),
    (b"PK\x03\x04", "a zip archive", "unzip"),
    (b"PAR1", "a Parquet file", ""),
];

const BOM: &[u8] = b"\xef\xbb\xbf";

impl<'a> Lines<'a> {
    /// Opens `path`, refuses a compressed file by name, and passes over a byte order mark.
    pub fn open(path: &'a Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::unreadable(path, e))?;
        let mut reader = BufReader::with_capacity(1 << 18, file);
        let head = reader.fill_buf().map_err(|e| Error::unreadable(path, e))?;
        if let Some((_, what, tool)) = MAGIC.iter().find(|(magic, ..)| head.starts_with(magic)) {
            let way_out = match *tool {
                "" => "convert it to JSONL first".into(),
                tool => format!("decompress it first: {tool} {}", path.display()),
            };
            return Err(Error::input(format!("{} is {what}; JSONL is read as plain text: {way_out}", path.display())));
        }
        let mut lines = Self { path, reader, hasher: Sha256::new(), offset: 0, number: 0, buffer: vec![] };
        if lines.reader.buffer().starts_with(BOM) {
            lines.pass(BOM.len());
        }
        Ok(lines)
    }

    fn pass(&mut self, n: usize) {
        self.hasher.update(&self.reader.buffer()[..n]);
        self.reader.consume(n);
        self.offset += n as u64;
    }

    /// The next line without its LF or CRLF; None at the end of the file.
    pub fn next(&mut self) -> Result<Option<(Line, &[u8])>> {
        let offset = self.offset;
        let mut too_long = false;
        self.buffer.clear();
        loop {
            let chunk = self.reader.fill_buf().map_err(|e| Error::unreadable(self.path, e))?;
            if chunk.is_empty() {
                break;
            }
            let end = chunk.iter().position(|&b| b == b'\n');
            let n = end.map_or(chunk.len(), |e| e + 1);
            // A CR before the LF is part of the line end, hence the one byte of slack.
            if self.buffer.len() + n > LONGEST_LINE + 2 {
                too_long = true;
                self.buffer.clear();
            }
            if !too_long {
                self.buffer.extend_from_slice(&chunk[..n]);
            }
            self.pass(n);
            if end.is_some() {
                break;
            }
        }
        if self.offset == offset {
            return Ok(None);
        }
        self.number += 1;
        let bytes = without_line_end(&self.buffer);
        too_long |= bytes.len() > LONGEST_LINE;
        Ok(Some((Line { offset, number: self.number, too_long }, bytes)))
    }

    /// SHA-256 and length of the file, once every line was taken.
    pub fn finish(self) -> ([u8; 32], u64) {
        (self.hasher.finalize().into(), self.offset)
    }
}

pub(super) fn without_line_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}
