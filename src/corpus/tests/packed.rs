//! gzip and zstd files are corpora like any other, and what is wrong with one is named.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use flate2::Compression;
use flate2::read::GzEncoder;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use super::*;

fn gzip(text: impl AsRef<[u8]>) -> Vec<u8> {
    let mut packed = vec![];
    GzEncoder::new(text.as_ref(), Compression::default()).read_to_end(&mut packed).unwrap();
    packed
}

fn zstd(text: impl AsRef<[u8]>) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(vec![], 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(text.as_ref()).unwrap();
    encoder.finish().unwrap()
}

type Packer = fn(&[u8]) -> Vec<u8>;

const PACKERS: [(&str, Packer); 2] = [("gzip", |text| gzip(text)), ("zstd", |text| zstd(text))];

fn open(path: &Path) -> crate::Result<CorpusIndex> {
    CorpusIndex::open(&[path.to_owned()], OnBadRecord::SKIP)
}

fn refusal(dir: &Path, content: impl AsRef<[u8]>) -> String {
    let path = file(dir, "x", content);
    let error = open(&path).unwrap_err();
    assert_eq!(error.class(), crate::error::Class::Input);
    error.to_string().replace(&path.display().to_string(), "x")
}

#[test]
fn rows_of_a_compressed_file_are_those_of_the_text_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let text: String = (0..40_000).map(|n| format!("{{\"text\": \"row {n} {}\"}}\r\n", n * 7919)).collect();
    let text = format!("\u{feff}{text}nonsense\n{{\"text\": \"last\"}}");
    let plain = file(dir.path(), "plain.jsonl", &text);
    let plain = open(&plain).unwrap();
    for (name, pack) in PACKERS {
        // Several members or frames, cut in the middle of a row and of a character; the name does not matter.
        let (text, cut) = (text.as_bytes(), text.len() / 2);
        let packed = [pack(&text[..1]), pack(&text[1..cut]), pack(b""), pack(&text[cut..])].concat();
        let path = file(dir.path(), name, &packed);
        let index = open(&path).unwrap();
        assert_eq!((index.len(), index.bytes()), (plain.len(), plain.bytes()), "{name}");
        for row in [0, 1, 20_000, 39_999, 40_000] {
            let ((record, place), (expected, at)) = (index.read(row).unwrap(), plain.read(row).unwrap());
            assert_eq!((record, place.line), (expected, at.line), "{name}");
            assert_eq!(*place.file, path);
        }
        let bad = &index.rejections().first[0];
        assert_eq!(bad.to_string(), format!("{}:40001:2: malformed JSON: expected ident", path.display()));
        // The digest is that of the file on the disk.
        let on_disk = &index.files()[0];
        assert_eq!((on_disk.bytes, &on_disk.sha256[..]), (packed.len() as u64, &Sha256::digest(&packed)[..]));
    }
}

#[test]
fn a_stream_that_is_not_whole_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let text: String = (0..500).map(|n| format!("{{\"text\": \"row {}\"}}\n", n * 7919)).collect();
    for (name, pack) in PACKERS {
        let packed = pack(text.as_bytes());
        for keep in [packed.len() - 1, packed.len() / 2, 7] {
            let said = refusal(dir.path(), &packed[..keep]);
            let expected = format!(
                "x is not whole: its {name} stream breaks off at the end of the file, after {keep} bytes: fetch it again; \
                 `{name} -t x` checks it"
            );
            assert_eq!(said, expected);
        }
        // A flipped bit, in the data or in the checksum, and what is no stream behind one.
        let flip = |at: usize| {
            let mut packed = packed.clone();
            packed[at] ^= 0x10;
            packed
        };
        let checksum = packed.len() - if name == "gzip" { 6 } else { 2 };
        let damaged = [flip(packed.len() / 2), flip(checksum), [&packed[..], &[b'x'; 40]].concat()];
        for damaged in damaged {
            let said = refusal(dir.path(), damaged);
            let expected = format!("x is not whole: its {name} stream is damaged within its first ");
            assert!(said.starts_with(&expected), "{said}");
            assert!(said.ends_with(&format!("fetch it again; `{name} -t x` checks it")), "{said}");
        }
        assert!(refusal(dir.path(), [&packed[..], b"\n"].concat()).contains(&format!("x is not whole: its {name}")));
        assert_eq!(refusal(dir.path(), pack(b"")), "x holds no rows");
        let within = refusal(dir.path(), pack(b"PK\x03\x04..."));
        assert_eq!(within, format!("x holds a zip archive inside of {name}: unpack it to JSONL first"));
    }
}

#[test]
fn damage_anywhere_in_a_stream_is_an_error_or_harmless_but_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let text: String = (0..300).map(|n| format!("{{\"text\": \"row {}\"}}\n", n * 7919)).collect();
    let mut draw = ChaCha8Rng::seed_from_u64(1);
    for (name, pack) in PACKERS {
        let whole = pack(text.as_bytes());
        let mut refused = 0;
        for _ in 0..1000 {
            let mut damaged = whole.clone();
            for _ in 0..draw.random_range(1..4) {
                let at = draw.random_range(0..damaged.len());
                match draw.random_range(0..4) {
                    0 => damaged.truncate(at + 1),
                    1 => damaged.insert(at, draw.random::<u8>()),
                    _ => damaged[at] = draw.random::<u8>(),
                }
            }
            let path = file(dir.path(), "x", damaged);
            match open(&path) {
                Err(error) => {
                    assert!(error.to_string().contains("x"), "{error}");
                    refused += 1;
                }
                // A header's name or time.
                Ok(index) => assert_eq!(index.rejections().count + index.len() as u64, 300),
            }
        }
        assert!(refused > 900, "{name}: only {refused} of 1000 were noticed");
    }
}

#[test]
fn a_bomb_is_refused_before_it_fills_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    // 300 MB, of one line and of many.
    let (mut line, mut lines) = (vec![], vec![]);
    GzEncoder::new(std::io::repeat(b' ').take(300 << 20), Compression::fast()).read_to_end(&mut line).unwrap();
    let row = "{\"text\": \"over and over again\"}\n".repeat(1 << 15);
    let mut encoder = zstd::Encoder::new(&mut lines, 1).unwrap();
    (0..300).for_each(|_| encoder.write_all(row.as_bytes()).unwrap());
    encoder.finish().unwrap();
    for (name, packed) in [("gzip", line), ("zstd", lines)] {
        let said = refusal(dir.path(), &packed);
        assert!(said.starts_with("x unpacks to more than 200 times its size ("), "{said}");
        assert!(said.ends_with(&format!("unpack it first: {name} -dk x")), "{said}");
    }
    // What is small stays readable, however well it packs.
    let small = file(dir.path(), "small", gzip("{\"text\": \"over and over again\"}\n".repeat(1 << 20)));
    assert_eq!(open(&small).unwrap().len(), 1 << 20);
}

#[test]
fn a_frame_that_wants_more_memory_than_a_reader_should_give_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut encoder = zstd::Encoder::new(vec![], 1).unwrap();
    encoder.window_log(30).unwrap();
    encoder.write_all(b"{\"text\": \"t\"}\n").unwrap();
    encoder.flush().unwrap();
    let said = refusal(dir.path(), encoder.finish().unwrap());
    assert!(said.contains("too much memory"), "{said}");
}

#[test]
fn what_is_unpacked_has_no_name_and_belongs_to_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let file = super::super::source::unnamed(dir.path()).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}
