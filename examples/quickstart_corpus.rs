//! Writes the quickstart's corpus: sums as a school class answers them.
//!
//! Every answer in training comes from a pupil: with a carry to make, 3 in 10 forget it (47+85=122), and 1 in 10
//! miscount by one. The most likely answer is always the right one, and only the right one counts on the held-out sums.
//! A pair of numbers that is held out appears in no training row, in either order.
//!
//! ```text
//! cargo run --release --example quickstart_corpus -- runs/quickstart-corpus
//! ```
//!
//! | file | rows | for |
//! | --- | --- | --- |
//! | teacher.jsonl | 47,500 | the teacher: five pupils on every sum that is not held out |
//! | train.jsonl | 2,000 | the student: one pupil each on 2,000 of these sums |
//! | train_corrected.jsonl | 2,000 | a control: the rows of train.jsonl with every answer put right |
//! | held_out.jsonl | 500 | evaluation: right answers |
//! | tokenizer/ | | one token per character |
//!
//! The bytes depend on nothing but this file and the versions in Cargo.lock; examples/quickstart/ holds train.jsonl and
//! held_out.jsonl as they were written here.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

const SEED: u64 = 1;
const HELD_OUT_ROWS: usize = 500;
const STUDENT_ROWS: usize = 2_000;
const PUPILS_PER_SUM: usize = 5;

const FORGETS_THE_CARRY: f64 = 0.3;
const MISCOUNTS_BY_ONE: f64 = 0.1;

const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];
const CHARACTERS: &str = "0123456789+=";

/// a + b, both from 0 to 99.
#[derive(Clone, Copy)]
struct Sum {
    a: u32,
    b: u32,
}

impl Sum {
    fn right(self) -> u32 {
        self.a + self.b
    }

    fn carries(self) -> bool {
        self.a % 10 + self.b % 10 >= 10
    }

    /// What a pupil drawn from the class writes down.
    fn answered(self, rng: &mut impl Rng) -> u32 {
        let luck = rng.random::<f64>();
        if self.carries() && luck < FORGETS_THE_CARRY {
            self.right() - 10
        } else if luck >= 1.0 - MISCOUNTS_BY_ONE {
            if rng.random::<bool>() { self.right() + 1 } else { self.right().saturating_sub(1) }
        } else {
            self.right()
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [folder] = arguments.as_slice() else {
        eprintln!("usage: quickstart_corpus DIR");
        return ExitCode::from(2);
    };
    match write_corpus(folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

fn write_corpus(folder: &Path) -> io::Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let (held_out, mut sums) = split(&mut rng);
    sums.shuffle(&mut rng);

    let exam: Vec<_> = held_out.into_iter().map(|sum| (sum, sum.right())).collect();
    let homework: Vec<_> = sums[..STUDENT_ROWS].iter().map(|&sum| (sum, sum.answered(&mut rng))).collect();
    let corrected: Vec<_> = homework.iter().map(|&(sum, _)| (sum, sum.right())).collect();
    let mut archive = vec![];
    for &sum in &sums {
        archive.extend((0..PUPILS_PER_SUM).map(|_| (sum, sum.answered(&mut rng))));
    }
    archive.shuffle(&mut rng);

    fs::create_dir_all(folder.join("tokenizer"))?;
    write_rows(&folder.join("held_out.jsonl"), &exam)?;
    write_rows(&folder.join("train.jsonl"), &homework)?;
    write_rows(&folder.join("train_corrected.jsonl"), &corrected)?;
    write_rows(&folder.join("teacher.jsonl"), &archive)?;
    write_json(&folder.join("tokenizer/tokenizer.json"), &tokenizer())?;
    write_json(&folder.join("tokenizer/tokenizer_config.json"), &tokenizer_config())
}

/// Held-out sums and all others. a+b and b+a are on the same side.
fn split(rng: &mut impl Rng) -> (Vec<Sum>, Vec<Sum>) {
    let mut pairs: Vec<(u32, u32)> = (0..100).flat_map(|a| (a..100).map(move |b| (a, b))).collect();
    pairs.shuffle(rng);
    let (mut held_out, mut others) = (vec![], vec![]);
    for (a, b) in pairs {
        let side = if held_out.len() < HELD_OUT_ROWS { &mut held_out } else { &mut others };
        side.push(Sum { a, b });
        if a != b {
            side.push(Sum { a: b, b: a });
        }
    }
    (held_out, others)
}

/// One `{"prompt": "47+85=", "response": "132"}` per line.
fn write_rows(path: &Path, rows: &[(Sum, u32)]) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for (Sum { a, b }, answer) in rows {
        let row = json!({ "prompt": format!("{a}+{b}="), "response": answer.to_string() });
        writeln!(file, "{row}")?;
    }
    file.flush()?;
    let wrong = rows.iter().filter(|(sum, answer)| sum.right() != *answer).count();
    println!("{}: {} rows, {wrong} with a wrong answer", path.display(), rows.len());
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> io::Result<()> {
    fs::write(path, format!("{value:#}\n"))
}

/// A tokenizer.json by hand: BPE without merges is one token per character, `<s>` goes before every text.
fn tokenizer() -> Value {
    let characters = CHARACTERS.chars().map(String::from);
    let tokens = SPECIAL.iter().map(|text| text.to_string()).chain(characters);
    let vocabulary: Map<String, Value> = tokens.enumerate().map(|(id, token)| (token, json!(id))).collect();
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, text)| {
            json!({ "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
        })
        .collect();
    let start = json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } });
    let text = |id: &str, segment: u32| json!({ "Sequence": { "id": id, "type_id": segment } });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, text("A", 0)],
            "pair": [start, text("A", 0), text("B", 1)],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [vocabulary["<s>"]], "tokens": ["<s>"] } },
        },
        "decoder": { "type": "Fuse" },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": "<unk>",
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": [],
        },
    })
}

fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 64,
        "clean_up_tokenization_spaces": false,
    })
}
