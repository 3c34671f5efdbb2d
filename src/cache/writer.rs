//! Blocks are appended whole; the header comes first and the index last, so that what was broken off can be told and gone on
//! with.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::block::{self, Block, BlockRow, Blocks, Placed};
use super::header::{Header, Part};
use super::index::Entry;
use super::{HEADER, INDEX, SIGNAL, index};
use crate::checkpoint::{RunLock, atomic, layout};
use crate::error::{Error, Result};

/// The one writer of a cache's folder.
pub struct Writer {
    dir: PathBuf,
    header: Header,
    file: File,
    /// Of all blocks that are there.
    entries: Vec<Entry>,
    /// The first block that belongs here, and the next one.
    first: u64,
    next: u64,
    /// Bytes of the blocks.
    end: u64,
    _lock: RunLock,
}

impl Writer {
    /// Starts a cache in `dir`, which has to be absent or empty.
    ///
    /// Input errors: it is not. Run errors: it cannot be written, or another process writes it.
    pub fn create(dir: &Path, header: Header) -> Result<Self> {
        if !layout::is_fresh(dir)? {
            return Err(Error::input(format!(
                "{} is not empty: --resume goes on with the cache in it, another --output starts a new one",
                dir.display()
            )));
        }
        let lock = RunLock::acquire(dir)?;
        let path = dir.join(SIGNAL);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(|cause| Error::unwritable(&path, cause))?;
        let first = first_block(&header);
        let writer =
            Self { dir: dir.to_owned(), header, file, entries: vec![], first, next: first, end: 0, _lock: lock };
        writer.write_header()?;
        Ok(writer)
    }

    /// Goes on after the last whole block in `dir`; what follows it is cut off.
    ///
    /// Input errors: there is no cache; it is not the signal that `wanted` describes, by the first field that differs; a
    /// block that does not belong there. Run errors as [`Writer::create`].
    pub fn resume(dir: &Path, wanted: &Header) -> Result<Self> {
        let lock = RunLock::acquire(dir)?;
        let (header, _) = Header::read(dir)?;
        let refuse = |what: String| {
            let dir = dir.display();
            Error::input(format!(
                "cannot go on with the cache {dir}: {what}; take what it was made with, or another --output"
            ))
        };
        if let Some(difference) = header.difference(wanted) {
            return Err(refuse(format!("the cache and the config differ in {difference}")));
        }
        if header.shard != wanted.shard {
            let name =
                |header: &Header| header.shard.map_or("all of it".into(), |s| format!("shard {}/{}", s.index, s.count));
            return Err(refuse(format!("it is {}, asked for was {}", name(&header), name(wanted))));
        }
        let path = dir.join(SIGNAL);
        let unwritable = |cause| Error::unwritable(&path, cause);
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(unwritable)?;
        let mut blocks = Blocks::new(file.try_clone().map_err(unwritable)?).map_err(unwritable)?;
        let first = first_block(&header);
        let (mut entries, mut next) = (vec![], first);
        while let Some(Ok(block)) = blocks.next_block().map_err(unwritable)? {
            if block.number != next {
                return Err(refuse(format!("{} has block {} where {next} belongs", path.display(), block.number)));
            }
            entries.extend(block.rows);
            next += 1;
        }
        let end = blocks.at();
        file.set_len(end).map_err(unwritable)?;
        Ok(Self { dir: dir.to_owned(), header, file, entries, first, next, end, _lock: lock })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The rows of all blocks, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The number of the next block.
    pub fn next_block(&self) -> u64 {
        self.next
    }

    /// Bytes of signal.bin.
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// Says which rows are to come, or are there.
    pub fn set_parts(&mut self, parts: Vec<Part>) -> Result<()> {
        self.header.parts = parts;
        self.write_header()
    }

    fn write_header(&self) -> Result<()> {
        atomic::write_file(&self.dir.join(HEADER), &self.header.to_bytes()?)
    }

    /// Adds the next block, durably.
    pub fn append(&mut self, rows: &[BlockRow]) -> Result<()> {
        let bytes = block::to_bytes(self.next, rows);
        let mut offset =
            self.end + bytes.len() as u64 - 32 - rows.iter().map(|row| row.frame.len() as u64).sum::<u64>();
        let mut placed = vec![];
        for row in rows {
            let frame = row.frame.len() as u32;
            placed.push(Placed { digest: row.digest, targets: row.targets, length: row.length, offset, frame });
            offset += frame as u64;
        }
        self.append_bytes(&bytes, placed)
    }

    /// Adds the next block as another cache has it.
    pub(super) fn append_block(&mut self, block: Block) -> Result<()> {
        let start = block.rows.first().map_or(0, |row| row.offset);
        let table = block.bytes.len() as u64 - 32 - block.rows.iter().map(|row| row.frame as u64).sum::<u64>();
        let moved = |row: Placed| Placed { offset: row.offset - start + self.end + table, ..row };
        let rows = block.rows.iter().map(|row| moved(*row)).collect();
        self.append_bytes(&block.bytes, rows)
    }

    fn append_bytes(&mut self, bytes: &[u8], rows: Vec<Entry>) -> Result<()> {
        let path = self.dir.join(SIGNAL);
        let write = || -> std::io::Result<()> {
            self.file.write_all_at(bytes, self.end)?;
            self.file.sync_data()
        };
        write().map_err(|cause| Error::unwritable(&path, cause))?;
        self.end += bytes.len() as u64;
        self.next += 1;
        self.entries.extend(rows);
        Ok(())
    }

    /// The bytes of a row's frame.
    pub(super) fn frame(&self, entry: &Entry) -> std::io::Result<Vec<u8>> {
        let mut frame = vec![0; entry.frame as usize];
        self.file.read_exact_at(&mut frame, entry.offset)?;
        Ok(frame)
    }

    /// Whether all blocks that the header promises are there.
    pub fn is_whole(&self) -> bool {
        let blocks = self.header.blocks();
        let promised = self.header.shard.map_or(blocks, |shard| shard.of(blocks).count() as u64);
        self.next - self.first == promised
    }

    /// Writes the index: the cache is complete. Does nothing to one that is.
    pub fn finish(self) -> Result<()> {
        if !self.is_whole() {
            return Err(Error::run(format!("{} blocks of the cache are missing", self.header.blocks() - self.next)));
        }
        let (_, digest) = Header::read(&self.dir)?;
        let path = self.dir.join(INDEX);
        let bytes = index::to_bytes(digest, &self.entries);
        if std::fs::read(&path).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        atomic::write_file(&path, &bytes)
    }
}

fn first_block(header: &Header) -> u64 {
    header.shard.map_or(0, |shard| shard.of(header.blocks()).start)
}
