//! Where every good row of a corpus stands: built in one streaming pass, 12 bytes a row, read back by position.
//!
//! Rows themselves never stay in memory, so a corpus may be larger than it.

use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::jsonl::{Fault, LONGEST_LINE, Record};
use super::lines::{Lines, without_line_end};
use super::source::Finished;
use crate::{Error, Result};

/// What a row that cannot be used does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnBadRecord {
    /// Ends the command with an input error.
    #[default]
    Fail,
    /// Is counted and passed over, but for more than `most` in one corpus.
    Skip { most: Option<u64> },
}

impl OnBadRecord {
    /// However many there are.
    pub const SKIP: Self = Self::Skip { most: None };

    /// An input error that lists the first ten if `count` bad rows are more than may be passed over; `lists` are the rows.
    pub(super) fn bound(self, count: u64, lists: &[&Rejections]) -> Result<()> {
        match self {
            Self::Skip { most: Some(most) } if count > most => {
                let mut all = Rejections::default();
                lists.iter().for_each(|list| all.extend(list));
                let rows = if most == 1 { "1 bad row".into() } else { format!("{most} bad rows") };
                let message = format!("more than {rows} in the data, which data.max_bad allows");
                Err(all.listed(message, "mend the data, or raise data.max_bad"))
            }
            _ => Ok(()),
        }
    }
}

/// Where a row stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: Arc<PathBuf>,
    /// 1-based.
    pub line: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A row that was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    pub place: Place,
    pub fault: Fault,
}

impl Rejected {
    /// As a line of rejected.jsonl.
    pub fn json(&self) -> serde_json::Value {
        let mut line = serde_json::json!({ "file": *self.place.file, "line": self.place.line });
        if let Some(column) = self.fault.column {
            line["column"] = column.into();
        }
        line["reason"] = self.fault.reason.as_str().into();
        line
    }
}

impl std::fmt::Display for Rejected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Fault { column, reason } = &self.fault;
        match column {
            Some(column) => write!(f, "{}:{column}: {reason}", self.place),
            None => write!(f, "{}: {reason}", self.place),
        }
    }
}

/// Bad rows: all of them counted, the first ones kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rejections {
    pub count: u64,
    /// The first 1000.
    pub first: Vec<Rejected>,
}

/// Bad rows that are kept by name.
const KEPT: usize = 1000;

impl Rejections {
    pub(super) fn push(&mut self, place: Place, fault: impl Into<Fault>) {
        self.count += 1;
        if self.first.len() < KEPT {
            self.first.push(Rejected { place, fault: fault.into() });
        }
    }

    /// Adds those of `other`.
    pub fn extend(&mut self, other: &Self) {
        self.count += other.count;
        let room = KEPT - self.first.len();
        self.first.extend(other.first.iter().take(room).cloned());
    }

    /// The input error that lists up to ten of them and names the way out.
    pub(super) fn refusal(&self) -> Error {
        let rows = if self.count == 1 { "1 bad row".into() } else { format!("{} bad rows", self.count) };
        let way_out = "mend the data, or set on_bad_record = \"skip\" to pass over such rows";
        self.listed(format!("{rows} in the data"), way_out)
    }

    fn listed(&self, mut message: String, way_out: &str) -> Error {
        for bad in self.first.iter().take(10) {
            message += &format!("\n  {bad}");
        }
        if self.count > 10 {
            message += &format!("\n  … and {} more", self.count - 10);
        }
        Error::input(format!("{message}\n{way_out}"))
    }
}

/// One file of a corpus, as it was when it was indexed.
#[derive(Debug)]
pub struct CorpusFile {
    pub path: Arc<PathBuf>,
    /// On the disk.
    pub bytes: u64,
    /// Of the file on the disk, compressed or not.
    pub sha256: [u8; 32],
    /// Of what is in it.
    text_bytes: u64,
    text: File,
}

/// One row: relative to its block, so that four bytes are enough for each field.
#[derive(Debug)]
struct Entry {
    offset: u32,
    line: u32,
    /// Low half of the hash of the line's bytes: tells a file that changed under us.
    check: u32,
}

/// Rows of one file that stand close together. Full blocks are never grown, so memory is what the rows need.
#[derive(Debug)]
struct Block {
    file: u32,
    first_row: usize,
    offset: u64,
    line: u64,
    entries: Vec<Entry>,
}

const BLOCK_ROWS: usize = 1 << 14;

/// The rows of one or more JSONL files, in order. Cheap to share between threads.
#[derive(Debug)]
pub struct CorpusIndex {
    files: Vec<CorpusFile>,
    blocks: Vec<Block>,
    rows: usize,
    policy: OnBadRecord,
    rejections: Rejections,
}

fn check(bytes: &[u8]) -> u32 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish() as u32
}

impl CorpusIndex {
    /// Reads every file once and validates every row.
    ///
    /// Input errors: a file that is missing, no text, or compressed and not whole; a bad row under [`OnBadRecord::Fail`] (up to ten are listed as
    /// `path:line:column: reason`, or `path:line: reason` if it is not at one place), or more of them than
    /// [`OnBadRecord::Skip`] passes over; no row at all.
    pub fn open(paths: &[PathBuf], policy: OnBadRecord) -> Result<Self> {
        Self::open_watching(paths, policy, false, |_, _| {})
    }

    /// As [`CorpusIndex::open`]; with `prompts` a row may be without a response. `watch` is handed the place and the record of every good row as it goes by.
    pub fn open_watching(
        paths: &[PathBuf],
        policy: OnBadRecord,
        prompts: bool,
        mut watch: impl FnMut(&Place, &Record),
    ) -> Result<Self> {
        let mut index = Self { files: vec![], blocks: vec![], rows: 0, policy, rejections: Rejections::default() };
        for path in paths {
            index.add_file(path, prompts, &mut watch)?;
        }
        if policy == OnBadRecord::Fail && index.rejections.count > 0 {
            return Err(index.rejections.refusal());
        }
        if index.rows == 0 {
            let names: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
            let skipped = match index.rejections.count {
                0 => String::new(),
                n => format!(" ({n} bad rows were passed over)"),
            };
            return Err(Error::input(format!("{} holds no rows{skipped}", names.join(", "))));
        }
        Ok(index)
    }

    fn add_file(&mut self, path: &Path, prompts: bool, watch: &mut impl FnMut(&Place, &Record)) -> Result<()> {
        let name = Arc::new(path.to_owned());
        let mut lines = Lines::open(path)?;
        let mut fresh = true;
        while let Some((line, bytes)) = lines.next()? {
            let record = if line.too_long {
                Err(format!("a line of more than {} MiB", LONGEST_LINE >> 20).into())
            } else if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            } else {
                Record::parse(bytes).and_then(|record| match record.unanswered().filter(|_| !prompts) {
                    Some(reason) => Err(reason.into()),
                    None => Ok(record),
                })
            };
            let place = Place { file: name.clone(), line: line.number };
            match record {
                Err(fault) => {
                    self.rejections.push(place, fault);
                    self.policy.bound(self.rejections.count, &[&self.rejections])?;
                }
                Ok(record) => {
                    watch(&place, &record);
                    self.add_row(fresh, line.offset, line.number, check(bytes))?;
                    fresh = false;
                }
            }
        }
        let (Finished { sha256, bytes, text }, text_bytes) = lines.finish();
        self.files.push(CorpusFile { path: name, bytes, sha256, text_bytes, text });
        Ok(())
    }

    fn add_row(&mut self, new_file: bool, offset: u64, line: u64, check: u32) -> Result<()> {
        if self.rows == u32::MAX as usize {
            return Err(Error::input(format!("more than {} rows in one corpus", u32::MAX)));
        }
        let near = |base: u64, at: u64| u32::try_from(at - base).ok();
        let entry = match self.blocks.last() {
            Some(b) if !new_file && b.entries.len() < BLOCK_ROWS => near(b.offset, offset).zip(near(b.line, line)),
            _ => None,
        };
        let (offset_in, line_in) = entry.unwrap_or_else(|| {
            let entries = Vec::with_capacity(if self.rows == 0 { 64 } else { BLOCK_ROWS });
            self.blocks.push(Block { file: self.files.len() as u32, first_row: self.rows, offset, line, entries });
            (0, 0)
        });
        let block = self.blocks.last_mut().expect("just looked at");
        block.entries.push(Entry { offset: offset_in, line: line_in, check });
        self.rows += 1;
        Ok(())
    }

    /// Number of good rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    pub fn policy(&self) -> OnBadRecord {
        self.policy
    }

    /// Bad rows that were passed over, under [`OnBadRecord::Skip`].
    pub fn rejections(&self) -> &Rejections {
        &self.rejections
    }

    pub fn files(&self) -> &[CorpusFile] {
        &self.files
    }

    /// Bytes of the text of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.text_bytes).sum()
    }

    /// SHA-256 over the digests of all files in order: another corpus, or another order of files, is another digest.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        self.files.iter().for_each(|f| hasher.update(f.sha256));
        hasher.finalize().into()
    }

    fn find(&self, row: usize) -> (&Block, &Entry) {
        let block = &self.blocks[self.blocks.partition_point(|b| b.first_row <= row) - 1];
        (block, &block.entries[row - block.first_row])
    }

    /// Where row `row` stands.
    pub fn place(&self, row: usize) -> Place {
        let (block, entry) = self.find(row);
        Place { file: self.files[block.file as usize].path.clone(), line: block.line + entry.line as u64 }
    }

    /// Reads row `row` (0-based, below [`CorpusIndex::len`]) from its file.
    ///
    /// A run error if the file cannot be read any more or the row is not the one that was indexed.
    pub fn read(&self, row: usize) -> Result<(Record, Place)> {
        let (block, entry) = self.find(row);
        let file = &self.files[block.file as usize];
        let place = self.place(row);
        let bytes = read_line(&file.text, block.offset + entry.offset as u64)
            .map_err(|e| Error::run(format!("cannot read {place}: {e}")))?;
        let changed = || {
            Error::run(format!(
                "{place} changed while it was in use: put it back as it was and go on with --resume, or start again with \
                 the data as it is now"
            ))
        };
        if check(&bytes) != entry.check {
            return Err(changed());
        }
        Ok((Record::parse(&bytes).map_err(|_| changed())?, place))
    }
}

/// The line that starts at `offset`, without its end; longer than allowed, it comes back cut and fails its check.
fn read_line(file: &File, offset: u64) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut chunk = 4 << 10;
    loop {
        let start = line.len();
        line.resize(start + chunk, 0);
        let n = match file.read_at(&mut line[start..], offset + start as u64) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {
                line.truncate(start);
                continue;
            }
            other => other?,
        };
        let end = line[start..start + n].iter().position(|&b| b == b'\n');
        line.truncate(start + end.map_or(n, |e| e + 1));
        if end.is_some() || n == 0 || line.len() > LONGEST_LINE + 2 {
            let kept = without_line_end(&line).len();
            line.truncate(kept);
            return Ok(line);
        }
        chunk = (chunk * 2).min(1 << 20);
    }
}
