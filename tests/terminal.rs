//! What data holds for a terminal to obey never reaches one: the binary runs on a pseudo-terminal and all that comes out is read.

mod common;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Stdio;

use common::{Bench, pair};

/// Sets a window's title, paints the background, moves the cursor by a C1 byte, turns text round: nothing that our own
/// bars send. HOSTILE shows that it was there to be printed.
const HOSTILE: &str = "\u{1b}]0;HOSTILE\u{7}\u{1b}[41m\u{9b}2J\u{202e}\u{8}";

/// The same inside of JSON and of a TOML string.
const IN_JSON: &str = r"\u001b]0;HOSTILE\u0007\u001b[41m\u009b2J\u202e\u0008";

fn terminal() -> (File, OwnedFd) {
    let (mut master, mut slave) = (0, 0);
    let mut size = libc::winsize { ws_row: 50, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: two places for descriptors and a size; on success both are open and nobody else's.
    unsafe {
        let failed = libc::openpty(&mut master, &mut slave, std::ptr::null_mut(), std::ptr::null_mut(), &raw mut size);
        assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
        (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
    }
}

/// Everything that a terminal gets of a command that ends with `code`.
fn shown(bench: &Bench, args: &[&str], code: i32) -> String {
    let (mut master, slave) = terminal();
    let (out, err) = (slave.try_clone().unwrap(), slave.try_clone().unwrap());
    assert_eq!(unsafe { libc::isatty(slave.as_raw_fd()) }, 1);
    let mut command = bench.command(args);
    command.env("TERM", "xterm-256color").stdin(Stdio::null()).stdout(out).stderr(err);
    let mut child = command.spawn().unwrap();
    // Our ends of it, so that the reading ends with the child.
    drop((command, slave));
    let mut all = vec![];
    let mut buffer = [0; 4096];
    // The end of a terminal is an error.
    while let Ok(n @ 1..) = master.read(&mut buffer) {
        all.extend(&buffer[..n]);
    }
    let text = String::from_utf8_lossy(&all).into_owned();
    assert_eq!(child.wait().unwrap().code(), Some(code), "{args:?}: {text:?}");
    text
}

/// Shown, and nothing of it obeyed.
fn harmless(what: &str, text: &str) {
    assert!(text.contains("HOSTILE"), "{what}: the data was not shown: {text:?}");
    for obeyed in ["\u{1b}]", "\u{1b}[41m", "\u{9b}", "\u{202e}", "\u{7}", "\u{8}"] {
        assert!(!text.contains(obeyed), "{what}: {obeyed:?} reached the terminal: {text:?}");
    }
}

fn edit(bench: &Bench, file: &str, from: &str, to: &str) {
    let text = String::from_utf8(bench.read(file)).unwrap();
    assert!(text.contains(from), "{from:?} is not in {text}");
    bench.write(file, text.replace(from, to));
}

/// A run on hard labels of `rows`.
fn bench(rows: &str, more: &str) -> Bench {
    let bench = Bench::new();
    bench.write("rows.jsonl", rows);
    let config = format!(
        "[student]\nkind = \"fresh\"\nconfig = \"student.json\"\ntokenizer = '{}'\n\
         [data]\ntrain = \"rows.jsonl\"\nmax_length = 48\nchat_template = \"none\"\n{more}\
         [loss]\nkind = \"cross_entropy\"\n[train]\nsteps = 2\nbatch_size = 4\n[output]\ndir = \"run\"\n",
        common::tokenizer().display()
    );
    bench.write("run.toml", &config);
    bench
}

const TRAIN: [&str; 3] = ["train", "--config", "run.toml"];

fn rows() -> String {
    (0..8).map(pair).collect()
}

#[test]
fn no_escape_from_rows_configs_templates_or_names_reaches_a_terminal() {
    // Rows: keys and roles in messages about bad ones.
    let bad = format!(
        "{{\"text\": \"a\", \"{IN_JSON}\": 1, \"{IN_JSON}\": 2}}\n{{\"messages\": [{{\"role\": \"{IN_JSON}\", \"content\": \"\"}}]}}\n"
    );
    harmless("bad rows", &shown(&bench(&bad, ""), &TRAIN, 2));

    // Rows: their text, as the plan shows the first of them.
    let row = format!("{{\"prompt\": \"{IN_JSON}\", \"response\": \"{IN_JSON}\"}}\n");
    let b = bench(&row, "");
    // Token by token, targets in brackets.
    let plan = shown(&b, &["train", "--config", "run.toml", "--dry-run"], 0);
    harmless("rows in the plan", &plan.replace(['|', '«', '»'], ""));

    // The config: keys, values, --set.
    for (from, to) in [
        ("steps = 2", format!("steps = 2\n\"{IN_JSON}\" = 1")),
        ("steps = 2", format!("steps = 2\nschedule = \"{IN_JSON}\"")),
        ("rows.jsonl", IN_JSON.to_owned()),
        ("[train]", format!("[\"{IN_JSON}\"]\n[train]")),
    ] {
        let b = bench(&rows(), "");
        edit(&b, "run.toml", from, &to);
        harmless(&format!("config with {to:?}"), &shown(&b, &TRAIN, 2));
    }
    harmless("--set", &shown(&b, &["train", "--config", "run.toml", "--set", &format!("train.{HOSTILE}=1")], 2));

    // A chat template's own words.
    let chat =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n";
    let b = bench(chat, "");
    b.write("t.jinja", format!("{{{{ raise_exception('{HOSTILE}') }}}}"));
    edit(&b, "run.toml", "\"none\"", "\"t.jinja\"");
    harmless("template", &shown(&b, &TRAIN, 2));

    // Names of files, on the command line and where a run shows them.
    // clap itself takes whole sequences out.
    let bytes = "\u{9b}2JHOSTILE\u{8}\u{202e}";
    harmless("usage", &shown(&b, &["train", &format!("--{bytes}")], 2));
    harmless("a value", &shown(&b, &["train", "--config", "run.toml", "--device", bytes], 2));
    harmless("a path", &shown(&b, &["inspect", HOSTILE], 2));
    let b = bench(&rows(), "");
    harmless("a folder", &shown(&b, &["train", "--config", "run.toml", "--output", HOSTILE], 0));
    harmless("a run", &shown(&b, &["inspect", HOSTILE], 0));
    let b = bench("", "");
    edit(&b, "run.toml", "rows.jsonl", IN_JSON);
    b.write(HOSTILE, format!("{}nonsense\n", rows()));
    harmless("a corpus", &shown(&b, &TRAIN, 2));
}

#[test]
fn no_escape_from_a_models_files_or_a_models_mouth_reaches_a_terminal() {
    let b = Bench::with_teacher();
    let generate = ["generate", "--model", "teacher/student", "--prompt", "red 1?", "--raw", "--max-tokens", "12"];
    let plain = String::from_utf8(b.expect(&generate, 0).stdout).unwrap();
    let letter = plain.chars().find(char::is_ascii_lowercase).unwrap();

    // A vocabulary that turns a letter into what a terminal obeys.
    let mut tokenizer = b.json("teacher/student/tokenizer.json");
    let replace = serde_json::json!({ "type": "Replace", "pattern": { "String": letter }, "content": HOSTILE });
    tokenizer["decoder"] =
        serde_json::json!({ "type": "Sequence", "decoders": [tokenizer["decoder"].clone(), replace] });
    b.write("teacher/student/tokenizer.json", tokenizer.to_string());
    let to_a_pipe = String::from_utf8(b.expect(&generate, 0).stdout).unwrap();
    assert_eq!(to_a_pipe, plain.replace(letter, HOSTILE), "a pipe gets every byte");
    harmless("generated text", &shown(&b, &generate, 0));

    // Samples of rollouts.
    b.distil_config("steps = 2");
    edit(&b, "run.toml", "student.json\"", "student.json\"\ntokenizer = \"teacher/student\"");
    edit(
        &b,
        "run.toml",
        "[eval]\nevery_steps = 4",
        "[eval]\nevery_steps = 1\n[rollout]\nfraction = 1.0\nmax_new_tokens = 8",
    );
    b.write("train.jsonl", rows().replace("?\"", &format!("?{IN_JSON}\"")));
    let text = shown(&b, &TRAIN, 0);
    harmless("samples", &text);
    assert!(text.contains("sample"), "{text}");

    // Names in a model's files.
    for (file, from, to) in [
        ("tokenizer_config.json", "\"bos_token\": \"<s>\"", format!("\"bos_token\": \"{IN_JSON}\"")),
        ("config.json", "\"model_type\": \"llama\"", format!("\"model_type\": \"{IN_JSON}\"")),
        ("config.json", "{", format!("{{\"rope_scaling\": {{\"rope_type\": \"{IN_JSON}\"}},")),
    ] {
        let file = format!("teacher/student/{file}");
        let before = b.read(&file);
        let text = String::from_utf8(before.clone()).unwrap();
        assert!(text.contains(from), "{text}");
        b.write(&file, text.replacen(from, &to, 1));
        harmless(&file, &shown(&b, &["inspect", "teacher/student"], 2));
        b.write(&file, before);
    }
    let weights = b.read("teacher/student/model.safetensors");
    let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let mut named: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&weights[8..header]).unwrap();
    let norm = named.remove("model.norm.weight").unwrap();
    named.insert(HOSTILE.into(), norm);
    let named = serde_json::to_vec(&named).unwrap();
    let renamed = [&(named.len() as u64).to_le_bytes()[..], &named, &weights[header..]].concat();
    b.write("teacher/student/model.safetensors", renamed);
    harmless("a tensor's name", &shown(&b, &generate, 2));
}
