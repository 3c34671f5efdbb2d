//! Lines of one file in bounded memory.

use std::io::{BufRead, BufReader};
use std::path::Path;

use super::jsonl::LONGEST_LINE;
use super::source::{Finished, Source, named};
use crate::{Error, Result};

/// One line; its bytes are lent by [`Lines::next`].
pub(super) struct Line {
    /// Where its first byte stands in the text.
    pub offset: u64,
    /// 1-based.
    pub number: u64,
    /// Longer than [`LONGEST_LINE`]; the bytes were passed over.
    pub too_long: bool,
}

pub(super) struct Lines<'a> {
    path: &'a Path,
    reader: BufReader<Source<'a>>,
    offset: u64,
    number: u64,
    buffer: Vec<u8>,
}

/// What a file that is no text starts with, its name, and the way out.
const MAGIC: [(&[u8], &str, &str); 6] = [
    (b"\x1f\x8b", "a gzip file", "gzip -dk"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "zstd -dk"),
    (b"BZh", "a bzip2 file", "bzip2 -dk"),
    (b"\xfd7zXZ\0", "an xz file", "xz -dk"),
    (b"PK\x03\x04", "a zip archive", "unzip"),
    (b"PAR1", "a Parquet file", ""),
];

/// Where a tar archive says that it is one.
const TAR: (usize, &[u8]) = (257, b"ustar");

const BOM: &[u8] = b"\xef\xbb\xbf";

impl<'a> Lines<'a> {
    /// Opens `path`, refuses by name what is no text (once it is out of gzip or zstd), and passes over a byte order mark.
    pub fn open(path: &'a Path) -> Result<Self> {
        let mut reader = BufReader::with_capacity(1 << 18, Source::open(path)?);
        let head = reader.fill_buf().map_err(|e| named(path, e))?;
        let is_tar = head.get(TAR.0..).is_some_and(|rest| rest.starts_with(TAR.1));
        let magic = MAGIC.iter().find(|(magic, ..)| head.starts_with(magic)).map(|(_, what, tool)| (*what, *tool));
        if let Some((what, tool)) = magic.or(is_tar.then_some(("a tar archive", "tar -xf"))) {
            let file = path.display();
            let refused = match (reader.get_ref().packed(), tool) {
                (Some(packing), _) => format!("{file} holds {what} inside of {packing}: unpack it to JSONL first"),
                (None, "") => format!("{file} is {what}; JSONL is read: convert it first"),
                (None, tool) => {
                    format!(
                        "{file} is {what}; JSONL is read as it is, in gzip or in zstd: unpack it first: {tool} {file}"
                    )
                }
            };
            return Err(Error::input(refused));
        }
        let bom = if head.starts_with(BOM) { BOM.len() } else { 0 };
        reader.consume(bom);
        Ok(Self { path, reader, offset: bom as u64, number: 0, buffer: vec![] })
    }

    /// The next line without its LF or CRLF; None at the end of the file.
    pub fn next(&mut self) -> Result<Option<(Line, &[u8])>> {
        let offset = self.offset;
        let mut too_long = false;
        self.buffer.clear();
        loop {
            let chunk = self.reader.fill_buf().map_err(|e| named(self.path, e))?;
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
            self.reader.consume(n);
            self.offset += n as u64;
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

    /// What the file was, once every line was taken, and the bytes of its text.
    pub fn finish(self) -> (Finished, u64) {
        (self.reader.into_inner().finish(), self.offset)
    }
}

pub(super) fn without_line_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}
