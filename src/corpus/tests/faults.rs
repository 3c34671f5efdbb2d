//! Every fault of data has its own message, with file and line.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// `column: reason`, or the reason alone.
fn fault(line: &[u8]) -> String {
    let Fault { column, reason } = Record::parse(line).unwrap_err();
    column.map_or(String::new(), |column| format!("{column}: ")) + &reason
}

#[test]
fn every_fault_of_a_line_has_its_own_reason() {
    let faults = [
        (r#"{"prompt": "a" "response": "b"}"#, "16: malformed JSON: expected `,` or `}`"),
        (r#"{"prompt": "a", "response": "b""#, "31: malformed JSON: EOF while parsing an object"),
        (r#"{"text": "a"} {"text": "b"}"#, "15: malformed JSON: trailing characters"),
        (r#"{"text": "\ud800"}"#, "17: malformed JSON: unexpected end of hex escape"),
        ("[1]", "a row must be a JSON object, found array"),
        ("3", "a row must be a JSON object, found number"),
        ("\"text\"", "a row must be a JSON object, found string"),
        ("null", "a row must be a JSON object, found null"),
        ("{}", r#"missing fields: expected "messages", "prompt" and "response", or "text""#),
        (r#"{"Text": "a"}"#, r#"missing fields: expected "messages", "prompt" and "response", or "text""#),
        (r#"{"response": "b"}"#, r#"missing field "prompt""#),
        (r#"{"prompt": 1, "response": "b"}"#, r#""prompt" must be a string, found number"#),
        (r#"{"prompt": "a", "response": ["b"]}"#, r#""response" must be a string, found array"#),
        (r#"{"prompt": "a", "completion": {"b": 1}}"#, r#""completion" must be a string, found object"#),
        (r#"{"prompt": "a", "response": null}"#, r#""response" must be a string, found null"#),
        (r#"{"text": true}"#, r#""text" must be a string, found boolean"#),
        (r#"{"text": null}"#, r#""text" must be a string, found null"#),
        (r#"{"text": ""}"#, r#""text" is empty: the row has no target"#),
        (r#"{"prompt": "a", "response": ""}"#, r#""response" is empty: the row has no target"#),
        (r#"{"prompt": "a", "response": "b", "completion": "c"}"#, r#"both "response" and "completion": name one"#),
        (r#"{"text": "a", "text": "b"}"#, r#"duplicate key "text""#),
        (r#"{"text": "a", "id": 1, "id": 2}"#, r#"duplicate key "id""#),
        (r#"{"text": "a", "\u001b[2J": 1, "\u001b[2J": 2}"#, r#"duplicate key "\u{1b}[2J""#),
        (r#"{"messages": "a"}"#, r#""messages" must be an array, found string"#),
        (r#"{"messages": []}"#, r#""messages" is empty"#),
        (r#"{"messages": ["a"]}"#, "messages[0] must be an object, found string"),
        (r#"{"messages": [{"content": "a"}]}"#, r#"messages[0]: missing field "role""#),
        (r#"{"messages": [{"role": "user"}]}"#, r#"messages[0]: missing field "content""#),
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]}"#,
            r#"messages[1]: "content" must be a string, found null"#,
        ),
        (
            r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}"#,
            r#"messages[0]: "content" must be a string, found array"#,
        ),
        (
            r#"{"messages": [{"role": "b\u001b[31mt", "content": "a"}]}"#,
            r#"messages[0]: unknown role "b\u{1b}[31mt" (allowed: system, user, assistant, tool, developer)"#,
        ),
        (
            r#"{"messages": [{"role": "user", "role": "user", "content": "a"}]}"#,
            r#"duplicate key "role" in messages[0]"#,
        ),
        (
            r#"{"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}"#,
            r#"messages[0] has "tool_calls", which this version does not render"#,
        ),
    ];
    for (line, expected) in faults {
        assert_eq!(fault(line.as_bytes()), expected, "{line}");
    }
    assert_eq!(fault(b"{\"text\": \"a\xff\"}"), "12: invalid UTF-8");
    // Columns are characters, as an editor counts them.
    assert_eq!(fault("{\"text\": \"äöü\u{1f600}\" 1}".as_bytes()), "17: malformed JSON: expected `,` or `}`");
    let deep = format!(r#"{{"text": "a", "x": {}}}"#, "[".repeat(100_000));
    assert_eq!(fault(deep.as_bytes()), "100020: malformed JSON: expected value");
    let deep = format!(r#"{{"messages": {}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    assert_eq!(fault(deep.as_bytes()), "messages[0] must be an object, found array");
}

#[test]
fn fields_that_are_not_asked_for_are_ignored() {
    let pair = |p: &str, r: &str| Ok(Record::Pair { prompt: p.into(), response: r.into() });
    let parse = |line: &str| Record::parse(line.as_bytes());
    assert_eq!(parse(r#"{"id": 7, "prompt": "a", "response": "b", "meta": {"x": [1, {"y": null}]}}"#), pair("a", "b"));
    assert_eq!(parse(r#"{"prompt": "", "completion": "b"}"#), pair("", "b"));
    assert_eq!(parse(r#"{"prompt": "a", "response": "b", "text": "a b", "messages": null}"#), pair("a", "b"));
    assert_eq!(parse(r#"{"text": "a", "prompt": null, "response": null}"#), Ok(Record::Text("a".into())));
    let chat = r#"{"prompt": "a", "messages": [{"role": "user", "content": "a", "name": 1}, {"role": "assistant", "content": "b"}]}"#;
    let chat = parse(chat).unwrap();
    assert_eq!(chat, Record::Chat(vec![Message::new("user", "a"), Message::new("assistant", "b")]));
    assert_eq!(chat.content_hash(), pair("a", "b").unwrap().content_hash());
}

#[test]
fn damage_anywhere_in_a_row_is_a_fault_or_harmless_but_never_a_panic() {
    let rows = [
        r#"{"messages": [{"role": "user", "content": "ä\u00e4\n"}, {"role": "assistant", "content": "b"}], "x": [1, -2.5e3]}"#,
        r#"{"prompt": "a\ud83d\ude00", "completion": "b", "unfinished": true, "meta": {"y": null}}"#,
    ];
    let mut draw = ChaCha8Rng::seed_from_u64(1);
    let mut faults = 0;
    for n in 0..20_000 {
        let mut line = rows[n % 2].as_bytes().to_vec();
        for _ in 0..draw.random_range(1..4) {
            let at = draw.random_range(0..line.len());
            match draw.random_range(0..4) {
                0 => line.truncate(at + 1),
                1 => line.insert(at, b"{}[]\",:\\u0"[draw.random_range(0..10)]),
                2 => line[at] = draw.random::<u8>(),
                _ => line[at] = b"{}[]\",:\\u0"[draw.random_range(0..10)],
            }
        }
        if let Err(Fault { column, reason }) = Record::parse(&line) {
            assert!(
                !reason.is_empty() && column.is_none_or(|column| (1..=line.len() + 1).contains(&column)),
                "{reason}"
            );
            assert!(!reason.contains(char::is_control), "{reason:?}");
            faults += 1;
        }
    }
    assert!(faults > 10_000, "{faults}");
}

fn refusal(paths: &[PathBuf]) -> String {
    let error = CorpusIndex::open(paths, OnBadRecord::Fail).unwrap_err();
    assert_eq!(error.class(), crate::error::Class::Input);
    error.to_string()
}

#[test]
fn bad_rows_are_listed_with_file_and_line_and_skipped_if_asked() {
    let dir = tempfile::tempdir().unwrap();
    let content = "\u{feff}{\"text\": \"first\"}\r\n\r\n  \n{\"text\": 1}\nnonsense\n{\"text\": \"last\"}";
    let path = file(dir.path(), "a.jsonl", content);
    let name = path.display();
    assert_eq!(
        refusal(std::slice::from_ref(&path)),
        format!(
            "2 bad rows in the data\n  {name}:4: \"text\" must be a string, found number\n  {name}:5:2: malformed JSON: \
             expected ident\nmend the data, or set on_bad_record = \"skip\" to pass over such rows"
        )
    );
    let index = CorpusIndex::open(std::slice::from_ref(&path), OnBadRecord::SKIP).unwrap();
    assert_eq!((index.len(), index.rejections().count), (2, 2));
    assert_eq!(index.rejections().first[1].place.line, 5);
    let (record, place) = index.read(0).unwrap();
    assert_eq!((record, place.line), (Record::Text("first".into()), 1));
    let (record, place) = index.read(1).unwrap();
    assert_eq!((record, place.line), (Record::Text("last".into()), 6));
    assert_eq!(index.files()[0].bytes, content.len() as u64);

    let many = file(dir.path(), "many.jsonl", "{}\n".repeat(2000));
    assert!(refusal(std::slice::from_ref(&many)).contains("2000 bad rows"));
    assert!(refusal(std::slice::from_ref(&many)).contains("… and 1990 more"));
    let error = CorpusIndex::open(std::slice::from_ref(&many), OnBadRecord::SKIP).unwrap_err().to_string();
    assert_eq!(error, format!("{} holds no rows (2000 bad rows were passed over)", many.display()));
}

#[test]
fn files_that_are_no_jsonl_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.jsonl");
    assert!(
        refusal(std::slice::from_ref(&missing))
            .starts_with(&format!("cannot read {}: No such file", missing.display()))
    );
    assert!(refusal(&[dir.path().into()]).ends_with("is not a regular file"));
    let empty = file(dir.path(), "empty.jsonl", "\n \n");
    assert_eq!(refusal(std::slice::from_ref(&empty)), format!("{} holds no rows", empty.display()));
    let tar = [&[b'x'; 257][..], b"ustar\0"].concat();
    for (magic, what) in [
        (
            b"BZh9".as_slice(),
            "is a bzip2 file; JSONL is read as it is, in gzip or in zstd: unpack it first: bzip2 -dk ",
        ),
        (b"\xfd7zXZ\0", "is an xz file"),
        (b"PK\x03\x04", "is a zip archive"),
        (&tar, "is a tar archive"),
        (b"PAR1", "is a Parquet file; JSONL is read: convert it first"),
    ] {
        let path = file(dir.path(), "packed", magic);
        let refusal = refusal(&[path]);
        assert!(refusal.contains(what), "{refusal}");
    }
}

#[test]
fn more_bad_rows_than_may_be_passed_over_end_the_reading() {
    let dir = tempfile::tempdir().unwrap();
    let a = file(dir.path(), "a", "{\"text\": \"t\"}\n".to_owned() + &"{}\n".repeat(12));
    let b = file(dir.path(), "b", "{\"text\": \"t\"}\nnonsense\n{}\n");
    let open = |most| CorpusIndex::open(&[a.clone(), b.clone()], OnBadRecord::Skip { most: Some(most) });
    assert_eq!(open(14).unwrap().rejections().count, 14);
    // Over all files, and the reading ends there.
    let error = open(12).unwrap_err();
    assert_eq!(error.class(), crate::error::Class::Input);
    let lines: Vec<String> = error.to_string().lines().map(str::to_owned).collect();
    assert_eq!(lines[0], "more than 12 bad rows in the data, which data.max_bad allows");
    assert_eq!(
        lines[1],
        format!("  {}:2: missing fields: expected \"messages\", \"prompt\" and \"response\", or \"text\"", a.display())
    );
    assert_eq!(
        (lines.len(), &lines[11][..], &lines[12][..]),
        (13, "  … and 3 more", "mend the data, or raise data.max_bad")
    );
    assert!(open(0).unwrap_err().to_string().starts_with("more than 0 bad rows"));
}

#[test]
fn records_that_cannot_be_encoded_count_as_bad_rows_too() {
    let dir = tempfile::tempdir().unwrap();
    let tool =
        "{\"messages\": [{\"role\": \"tool\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n";
    let rows = format!("{{}}\n{tool}{{\"text\": \"t\"}}\n{tool}");
    let path = file(dir.path(), "a.jsonl", rows);
    let strict = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{{ m.content }}{% endfor %}</s>";
    let encoder = Arc::new(Setup::with(strict).encoder());
    let open = |most| {
        Arc::new(CorpusIndex::open(std::slice::from_ref(&path), OnBadRecord::Skip { most: Some(most) }).unwrap())
    };
    let scan = |index: &CorpusIndex| scan(index, &encoder, None, |_, _, _| Ok(()), |_| {});
    assert_eq!(scan(&open(3)).unwrap().records_rejected, 2);
    let error = scan(&open(2)).unwrap_err().to_string();
    assert!(
        error.starts_with("more than 2 bad rows") && error.contains("a.jsonl:1: ") && error.contains("a.jsonl:4: "),
        "{error}"
    );
    let order = LoadOrder { seed: 0, shuffle: false, epochs: Some(1) };
    assert!(Loader::new(open(3), encoder.clone(), order).next_step(9, false).is_ok());
    let error = Loader::new(open(2), encoder.clone(), order).next_step(9, false).unwrap_err().to_string();
    assert!(error.starts_with("more than 2 bad rows") && error.contains("a.jsonl:4: "), "{error}");
}

#[test]
fn a_giant_line_is_refused_and_the_rows_around_it_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let just = "x".repeat(LONGEST_LINE - 12);
    let content = format!("{{\"text\": \"{just}\"}}\r\n{{\"text\": \"{just}y\"}}\n{{\"text\": \"z\"}}\n");
    let path = file(dir.path(), "giant.jsonl", content);
    let index = CorpusIndex::open(&[path], OnBadRecord::SKIP).unwrap();
    assert_eq!((index.len(), index.rejections().count), (2, 1));
    assert_eq!(index.rejections().first[0].place.line, 2);
    assert_eq!(index.rejections().first[0].fault.reason, "a line of more than 16 MiB");
    assert_eq!(index.read(0).unwrap().0, Record::Text(just));
    assert_eq!(index.read(1).unwrap().0, Record::Text("z".into()));
}

#[test]
fn a_file_that_changed_under_us_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "a.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
    let index = CorpusIndex::open(std::slice::from_ref(&path), OnBadRecord::Fail).unwrap();
    let digest = index.digest();
    for content in ["{\"text\": \"a\"}\n{\"text\": \"c\"}\n", "{\"text\": \"a\"}\n"] {
        // In place: the open handle sees it.
        std::fs::write(&path, content).unwrap();
        assert!(index.read(0).is_ok());
        let error = index.read(1).unwrap_err();
        assert_eq!(error.class(), crate::error::Class::Run);
        assert!(error.to_string().contains("a.jsonl:2 changed while it was in use"), "{error}");
        assert_ne!(digest, CorpusIndex::open(std::slice::from_ref(&path), OnBadRecord::Fail).unwrap().digest());
    }
}

#[test]
fn many_rows_over_many_files_are_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let rows =
        |from: usize, to: usize| -> String { (from..to).map(|n| format!("{{\"text\": \"row {n}\"}}\n")).collect() };
    let paths = [file(dir.path(), "a", rows(0, 40_000)), file(dir.path(), "b", rows(40_000, 40_010))];
    let index = CorpusIndex::open(&paths, OnBadRecord::Fail).unwrap();
    assert_eq!(index.len(), 40_010);
    for n in [0, 1, 63, 16_383, 16_384, 39_999, 40_000, 40_009] {
        let (record, place) = index.read(n).unwrap();
        assert_eq!(record, Record::Text(format!("row {n}")));
        assert_eq!(place.line as usize, if n < 40_000 { n + 1 } else { n - 39_999 });
    }
}

#[test]
fn rows_that_train_and_eval_share_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let eval = "{\"text\": \"t\"}\n{\"prompt\": \"a\", \"response\": \"b\"}\n{\"text\": \"u\"}\n{\"id\": 1, \"text\": \"t\"}\n";
    let train = "{\"text\": \"v\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \
                 \"b\"}]}\n{\"text\": \"t\"}\n";
    let (eval, train) = (file(dir.path(), "eval", eval), file(dir.path(), "train", train));
    let eval = CorpusIndex::open(&[eval], OnBadRecord::Fail).unwrap();
    let mut finder = OverlapFinder::new(&eval).unwrap();
    CorpusIndex::open_watching(&[train], OnBadRecord::Fail, false, |place, record| finder.watch(place, record))
        .unwrap();
    let overlap = finder.finish();
    assert_eq!(overlap.rows, 3);
    let (in_train, in_eval) = overlap.first.unwrap();
    assert_eq!((in_train.line, in_eval.line), (2, 2));
}
