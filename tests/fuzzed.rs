//! Nothing that is read is trusted: every input that ever broke a reader, and some thousand damaged ones per reader, end in a value
//! or an error, in bounded memory. `fuzz/` goes on from here with coverage and for hours.

#[path = "fuzzed/readers.rs"]
mod readers;
#[path = "fuzzed/seeds.rs"]
mod seeds;

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use readers::{READERS, TINY_LLAMA};

/// The system's allocator, which counts, and gives nobody 256 MiB at once: a process that asks for that ends.
struct Counted;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work; a null pointer is the contract's way to refuse.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > 256 << 20 {
            return std::ptr::null_mut();
        }
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller's layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's pointer and layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// What is held is counted for the whole process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// What `work` held at most, in bytes, beyond what was there before.
fn most_held(work: impl FnOnce()) -> usize {
    let before = HELD.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    work();
    MOST.load(Ordering::Relaxed) - before
}

fn kept(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzzed").join(name);
    let Ok(entries) = std::fs::read_dir(folder) else { return vec![] };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

#[test]
fn inputs_that_once_broke_a_reader_end_in_a_value_or_an_error() {
    let _alone = alone();
    for (name, read) in READERS {
        for (path, input) in kept(name) {
            println!("{}", path.display());
            read(&input);
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzzed");
    for entry in std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        let folder = entry.file_name().unwrap().to_str().unwrap();
        assert!(READERS.iter().any(|(name, _)| *name == folder), "{folder} is no reader's name");
    }
}

/// What a mutation writes over numbers, lengths and text.
const ODD: [&[u8]; 16] = [
    b"\0\0\0\0\0\0\0\0",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\xff\xff\xff\xff\0\0\0\0",
    b"\0\0\0\x80",
    b"\x01\0\0\0",
    b"18446744073709551615",
    b"-1",
    b"1e999",
    b"16777216",
    b"null",
    b"[[[[[[[[",
    b"\xed\xa0\x80",
    b"\"\\ud800",
    b"..",
    b"\xf0\x9f\x98\x80",
];

/// A change or a few to `input`, of the kinds that damage and malice make.
fn mutate(input: &mut Vec<u8>, others: &[Vec<u8>], rng: &mut ChaCha8Rng) {
    let below = |rng: &mut ChaCha8Rng, n: usize| (rng.next_u64() % n.max(1) as u64) as usize;
    for _ in 0..[1, 1, 1, 2, 4][below(rng, 5)] {
        let at = below(rng, input.len());
        let end = (at + 1 + below(rng, 24)).min(input.len());
        let odd = ODD[below(rng, ODD.len())];
        match below(rng, 9) {
            _ if input.is_empty() => input.extend(odd),
            0 => input[at] ^= 1 << below(rng, 8),
            1 => input[at] = rng.next_u32() as u8,
            2 => drop(input.drain(at..end)),
            3 => input.truncate(at),
            4 => drop(input.splice(at..at, odd.iter().copied())),
            5 => input[at..].iter_mut().zip(odd).for_each(|(byte, odd)| *byte = *odd),
            6 => drop(input.splice(at..at, input[at..end].repeat(1 + below(rng, 40)))),
            7 => {
                let other = &others[below(rng, others.len())];
                let from = below(rng, other.len());
                let piece = &other[from..(from + 1 + below(rng, 64)).min(other.len())];
                drop(input.splice(at..end, piece.iter().copied()));
            }
            _ => {
                let other = &others[below(rng, others.len())];
                input.truncate(at);
                input.extend(&other[below(rng, other.len())..]);
            }
        }
        input.truncate(1 << 16);
    }
}

/// Inputs per reader; those that start threads or write whole folders get fewer. `FUZZ_READER=gguf FUZZ_ROUNDS=100000` chooses.
fn rounds(name: &str) -> usize {
    let few = match name {
        "template" => 300,
        "cache" | "gguf" | "tokenizer" | "weights" | "manifest" | "provenance" => 1500,
        _ => 4000,
    };
    match std::env::var("FUZZ_READER") {
        Ok(chosen) if chosen != name => 0,
        _ => std::env::var("FUZZ_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(few),
    }
}

#[test]
fn what_the_fuzzing_starts_from_is_taken() {
    let _alone = alone();
    for (name, read) in READERS {
        let seeds = seeds::of(name);
        let taken = seeds.iter().filter(|seed| read(seed)).count();
        // Two rows among them are wrong on purpose.
        let refused = if name == "row" { 2 } else { 0 };
        assert_eq!(taken, seeds.len() - refused, "{name}");
    }
}

#[test]
fn damaged_inputs_end_in_a_value_or_an_error_in_bounded_memory() {
    let _alone = alone();
    let mut broken = vec![];
    for (number, (name, read)) in READERS.into_iter().enumerate() {
        let (seeds, mut taken) = (seeds::of(name), 0);
        let mut rng = ChaCha8Rng::seed_from_u64(number as u64);
        for round in 0..rounds(name) {
            let mut input = seeds[round % seeds.len()].clone();
            mutate(&mut input, &seeds, &mut rng);
            let mut sound = Ok(true);
            let most = most_held(|| sound = catch_unwind(AssertUnwindSafe(|| read(&input))));
            taken += usize::from(matches!(sound, Ok(true)));
            if sound.is_err() || most > 256 << 20 {
                let path = std::env::temp_dir().join(format!("fuzzed-{name}-{round}"));
                std::fs::write(&path, &input).unwrap();
                broken.push(format!("{name}, which held {most} bytes: {}", path.display()));
                break;
            }
        }
        println!("{name}: {taken} of {} were taken", rounds(name));
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Inputs whose size is the attack, each with the most that its reader may hold, in MiB.
fn large() -> Vec<(&'static str, &'static str, Vec<u8>, usize)> {
    // What a line may have, and a config.
    const LINE: usize = 16 << 20;
    const CONFIG: usize = 1 << 20;
    let filled = |start: &str, piece: &str, end: &str, size: usize| -> Vec<u8> {
        let n = (size - start.len() - end.len()) / piece.len();
        format!("{start}{}{}", piece.repeat(n).trim_end_matches(','), end).into_bytes()
    };
    let numbered = |piece: &dyn Fn(usize) -> String, size: usize| -> Vec<u8> {
        let (mut out, mut pieces) = (String::new(), (0..).map(piece));
        while out.len() + 64 < size {
            out.extend(pieces.next());
        }
        out.into_bytes()
    };
    let keys = |end: &str| {
        let keys = String::from_utf8(numbered(&|i| format!("\"{i:x}\":0,"), LINE - 64)).unwrap();
        format!("{{{keys}{end}").into_bytes()
    };
    let contents = format!(r#"{{"role":"user","content":[{}0]}},"#, "0,".repeat(65_000));
    let deep = |open: &str, n: usize| open.repeat(n).into_bytes();
    let layers = TINY_LLAMA.replace("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 16777216");
    vec![
        ("row", "numbers in a field that is a flag", filled(r#"{"text":"a","unfinished":["#, "0,", "]}", LINE), 128),
        ("row", "numbers in contents", filled(r#"{"messages":["#, &contents, "]}", LINE), 128),
        ("row", "numbers in messages", filled(r#"{"messages":["#, "0,", "]}", LINE), 128),
        ("row", "numbers in a field of no meaning", filled(r#"{"text":"a","b":["#, "0,", "]}", LINE), 128),
        ("row", "keys", keys(r#""text":"a"}"#), 384),
        ("row", "nesting", deep("[", LINE), 128),
        ("row", "nested objects", deep(r#"{"a":"#, LINE / 5), 128),
        ("corpus", "a line that is too long", vec![b'a'; LINE + 4096], 128),
        ("corpus", "empty lines", vec![b'\n'; LINE], 128),
        ("corpus", "bad rows", b"{\n".repeat(LINE / 16), 128),
        ("config", "dotted keys", filled("a", ".a", "=1", CONFIG), 256),
        ("config", "dotted sections", filled("[a", ".a", "]", CONFIG), 256),
        ("config", "lists", deep("[", CONFIG / 2), 256),
        ("config", "a list in a key", filled("a=", "[", "", CONFIG), 256),
        ("config", "tables in a key", filled("a=", "{a=", "", CONFIG), 256),
        ("config", "unknown keys", numbered(&|i| format!("k{i:x}=1\n"), CONFIG), 256),
        ("config", "unknown sections", numbered(&|i| format!("[s{i:x}]\n"), CONFIG), 256),
        ("config", "syntax errors", b"=\n".repeat(CONFIG / 8), 256),
        ("config", "tables in a list", filled("", "[[loss.mix]]\n", "", CONFIG), 256),
        ("config", "a long key", filled("", "k", "=1", CONFIG), 256),
        ("config", "a long list", filled("[data]\ntrain = [", "'a',", "]", CONFIG), 256),
        ("model_config", "layers", layers.into_bytes(), 64),
        ("model_config", "nesting", deep("[", LINE), 64),
        (
            "weights",
            "a header of nothing but nesting",
            [&(1u64 << 20).to_le_bytes()[..], &b"[".repeat(1 << 20)].concat(),
            64,
        ),
        ("gguf", "metadata", gguf_of(65_536, 0), 64),
        ("gguf", "tensors", gguf_of(0, 65_536), 256),
    ]
}

/// A GGUF file of a tiny model's metadata, with more metadata and tensors besides.
fn gguf_of(metadata: u64, tensors: u64) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut entries = vec![[text("general.architecture"), 8u32.to_le_bytes().to_vec(), text("llama")].concat()];
    let sizes =
        [("block_count", 16_777_216u32), ("context_length", 16), ("embedding_length", 32), ("feed_forward_length", 32)];
    for (key, n) in sizes.into_iter().chain([("attention.head_count", 2)]) {
        entries.push([text(&format!("llama.{key}")), 4u32.to_le_bytes().to_vec(), n.to_le_bytes().to_vec()].concat());
    }
    let epsilon = [6u32.to_le_bytes(), 1e-5f32.to_le_bytes()].concat();
    entries.push([text("llama.attention.layer_norm_rms_epsilon"), epsilon].concat());
    let left = metadata.saturating_sub(entries.len() as u64);
    entries.extend((0..left).map(|i| [text(&format!("{i:x}")), vec![0, 0, 0, 0, 1]].concat()));
    let mut out = [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &(entries.len() as u64).to_le_bytes()].concat();
    entries.iter().for_each(|entry| out.extend(entry));
    for i in 0..tensors {
        let name = if i == 0 { "token_embd.weight".into() } else { format!("{i:x}") };
        let place =
            [&2u32.to_le_bytes()[..], &1u64.to_le_bytes(), &1u64.to_le_bytes(), &[0; 4], &(i * 32).to_le_bytes()]
                .concat();
        out.extend([text(&name), place].concat());
    }
    out.resize(out.len().next_multiple_of(32) + tensors as usize * 32, 0);
    out
}

#[test]
fn large_inputs_end_in_a_value_or_an_error_in_memory_that_their_size_bounds() {
    let _alone = alone();
    let mut broken = vec![];
    for (name, what, input, mib) in large() {
        let (_, read) = READERS.into_iter().find(|(known, _)| *known == name).unwrap();
        let start = std::time::Instant::now();
        let most = most_held(|| {
            read(&input);
        });
        println!("{name}: {what}: {} MiB, {} ms", most >> 20, start.elapsed().as_millis());
        if most > mib << 20 {
            broken.push(format!("{name}: {what}: {} MiB", most >> 20));
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
