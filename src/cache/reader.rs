//! Reads rows in any order. By position, not through a memory map: a file that shrinks is then an error, not the end of the
//! process, and a row is decompressed anyway.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::codec::Codec;
use super::header::Header;
use super::index::{Entry, Index};
use super::record::{Record, Targets};
use super::{HEADER, INDEX, SIGNAL, Writer};
use crate::corpus::row_digest;
use crate::error::{Error, Result};
use crate::signal::{Needs, Tail, TeacherSignal};

/// Whether `dir` is a cache's folder, whole or not.
pub fn is_cache(dir: &Path) -> bool {
    dir.join(HEADER).is_file() && (dir.join(SIGNAL).is_file() || Header::read(dir).is_ok())
}

/// A complete cache.
#[derive(Debug)]
pub struct Reader {
    header: Header,
    index: Index,
    file: File,
    path: PathBuf,
}

impl Reader {
    /// Opens the cache in `dir`.
    ///
    /// Input errors: there is none, or another version's; it is damaged, or not complete.
    pub fn open(dir: &Path) -> Result<Self> {
        let open = Self::open_shard(dir)?;
        match open.header.shard {
            None => Ok(open),
            Some(shard) => Err(Error::input(format!(
                "{} is shard {} of {} of a cache: `distill cache merge` makes one of all of them",
                dir.display(),
                shard.index,
                shard.count
            ))),
        }
    }

    /// [`Reader::open`], for a shard too.
    pub fn open_shard(dir: &Path) -> Result<Self> {
        if !is_cache(dir) {
            return Err(Error::input(format!(
                "{} holds no teacher cache, or not all of it ({HEADER}, {SIGNAL}, {INDEX}): `distill cache` makes one",
                dir.display()
            )));
        }
        let (header, digest) = Header::read(dir)?;
        let incomplete = || {
            Error::input(format!(
                "the cache {} is not complete, or its files belong to several: `distill cache --resume`, with the config that \
                 made it, goes on with it",
                dir.display()
            ))
        };
        let index = dir.join(INDEX);
        let index = if index.exists() { Index::open(&index, digest)? } else { None }.ok_or_else(incomplete)?;
        let path = dir.join(SIGNAL);
        let unreadable = |cause| Error::unreadable(&path, cause);
        let file = File::open(&path).map_err(unreadable)?;
        let (there, wanted) = (file.metadata().map_err(unreadable)?.len(), index.signal_bytes());
        if there != wanted {
            return Err(Error::input(format!(
                "{} is {there} bytes long, its index says {wanted}: restore the file, or make the cache again",
                path.display()
            )));
        }
        let mut first = [0; 36];
        if file.read_exact_at(&mut first, 0).is_ok() && first[4..] != header.identity()? {
            return Err(Error::input(format!(
                "{} belongs to a cache with another {HEADER}: restore the one that was beside it",
                path.display()
            )));
        }
        Ok(Self { header, index, file, path })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes of its files.
    pub fn bytes(&self) -> u64 {
        let bytes = |name| self.path.with_file_name(name).metadata().map_or(0, |file| file.len());
        [HEADER, SIGNAL, INDEX].into_iter().map(bytes).sum()
    }

    /// Number of rows.
    pub fn len(&self) -> u64 {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Row `i` in the order of digests.
    pub fn entry(&self, i: u64) -> Result<Entry> {
        self.index.get(i)
    }

    /// Where the row with this digest is.
    pub fn find(&self, digest: &[u8; 32]) -> Result<Option<Entry>> {
        self.index.find(digest)
    }

    /// Reads a row.
    ///
    /// Input errors: it is damaged.
    pub fn read(&self, entry: &Entry) -> Result<Record> {
        let mut frame = vec![];
        let mut read = || -> std::io::Result<Record> {
            let end = self.file.metadata()?.len();
            if entry.offset.saturating_add(entry.frame as u64) > end {
                return Err(std::io::Error::other("it lies beyond the end of the file"));
            }
            frame.resize(entry.frame as usize, 0);
            self.file.read_exact_at(&mut frame, entry.offset)?;
            record(&self.header, entry, &frame).map_err(std::io::Error::other)
        };
        read().map_err(|cause| {
            let (path, offset) = (self.path.display(), entry.offset);
            Error::input(format!("{path}: the row at byte {offset} is damaged: {cause}; make the cache again"))
        })
    }
}

impl Writer {
    /// Reads a row that was written.
    pub fn read(&self, entry: &Entry) -> Result<Record> {
        let frame = self.frame(entry).map_err(|e| Error::run(format!("the cache cannot be read: {e}")))?;
        record(self.header(), entry, &frame).map_err(|e| Error::run(format!("a row of the cache is damaged: {e}")))
    }
}

/// What a frame holds, with no more memory than such a row can take.
fn record(header: &Header, entry: &Entry, frame: &[u8]) -> std::result::Result<Record, String> {
    // Bit 2 of a frame's descriptor, which follows its magic number: it ends with a checksum.
    if frame.get(4).is_none_or(|descriptor| descriptor & 4 == 0) {
        return Err("its frame has no checksum".into());
    }
    let length = entry.length as usize;
    if header.most_bytes(entry.targets as usize).is_none_or(|most| length > most) {
        return Err(format!("its record would have {length} bytes"));
    }
    let mut bytes = vec![];
    let mut decoder = zstd::stream::read::Decoder::with_buffer(frame).map_err(|e| e.to_string())?.single_frame();
    (&mut decoder).take(length as u64 + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() != length || !decoder.finish().is_empty() {
        return Err(format!("its record has not the {length} bytes it should have"));
    }
    let record = header.decode(&bytes)?;
    // Whatever index and table say: it is the row that was asked for.
    match row_digest(&record.tokens, &record.targets) == entry.digest {
        true if record.said.labels.len() == entry.targets as usize => Ok(record),
        true => Err(format!("it has {} targets, not {}", record.said.labels.len(), entry.targets)),
        false => Err("it is another row's".into()),
    }
}

impl Targets {
    /// What a loss with these needs is told.
    ///
    /// Input errors: what the codec left out is needed, and not known at this temperature.
    pub fn signal(self, header: &Header, needs: &Needs) -> Result<TeacherSignal> {
        let (vocab_size, temperature) = (header.vocab_size, needs.temperature);
        let listed = || header.temperature(temperature).ok_or_else(|| unlisted(header, temperature));
        let (draws, proposal) = match header.codec {
            Codec::Dense => return Ok(TeacherSignal::Dense { logits: self.values, vocab_size }),
            Codec::TopK { k } => {
                let log_tails = match needs.tail {
                    Tail::Bucket => self.rests.into_iter().nth(listed()?),
                    Tail::Renormalize => None,
                };
                let (ids, log_probabilities, labels) = (self.ids, self.values, self.labels);
                return Ok(TeacherSignal::TopK { k, ids, log_probabilities, log_tails, labels, vocab_size });
            }
            Codec::Sampled { draws, temperature, .. } => (draws, temperature),
        };
        let at = listed()?;
        let drawn_at = header.temperature(proposal).ok_or_else(|| unlisted(header, proposal))?;
        let n = self.labels.len();
        let (mut log_probabilities, mut weights) =
            (Vec::with_capacity(self.ids.len()), Vec::with_capacity(self.ids.len()));
        for target in 0..n {
            let log_p = |value: f32, t: usize| value / header.temperatures[t] as f32 - self.rests[t][target];
            for i in self.range(target) {
                let value = self.values[i];
                let likelier = log_p(value, at) - log_p(value, drawn_at);
                // Rounding to f16 may have left a little more than 0, which 1 / T makes larger.
                log_probabilities.push(log_p(value, at).min(0.0));
                // p / r is 1 where both temperatures are the same.
                weights.push(self.counts[i] as f32 / draws as f32 * likelier.exp());
            }
        }
        let (bounds, ids, labels) = (self.bounds, self.ids, self.labels);
        Ok(TeacherSignal::Sampled { bounds, ids, log_probabilities, weights, labels, vocab_size })
    }
}

fn unlisted(header: &Header, temperature: f64) -> Error {
    Error::input(format!(
        "the cache knows what it left out at the temperatures {:?}, not at {temperature}: make it with loss.temperature = \
         {temperature}",
        header.temperatures
    ))
}
