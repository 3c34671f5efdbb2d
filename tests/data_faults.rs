//! Every fault of data, from the file to the exit code: what `distill train` says of it, word for word.

mod common;

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::Command;

use common::{Bench, pair};

const TRAIN: [&str; 3] = ["train", "--config", "run.toml"];

/// A run on hard labels of rows.jsonl, which is yet to be written.
fn bench() -> Bench {
    let bench = Bench::new();
    let config = format!(
        "[student]\nkind = \"fresh\"\nconfig = \"student.json\"\ntokenizer = '{}'\n\
         [data]\ntrain = \"rows.jsonl\"\nmax_length = 48\nchat_template = \"none\"\n\
         [loss]\nkind = \"cross_entropy\"\n[train]\nsteps = 2\nbatch_size = 4\n[output]\ndir = \"run\"\n",
        common::tokenizer().display()
    );
    bench.write("run.toml", &config);
    bench
}

fn edit(bench: &Bench, from: &str, to: &str) {
    let text = String::from_utf8(bench.read("run.toml")).unwrap();
    assert!(text.contains(from));
    bench.write("run.toml", text.replace(from, to));
}

/// What a refused run says, without the folder's path.
fn said(bench: &Bench) -> String {
    let said = bench.refused(&TRAIN);
    assert!(!bench.path("run").exists(), "a refused run left a folder");
    let error = said.split_once("error: ").unwrap_or_else(|| panic!("{said}")).1;
    error.replace(&format!("{}/", bench.dir.path().display()), "").trim_end().to_owned()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut packed = vec![];
    flate2::read::GzEncoder::new(text.as_bytes(), flate2::Compression::default()).read_to_end(&mut packed).unwrap();
    packed
}

fn zstd(text: &str) -> Vec<u8> {
    zstd::encode_all(text.as_bytes(), 3).unwrap()
}

fn rows() -> String {
    (0..23).map(pair).collect()
}

#[test]
fn every_fault_of_a_row_is_refused_by_file_line_and_column() {
    let bench = bench();
    let deep = format!("{{\"prompt\": {}", "[".repeat(100_000));
    let giant = format!("{{\"text\": \"{}\"}}", "x".repeat(16 << 20));
    let utf16: Vec<u8> = "{\"text\": \"a\"}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let faults: [(&[u8], &str); 23] = [
        (b"{\"prompt\": \"a\" \"response\": \"b\"}", ":2:16: malformed JSON: expected `,` or `}`"),
        ("{\"prompt\": \"äö\", response: 1}".as_bytes(), ":2:18: malformed JSON: key must be a string"),
        (b"{\"prompt\": \"a\"", ":2:14: malformed JSON: EOF while parsing an object"),
        (b"{\"text\": \"a\"} {\"text\": \"b\"}", ":2:15: malformed JSON: trailing characters"),
        (b"[1]", ":2: a row must be a JSON object, found array"),
        (b"\"text\"", ":2: a row must be a JSON object, found string"),
        (b"{}", ":2: missing fields: expected \"messages\", \"prompt\" and \"response\", or \"text\""),
        (b"{\"response\": \"b\"}", ":2: missing field \"prompt\""),
        (
            b"{\"prompt\": \"b\"}",
            ":2: a prompt without a response has no target: give one (data.train may hold prompts alone where [rollout] has \
             them answered)",
        ),
        (b"{\"prompt\": 3, \"response\": \"b\"}", ":2: \"prompt\" must be a string, found number"),
        (b"{\"prompt\": \"a\", \"response\": null}", ":2: \"response\" must be a string, found null"),
        (b"{\"prompt\": \"a\", \"response\": \"\"}", ":2: \"response\" is empty: the row has no target"),
        (b"{\"text\": \"\"}", ":2: \"text\" is empty: the row has no target"),
        (b"{\"messages\": []}", ":2: \"messages\" is empty"),
        (b"{\"messages\": [{\"role\": \"user\"}]}", ":2: messages[0]: missing field \"content\""),
        (
            b"{\"messages\": [{\"role\": \"bot\", \"content\": \"\"}]}",
            ":2: messages[0]: unknown role \"bot\" (allowed: system, user, assistant, tool, developer)",
        ),
        (b"{\"text\": \"a\", \"text\": \"b\"}", ":2: duplicate key \"text\""),
        (b"{\"text\": \"a\xff\"}", ":2:12: invalid UTF-8"),
        (&utf16, ":2:2: malformed JSON: key must be a string"),
        // A mark where two files were put together.
        ("\u{feff}{\"text\": \"a\"}".as_bytes(), ":2:1: malformed JSON: expected value"),
        (
            b"{\"text\": \"a\tb\"}",
            ":2:12: malformed JSON: control character (\\u0000-\\u001F) found while parsing a string",
        ),
        (deep.as_bytes(), ":2:100011: malformed JSON: EOF while parsing a list"),
        (giant.as_bytes(), ":2: a line of more than 16 MiB"),
    ];
    for (fault, expected) in faults {
        bench.write("rows.jsonl", [pair(0).as_bytes(), fault, b"\n", pair(1).as_bytes()].concat());
        let shown = String::from_utf8_lossy(&fault[..fault.len().min(99)]);
        let way_out = "mend the data, or set on_bad_record = \"skip\" to pass over such rows";
        assert_eq!(
            said(&bench),
            format!("data.train: 1 bad row in the data\n  rows.jsonl{expected}\n{way_out}"),
            "{shown}"
        );
    }
}

#[test]
fn what_looks_like_a_fault_and_is_none_is_read() {
    let bench = bench();
    // A mark of the byte order, line ends of either kind, empty lines, no line end at the end, an empty prompt.
    let rows = format!("\u{feff}{}\r\n\r\n \n{}{{\"prompt\": \"\", \"response\": \"b\"}}", pair(0).trim_end(), pair(1));
    let plan = |bench: &Bench| {
        let output = bench.expect(&["train", "--config", "run.toml", "--dry-run"], 0);
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().find(|line| line.starts_with("data ")).unwrap().to_owned()
    };
    bench.write("rows.jsonl", &rows);
    let plain = plan(&bench);
    assert!(plain.contains("3 records → 3 rows"), "{plain}");
    for packed in [gzip as fn(&str) -> Vec<u8>, zstd] {
        bench.write("rows.jsonl", packed(&rows));
        assert_eq!(plan(&bench), plain);
        // Two files put together are one.
        bench.write("rows.jsonl", [packed(&rows), packed("\n"), packed(&pair(2))].concat());
        let both = plan(&bench);
        assert!(both.contains("4 records → 4 rows"), "{both}");
    }
}

#[test]
fn files_that_hold_no_rows_are_refused_by_name() {
    let bench = bench();
    let rows = rows();
    let (gzip, zstd) = (gzip(&rows), zstd(&rows));
    let mut flipped = gzip.clone();
    let at = flipped.len() - 6;
    flipped[at] ^= 1;
    let (g, z) = (gzip.len(), zstd.len());
    let checks = |tool: &str| format!("fetch it again; `{tool} -t rows.jsonl` checks it");
    let cases: [(Vec<u8>, String); 10] = [
        (b"".to_vec(), "rows.jsonl holds no rows".into()),
        (b"\n \r\n".to_vec(), "rows.jsonl holds no rows".into()),
        (self::gzip(""), "rows.jsonl holds no rows".into()),
        (
            gzip[..g - 1].to_vec(),
            format!("rows.jsonl is not whole: its gzip stream breaks off at the end of the file, after {} bytes: {}", g - 1, checks("gzip")),
        ),
        (
            zstd[..z - 1].to_vec(),
            format!("rows.jsonl is not whole: its zstd stream breaks off at the end of the file, after {} bytes: {}", z - 1, checks("zstd")),
        ),
        (
            flipped,
            format!(
                "rows.jsonl is not whole: its gzip stream is damaged within its first {g} bytes, or something else follows it \
                 (corrupt gzip stream does not have a matching checksum): {}",
                checks("gzip")
            ),
        ),
        (
            [&gzip[..], b"some text that follows"].concat(),
            format!(
                "rows.jsonl is not whole: its gzip stream is damaged within its first {} bytes, or something else follows it \
                 (invalid gzip header): {}",
                g + 22,
                checks("gzip")
            ),
        ),
        (
            b"BZh91AY".to_vec(),
            "rows.jsonl is a bzip2 file; JSONL is read as it is, in gzip or in zstd: unpack it first: bzip2 -dk rows.jsonl".into(),
        ),
        (b"PAR1".to_vec(), "rows.jsonl is a Parquet file; JSONL is read: convert it first".into()),
        (self::gzip("PAR1"), "rows.jsonl holds a Parquet file inside of gzip: unpack it to JSONL first".into()),
    ];
    for (content, expected) in cases {
        bench.write("rows.jsonl", content);
        assert_eq!(said(&bench), format!("data.train: {expected}"));
    }
    let mut bomb = vec![];
    let zeros = std::io::repeat(b' ').take(100 << 20);
    flate2::read::GzEncoder::new(zeros, flate2::Compression::fast()).read_to_end(&mut bomb).unwrap();
    bench.write("rows.jsonl", bomb);
    let said_of_it = said(&bench);
    assert!(said_of_it.starts_with("data.train: rows.jsonl unpacks to more than 200 times its size ("), "{said_of_it}");
    assert!(said_of_it.ends_with("if it is meant to, unpack it first: gzip -dk rows.jsonl"), "{said_of_it}");
    std::fs::remove_file(bench.path("rows.jsonl")).unwrap();
    assert_eq!(said(&bench), "data.train: cannot read rows.jsonl: No such file or directory (os error 2)");
    std::fs::create_dir(bench.path("rows.jsonl")).unwrap();
    assert_eq!(said(&bench), "data.train: rows.jsonl is not a regular file");
    std::fs::remove_dir(bench.path("rows.jsonl")).unwrap();
    // Nobody writes into it: to wait for that would be for ever.
    assert!(Command::new("mkfifo").arg(bench.path("rows.jsonl")).status().unwrap().success());
    assert_eq!(said(&bench), "data.train: rows.jsonl is not a regular file");
}

#[test]
fn a_fault_in_a_compressed_file_has_the_place_of_the_text_in_it() {
    let bench = bench();
    for packed in [gzip, zstd] {
        bench.write("rows.jsonl", packed(&format!("{}\n{{\"text\": \"a\"", rows())));
        let way_out = "mend the data, or set on_bad_record = \"skip\" to pass over such rows";
        let place = "rows.jsonl:25:12: malformed JSON: EOF while parsing an object";
        assert_eq!(said(&bench), format!("data.train: 1 bad row in the data\n  {place}\n{way_out}"));
    }
}

#[test]
fn prompts_that_leave_no_target_are_refused_with_the_way_out() {
    let bench = bench();
    edit(&bench, "max_length = 48", "max_length = 4");
    bench.write("rows.jsonl", "{\"prompt\": \"a rather long prompt\", \"response\": \"b\"}\n");
    assert_eq!(
        said(&bench),
        "data.train: no target left: 1 rows have none within max_length = 4 tokens and 0 records were rejected: raise \
         max_length, or check the data"
    );
}

#[test]
fn a_compressed_corpus_trains_to_the_same_bytes_and_a_changed_one_is_no_longer_it() {
    let bench = bench();
    edit(&bench, "[loss]", "eval = \"held_out.jsonl\"\n[loss]");
    let held_out = String::from_utf8(bench.read("held_out.jsonl")).unwrap();
    let train = |output: &str, more: &[&str], code| {
        let args = [&["train", "--config", "run.toml", "--output", output], more].concat();
        String::from_utf8(bench.expect(&args, code).stderr).unwrap()
    };
    bench.write("rows.jsonl", rows());
    train("plain", &[], 0);
    for (name, packed) in [("gzip", gzip as fn(&str) -> Vec<u8>), ("zstd", zstd)] {
        bench.write("rows.jsonl", packed(&rows()));
        bench.write("held_out.jsonl", packed(&held_out));
        train(name, &["--stop-after", "1"], 75);
        // The same rows in another file are another corpus: what is compared is what lies on the disk.
        bench.write("rows.jsonl", [packed(&rows()), packed("")].concat());
        let said = train(name, &["--resume"], 2);
        assert!(said.contains("cannot resume: the training data changed since the run began"), "{said}");
        bench.write("rows.jsonl", packed(&rows()));
        train(name, &["--resume"], 0);
        assert_eq!(
            bench.read(&format!("{name}/student/model.safetensors")),
            bench.read("plain/student/model.safetensors")
        );
        assert_eq!(bench.timeless_metrics(name), bench.timeless_metrics("plain"));
        let model = format!("{name}/student");
        let eval =
            ["eval", "--teacher", &model, "--student", &model, "--data", "held_out.jsonl", "--chat-template", "none"];
        assert!(String::from_utf8(bench.expect(&eval, 0).stdout).unwrap().contains("KL"));
    }
}

#[test]
fn a_disk_without_room_for_the_text_is_named_with_the_way_out() {
    let bench = bench();
    bench.write("rows.jsonl", gzip(&"x".repeat(1 << 20)));
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let said = run(bench.command(&TRAIN).env("TMPDIR", bench.path("nowhere")));
    let way_out = "name a folder with room for all of its text in the environment (TMPDIR), or unpack it first";
    assert!(
        said.contains("rows.jsonl unpacks to in ") && said.contains("nowhere: No such file") && said.contains(way_out),
        "{said}"
    );
    // A limit stands in for a disk that is full.
    let mut limited = bench.command(&TRAIN);
    // SAFETY: two system calls between fork and exec.
    unsafe {
        limited.env("TMPDIR", bench.dir.path()).pre_exec(|| {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            let limit = libc::rlimit { rlim_cur: 1 << 18, rlim_max: 1 << 18 };
            libc::setrlimit(libc::RLIMIT_FSIZE, &limit);
            Ok(())
        });
    }
    let said = run(&mut limited);
    assert!(said.contains("File too large") && said.contains(way_out), "{said}");
    let left: Vec<_> = std::fs::read_dir(bench.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
}

#[test]
fn bad_rows_are_passed_over_up_to_a_bound_and_all_listed() {
    let bench = bench();
    let bad = ["nonsense", "{}", "{\"text\": 1}"];
    bench.write("rows.jsonl", rows() + &bad.join("\n"));
    edit(&bench, "[loss]", "on_bad_record = \"skip\"\nmax_bad = 2\n[loss]");
    assert_eq!(
        said(&bench),
        "data.train: more than 2 bad rows in the data, which data.max_bad allows\n  \
         rows.jsonl:24:2: malformed JSON: expected ident\n  \
         rows.jsonl:25: missing fields: expected \"messages\", \"prompt\" and \"response\", or \"text\"\n  \
         rows.jsonl:26: \"text\" must be a string, found number\n\
         mend the data, or raise data.max_bad"
    );
    edit(&bench, "max_bad = 2", "max_bad = 3");
    bench.expect(&TRAIN, 0);
    assert_eq!(bench.json("run/summary.json")["rows_rejected"], 3);
    let rejected = String::from_utf8(bench.read("run/rejected.jsonl")).unwrap();
    let path = bench.path("rows.jsonl").display().to_string();
    let lines: Vec<String> = rejected.lines().map(|line| line.replace(&path, "rows.jsonl")).collect();
    assert_eq!(
        lines,
        [
            r#"{"file":"rows.jsonl","line":24,"column":2,"reason":"malformed JSON: expected ident"}"#,
            r#"{"file":"rows.jsonl","line":25,"reason":"missing fields: expected \"messages\", \"prompt\" and \"response\", or \"text\""}"#,
            r#"{"file":"rows.jsonl","line":26,"reason":"\"text\" must be a string, found number"}"#,
        ]
    );
}
