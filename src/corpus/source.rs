//! A corpus file as the text it holds: as it is, or out of gzip or zstd.
//!
//! What a file is its first bytes say, never its name. Rows are read by position later, which a compressed file does not
//! offer, so what comes out is also kept in an unnamed file on the disk: memory stays bounded, and the space goes with the process.

use std::fs::{File, OpenOptions, remove_file};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};

use crate::hub;
use crate::units::Bytes;
use crate::{Error, Result};

/// A bomb is told by its ratio, once it is large enough to matter: JSON lines shrink to a third or a tenth, and one row over
/// and over to a hundredth, which is still read; an exploding gzip file is a thousandth, a zstd one less.
const LARGEST_RATIO: u64 = 200;
/// What may come out of any file, however small.
const FREE: u64 = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Gzip,
    Zstd,
}

impl Format {
    fn of(head: &[u8]) -> Option<Self> {
        match head {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            // A frame, or one of the sixteen that are passed over.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// The text of one file, to be read once from front to back. Errors carry an [`Error`] that names the file ([`named`]).
pub(super) struct Source<'a> {
    path: &'a Path,
    stream: Stream,
    /// Bytes of text that came out.
    given: u64,
}

enum Stream {
    Plain(Tap),
    Packed { format: Format, decoder: Decoder, copy: Spool },
}

enum Decoder {
    Gzip(Box<MultiGzDecoder<BufReader<Tap>>>),
    Zstd(zstd::Decoder<'static, BufReader<Tap>>),
}

/// A source that was read to its end.
pub(super) struct Finished {
    /// Of the file as it is on the disk.
    pub sha256: [u8; 32],
    pub bytes: u64,
    /// Where its text can be read by position.
    pub text: File,
}

impl<'a> Source<'a> {
    /// Input errors: a file that cannot be read or is none. A run error: no room for what is unpacked.
    pub fn open(path: &'a Path) -> Result<Self> {
        let unreadable = |e| Error::unreadable(path, e);
        // Rows are read by position later on, which a pipe does not offer, and to open one would wait for its writer.
        if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
            return Err(Error::input(format!("{} is not a regular file", path.display())));
        }
        let file = File::open(path).map_err(unreadable)?;
        let mut head = [0; 200];
        let n = file.read_at(&mut head, 0).map_err(unreadable)?;
        hub::not_a_pointer(path, &head[..n])?;
        let tap = Tap { file, hasher: Sha256::new(), bytes: 0 };
        let stream = match Format::of(&head[..n]) {
            None => Stream::Plain(tap),
            Some(format) => {
                let tap = BufReader::with_capacity(1 << 16, tap);
                let decoder = match format {
                    Format::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(tap))),
                    Format::Zstd => Decoder::Zstd(zstd::Decoder::with_buffer(tap).map_err(unreadable)?),
                };
                Stream::Packed { format, decoder, copy: Spool::new(path)? }
            }
        };
        Ok(Self { path, stream, given: 0 })
    }

    /// The name of the compression, of a file that is compressed.
    pub fn packed(&self) -> Option<&'static str> {
        match &self.stream {
            Stream::Plain(_) => None,
            Stream::Packed { format, .. } => Some(format.name()),
        }
    }

    /// Once it was read to its end.
    pub fn finish(self) -> Finished {
        let (tap, copy) = match self.stream {
            Stream::Plain(tap) => (tap, None),
            Stream::Packed { decoder: Decoder::Gzip(decoder), copy, .. } => {
                (decoder.into_inner().into_inner(), Some(copy.file))
            }
            Stream::Packed { decoder: Decoder::Zstd(decoder), copy, .. } => {
                (decoder.finish().into_inner(), Some(copy.file))
            }
        };
        Finished { sha256: tap.hasher.finalize().into(), bytes: tap.bytes, text: copy.unwrap_or(tap.file) }
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Stream::Packed { format, decoder, copy } = &mut self.stream else {
            let Stream::Plain(tap) = &mut self.stream else { return Ok(0) };
            return tap.read(buffer);
        };
        // Full, so that what a text begins with is seen whole, however its members or frames are cut.
        let mut n = 0;
        while n < buffer.len() {
            let more = match decoder {
                Decoder::Gzip(decoder) => decoder.read(&mut buffer[n..]),
                Decoder::Zstd(decoder) => decoder.read(&mut buffer[n..]),
            };
            match more.map_err(|e| damaged(self.path, *format, decoder.tap().bytes, e))? {
                0 => break,
                more => n += more,
            }
        }
        self.given += n as u64;
        let allowed = FREE.max(decoder.tap().bytes.saturating_mul(LARGEST_RATIO));
        if self.given > allowed {
            return Err(io::Error::other(bomb(self.path, *format, decoder.tap().bytes)));
        }
        copy.file.write_all(&buffer[..n]).map_err(|e| io::Error::other(copy.refused(self.path, e)))?;
        Ok(n)
    }
}

impl Decoder {
    fn tap(&self) -> &Tap {
        match self {
            Self::Gzip(decoder) => decoder.get_ref().get_ref(),
            Self::Zstd(decoder) => decoder.get_ref().get_ref(),
        }
    }
}

/// The error of a read, which names the file.
pub(super) fn named(path: &Path, e: io::Error) -> Error {
    e.downcast::<Error>().unwrap_or_else(|e| Error::unreadable(path, e))
}

fn tool(path: &Path, format: Format, how: &str) -> String {
    format!("{} {how} {}", format.name(), path.display())
}

fn damaged(path: &Path, format: Format, read: u64, e: io::Error) -> io::Error {
    // The disk's own errors are no word on the stream.
    if e.raw_os_error().is_some() || e.kind() == ErrorKind::Interrupted {
        return e;
    }
    let (file, name) = (path.display(), format.name());
    let what = match e.kind() {
        ErrorKind::UnexpectedEof => format!("its {name} stream breaks off at the end of the file, after {read} bytes"),
        _ => format!("its {name} stream is damaged within its first {read} bytes, or something else follows it ({e})"),
    };
    io::Error::other(Error::input(format!(
        "{file} is not whole: {what}: fetch it again; `{}` checks it",
        tool(path, format, "-t")
    )))
}

fn bomb(path: &Path, format: Format, read: u64) -> Error {
    Error::input(format!(
        "{} unpacks to more than {LARGEST_RATIO} times its size ({} of it hold more than {}), as a file does that is made to \
         fill disks: if it is meant to, unpack it first: {}",
        path.display(),
        Bytes(read),
        Bytes(FREE.max(read.saturating_mul(LARGEST_RATIO))),
        tool(path, format, "-dk")
    ))
}

/// A file, and the digest of what was read of it.
struct Tap {
    file: File,
    hasher: Sha256,
    bytes: u64,
}

impl Read for Tap {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
}

/// What was unpacked, in a file that has no name once it is open.
struct Spool {
    folder: PathBuf,
    file: File,
}

impl Spool {
    fn new(path: &Path) -> Result<Self> {
        let folder = scratch();
        match unnamed(&folder) {
            Ok(file) => Ok(Self { folder, file }),
            Err(e) => Err(no_room(path, &folder, e)),
        }
    }

    fn refused(&self, path: &Path, e: io::Error) -> Error {
        no_room(path, &self.folder, e)
    }
}

fn no_room(path: &Path, folder: &Path, e: io::Error) -> Error {
    Error::run(format!(
        "cannot keep what {} unpacks to in {}: {e}: name a folder with room for all of its text in the environment (TMPDIR), or \
         unpack it first",
        path.display(),
        folder.display()
    ))
}

/// The folder of unpacked text: TMPDIR, or /var/tmp, which lies on a disk where /tmp is often memory.
fn scratch() -> PathBuf {
    let named = std::env::var_os("TMPDIR").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    named.unwrap_or_else(|| {
        let disk = Path::new("/var/tmp");
        if disk.is_dir() { disk.to_owned() } else { std::env::temp_dir() }
    })
}

/// A new file that only its handle reaches.
pub(super) fn unnamed(folder: &Path) -> io::Result<File> {
    // The folder is everyone's: nobody can have put a file or a link under a name that was not known before.
    let name = format!(".distill-{}-{:016x}", std::process::id(), RandomState::new().hash_one(0));
    let path = folder.join(name);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    remove_file(&path)?;
    Ok(file)
}
