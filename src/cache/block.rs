//! signal.bin: blocks end to end, each with its number, a table of its rows, their records, and a digest of all that.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use sha2::{Digest, Sha256};

/// At the start of a block.
const MAGIC: &[u8; 4] = b"DTB1";
/// Magic, the cache's identity, number, rows, bytes of all records.
const HEAD: usize = 4 + 32 + 8 + 4 + 8;
/// Digest, targets, bytes of the record, bytes of its frame.
const ENTRY: usize = 32 + 3 * 4;
const SUM: usize = 32;
/// Far above what any writer puts into one block.
const MOST_ROWS: usize = 1 << 20;
/// zstd's own default: a higher level makes a few percent less of what mostly is noise.
const LEVEL: i32 = 3;

/// A row of a block, compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockRow {
    /// SHA-256 of its token ids and target mask: [`crate::corpus::RowRef::digest`].
    pub digest: [u8; 32],
    pub targets: u32,
    /// Bytes of its record before compression.
    pub length: u32,
    /// A zstd frame with its own checksum, so that a row can be read alone.
    pub frame: Vec<u8>,
}

impl BlockRow {
    /// Compresses a record.
    pub fn new(digest: [u8; 32], targets: usize, record: &[u8]) -> io::Result<Self> {
        let mut frame = zstd::bulk::Compressor::new(LEVEL)?;
        frame.include_checksum(true)?;
        let length = u32::try_from(record.len()).map_err(|_| io::Error::other("a row of more than 4 GiB"))?;
        Ok(Self { digest, targets: targets as u32, length, frame: frame.compress(record)? })
    }
}

/// The bytes of block `number` of the cache with this identity.
pub(super) fn to_bytes(identity: &[u8; 32], number: u64, rows: &[BlockRow]) -> Vec<u8> {
    let records: u64 = rows.iter().map(|row| row.frame.len() as u64).sum();
    let mut out = Vec::with_capacity(HEAD + rows.len() * ENTRY + records as usize + SUM);
    out.extend(MAGIC);
    out.extend(identity);
    out.extend(number.to_le_bytes());
    out.extend((rows.len() as u32).to_le_bytes());
    out.extend(records.to_le_bytes());
    for row in rows {
        out.extend(row.digest);
        out.extend(row.targets.to_le_bytes());
        out.extend(row.length.to_le_bytes());
        out.extend((row.frame.len() as u32).to_le_bytes());
    }
    rows.iter().for_each(|row| out.extend(&row.frame));
    let sum: [u8; SUM] = Sha256::digest(&out).into();
    out.extend(sum);
    out
}

/// Where a row's frame stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    pub digest: [u8; 32],
    pub targets: u32,
    pub length: u32,
    /// In signal.bin.
    pub offset: u64,
    pub frame: u32,
}

/// A whole block.
pub struct Block {
    /// [`super::Header::identity`] of the cache it belongs to.
    pub identity: [u8; 32],
    pub number: u64,
    pub rows: Vec<Placed>,
    /// All of it, from the magic to the digest.
    pub bytes: Vec<u8>,
}

/// The blocks of a file, one after the other, each held against its digest.
pub struct Blocks {
    reader: BufReader<File>,
    length: u64,
    /// Where the next block starts: the end of the last whole one.
    at: u64,
}

impl Blocks {
    pub fn new(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let mut reader = BufReader::with_capacity(1 << 20, file);
        reader.seek(SeekFrom::Start(0))?;
        Ok(Self { reader, length, at: 0 })
    }

    /// Bytes of the whole blocks so far.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The next block: None at the end of the file, and the reason where what follows is no whole block.
    pub fn next_block(&mut self) -> io::Result<Option<Result<Block, String>>> {
        let left = self.length - self.at;
        if left == 0 {
            return Ok(None);
        }
        let torn = |what: &str| Ok(Some(Err(format!("{what} at byte {}", self.at))));
        if left < (HEAD + SUM) as u64 {
            return torn("a block breaks off");
        }
        let mut bytes = vec![0; HEAD];
        self.reader.read_exact(&mut bytes)?;
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let (count, records) = (u32::from_le_bytes(std::array::from_fn(|i| bytes[44 + i])) as usize, number(48));
        let (identity, block) = (std::array::from_fn(|i| bytes[4 + i]), number(36));
        if !bytes.starts_with(MAGIC) || count > MOST_ROWS {
            return torn("there is no block");
        }
        let table = HEAD + count * ENTRY;
        if (table + SUM) as u64 > left {
            return torn("a block breaks off");
        }
        bytes.resize(table, 0);
        self.reader.read_exact(&mut bytes[HEAD..])?;
        // Nothing larger than the file, and than the table says, is ever asked of memory.
        let frames: u64 = bytes[HEAD..].chunks_exact(ENTRY).map(|entry| field(entry, 2) as u64).sum();
        if frames != records {
            return torn("a block whose rows are not as long as it says");
        }
        let whole = table as u64 + records + SUM as u64;
        if whole > left {
            return torn("a block breaks off");
        }
        bytes.resize(whole as usize, 0);
        self.reader.read_exact(&mut bytes[table..])?;
        let (content, sum) = bytes.split_at(bytes.len() - SUM);
        if Sha256::digest(content)[..] != *sum {
            return torn("a block that does not match its digest");
        }
        let mut offset = self.at + table as u64;
        let mut rows = Vec::with_capacity(count);
        for entry in content[HEAD..table].chunks_exact(ENTRY) {
            let digest = std::array::from_fn(|i| entry[i]);
            let [targets, length, frame] = std::array::from_fn(|i| field(entry, i));
            rows.push(Placed { digest, targets, length, offset, frame });
            offset += frame as u64;
        }
        self.at += whole;
        Ok(Some(Ok(Block { identity, number: block, rows, bytes })))
    }

    /// Whether the head of block `number` stands anywhere behind the last whole block.
    pub(super) fn is_followed_by(&mut self, identity: &[u8; 32], number: u64) -> io::Result<bool> {
        let wanted = [&MAGIC[..], identity, &number.to_le_bytes()].concat();
        self.reader.seek(SeekFrom::Start(self.at))?;
        let mut window: Vec<u8> = vec![];
        let mut chunk = vec![0; 1 << 20];
        loop {
            let n = self.reader.read(&mut chunk)?;
            if n == 0 {
                return Ok(false);
            }
            window.extend(&chunk[..n]);
            if window.windows(wanted.len()).any(|bytes| bytes == wanted) {
                return Ok(true);
            }
            // A head may lie across two reads.
            window.drain(..window.len().saturating_sub(wanted.len() - 1));
        }
    }
}

/// Field `i` behind the digest of a row of the table.
fn field(entry: &[u8], i: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|byte| entry[32 + 4 * i + byte]))
}
