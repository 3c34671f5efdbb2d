//! Blocks are appended whole; the header comes first and the index last, so that what was broken off can be told and gone on
//! with.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::block::{self, Block, BlockRow, Blocks, Placed};
use super::header::{Header, Part};
use super::index::{Entry, Index};
use super::{HEADER, INDEX, SIGNAL, index};
use crate::checkpoint::{RunLock, atomic, layout};
use crate::error::{Error, Result};

/// The one writer of a cache's folder.
pub struct Writer {
    dir: PathBuf,
    header: Header,
    identity: [u8; 32],
    file: File,
    /// Of all blocks that are there.
    entries: Vec<Entry>,
    /// Rows of each block that is there.
    rows_of_blocks: Vec<u64>,
    /// The first block that belongs here.
    first: u64,
    /// Bytes of the blocks.
    end: u64,
    /// Whether the file has been cut to the blocks, and the index is gone.
    open: bool,
    _lock: RunLock,
}

impl Writer {
    /// Starts a cache in `dir`, which has to be absent or empty.
    ///
    /// Input errors: it is not. Run errors: it cannot be written, or another process writes it.
    pub fn create(dir: &Path, header: Header) -> Result<Self> {
        let refuse_others = || match layout::is_fresh(dir)? {
            true => Ok(()),
            false => Err(Error::input(format!(
                "{} is not empty: --resume goes on with the cache in it, another --output starts a new one",
                dir.display()
            ))),
        };
        // Before the lock, which would be written among other files; and after it, for who came first.
        refuse_others()?;
        let lock = RunLock::acquire(dir)?;
        refuse_others()?;
        atomic::write_file(&dir.join(HEADER), &header.to_bytes()?)?;
        let path = dir.join(SIGNAL);
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|cause| Error::unwritable(&path, cause))?;
        let (first, identity, dir) = (first_block(&header), header.identity()?, dir.to_owned());
        let (entries, rows_of_blocks) = (vec![], vec![]);
        Ok(Self { dir, header, identity, file, entries, rows_of_blocks, first, end: 0, open: false, _lock: lock })
    }

    /// Goes on after the last whole block in `dir`. What a write that was broken off left behind it is cut off, but not
    /// before something is written.
    ///
    /// Input errors: there is no cache; it is not the signal that `wanted` describes, by the first field that differs; a
    /// block is damaged that was whole, or does not belong there. Run errors as [`Writer::create`].
    pub fn resume(dir: &Path, wanted: &Header) -> Result<Self> {
        if !dir.join(HEADER).is_file() {
            let dir = dir.display();
            return Err(Error::input(format!("{dir} is no teacher cache, it has no {HEADER}: take another --output")));
        }
        let lock = RunLock::acquire(dir)?;
        let (header, digest) = Header::read(dir)?;
        let identity = header.identity()?;
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
        // One that is damaged is built again; one of another header is no word on this cache.
        let index = Index::open(&dir.join(INDEX), digest).ok().flatten();
        if index.is_some() && !path.is_file() {
            return Err(lost(&path, "is missing"));
        }
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(unwritable)?;
        let mut blocks = Blocks::new(file.try_clone().map_err(unwritable)?).map_err(unwritable)?;
        let first = first_block(&header);
        let (mut entries, mut rows_of_blocks) = (vec![], vec![]);
        while let Some(block) = blocks.next_block().map_err(unwritable)? {
            let next = first + rows_of_blocks.len() as u64;
            let block = match block {
                Ok(block) => block,
                // One append was under way at most: it is the last thing there is.
                Err(_) if !blocks.is_followed_by(&identity, next + 1).map_err(unwritable)? => break,
                Err(what) => return Err(damaged(&path, next, &what)),
            };
            if block.identity != identity {
                return Err(refuse(format!(
                    "block {next} of {} belongs to a cache with another {HEADER}: restore the one that was beside it",
                    path.display()
                )));
            }
            if block.number != next {
                return Err(refuse(format!("{} has block {} where {next} belongs", path.display(), block.number)));
            }
            rows_of_blocks.push(block.rows.len() as u64);
            entries.extend(block.rows);
        }
        let end = blocks.at();
        // Where the index says that the cache is complete, nothing was under way.
        if index.is_some_and(|index| index.signal_bytes() > end) {
            return Err(lost(&path, &format!("has no whole block at byte {end}, and its index knows of more")));
        }
        let dir = dir.to_owned();
        Ok(Self { dir, header, identity, file, entries, rows_of_blocks, first, end, open: false, _lock: lock })
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
        self.first + self.rows_of_blocks.len() as u64
    }

    /// Bytes of signal.bin.
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// Says which rows are to come, or are there.
    pub fn set_parts(&mut self, parts: Vec<Part>) -> Result<()> {
        self.header.parts = parts;
        atomic::write_file(&self.dir.join(HEADER), &self.header.to_bytes()?)
    }

    /// The header's parts as far as their blocks are there, and blocks of no part as one of the corpus `other`.
    ///
    /// Input errors: a part but the last has lost blocks.
    pub fn parts_that_are_there(&self, other: &str) -> Result<Vec<Part>> {
        let (mut parts, mut block, mut row) = (vec![], 0, 0);
        let last = self.header.parts.len().saturating_sub(1);
        let surplus = Part { corpus: other.into(), rows: 0, targets: 0, blocks: u64::MAX };
        for (i, part) in self.header.parts.iter().chain([&surplus]).enumerate() {
            let left = self.rows_of_blocks.len() - block;
            let blocks = left.min(usize::try_from(part.blocks).unwrap_or(usize::MAX));
            if i < last && (blocks as u64) < part.blocks {
                let path = self.dir.join(SIGNAL);
                return Err(damaged(&path, block as u64 + blocks as u64, "the file ends too early"));
            }
            let rows: u64 = self.rows_of_blocks[block..block + blocks].iter().sum();
            let targets = self.entries[row..row + rows as usize].iter().map(|entry| entry.targets as u64).sum();
            if blocks > 0 {
                parts.push(Part { corpus: part.corpus.clone(), rows, targets, blocks: blocks as u64 });
            }
            block += blocks;
            row += rows as usize;
        }
        Ok(parts)
    }

    /// Cuts off what is no block, and takes the word back that the cache is complete.
    fn open(&mut self) -> std::io::Result<()> {
        if !self.open {
            match std::fs::remove_file(self.dir.join(INDEX)) {
                Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(cause),
                _ => File::open(&self.dir)?.sync_all()?,
            }
            self.file.set_len(self.end)?;
            self.open = true;
        }
        Ok(())
    }

    /// Adds the next block, durably.
    pub fn append(&mut self, rows: &[BlockRow]) -> Result<()> {
        self.append_unsynced(rows)?;
        self.file.sync_data().map_err(|cause| Error::unwritable(&self.dir.join(SIGNAL), cause))
    }

    /// Adds the next block, which a power cut may take back.
    pub fn append_unsynced(&mut self, rows: &[BlockRow]) -> Result<()> {
        let bytes = block::to_bytes(&self.identity, self.next_block(), rows);
        let records = rows.iter().map(|row| row.frame.len() as u64).sum::<u64>();
        let mut offset = self.end + bytes.len() as u64 - 32 - records;
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
        let written = self.open().and_then(|()| self.file.write_all_at(bytes, self.end));
        written.map_err(|cause| Error::unwritable(&path, cause))?;
        self.end += bytes.len() as u64;
        self.rows_of_blocks.push(rows.len() as u64);
        self.entries.extend(rows);
        Ok(())
    }

    /// The bytes of a row's frame.
    pub(super) fn frame(&self, entry: &Entry) -> std::io::Result<Vec<u8>> {
        let mut frame = vec![0; entry.frame as usize];
        self.file.read_exact_at(&mut frame, entry.offset)?;
        Ok(frame)
    }

    /// Blocks that the header promises and that are not there.
    fn missing(&self) -> u64 {
        let blocks = self.header.blocks();
        let end = self.header.shard.map_or(blocks, |shard| shard.of(blocks).end);
        end.saturating_sub(self.next_block())
    }

    /// Writes the index: the cache is complete.
    ///
    /// Run errors: blocks are missing that the header promises; it cannot be written.
    pub fn finish(mut self) -> Result<()> {
        if self.missing() > 0 {
            return Err(Error::run(format!("{} blocks of the cache are missing", self.missing())));
        }
        let (_, digest) = Header::read(&self.dir)?;
        let path = self.dir.join(SIGNAL);
        let synced = self.open().and_then(|()| self.file.sync_all());
        synced.map_err(|cause| Error::unwritable(&path, cause))?;
        atomic::write_file(&self.dir.join(INDEX), &index::to_bytes(digest, self.end, &self.entries))
    }
}

fn damaged(path: &Path, block: u64, what: &str) -> Error {
    let path = path.display();
    Error::input(format!(
        "{path}: block {block} is damaged ({what}), and what follows it would be lost: restore the file, or make the cache \
         again in another folder"
    ))
}

fn lost(path: &Path, what: &str) -> Error {
    let path = path.display();
    Error::input(format!(
        "{path} {what}: restore the file, or remove {INDEX} beside it, and --resume computes again what is not there"
    ))
}

fn first_block(header: &Header) -> u64 {
    header.shard.map_or(0, |shard| shard.of(header.blocks()).start)
}
