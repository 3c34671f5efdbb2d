//! Every model says what it was made from, and `verify` finds every edit of it.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{Bench, files};
use distill::checkpoint::{Manifest, Provenance};
use distill::commands::verify::{Finding, check};
use distill::metrics::Screen;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

fn goldens(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

fn quiet() -> Screen {
    Screen::plain(std::io::sink())
}

/// Trained with `more` in `[train]` and an override each for `sets`.
fn trained(more: &str, sets: &[&str]) -> Bench {
    let bench = Bench::with_teacher();
    bench.distil_config(more);
    train(&bench, "run", sets, 0);
    bench
}

fn train(bench: &Bench, run: &str, sets: &[&str], code: i32) {
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let args: Vec<&str> = ["train", "--config", "run.toml", "--output", run].into_iter().chain(sets).collect();
    bench.expect(&args, code);
}

/// What `verify` finds different, or what it says instead.
fn named(path: &Path) -> Vec<String> {
    match check(path, &quiet()) {
        Ok(report) => report.differing().map(|(what, why)| format!("{what}: {why}")).collect(),
        Err(error) => vec![error.to_string()],
    }
}

fn clean(bench: &Bench, path: &str) {
    let report = check(&bench.path(path), &quiet()).unwrap();
    assert_eq!(report.differing().collect::<Vec<_>>(), [], "{path}");
    // A run keeps two checkpoints: what went before them is gone.
    let gone =
        |(what, finding): &&(String, Finding)| matches!(finding, Finding::NotThere(_)) && !what.contains("parent");
    assert_eq!(report.checks.iter().filter(gone).collect::<Vec<_>>(), Vec::<&(String, Finding)>::new(), "{path}");
}

/// Does every kind of harm to every file of `dir`, one at a time, and insists that each is found by the file's name.
fn every_edit_is_named(dir: &Path, seed: u64) {
    assert_eq!(named(dir), Vec::<String>::new(), "{}", dir.display());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let content: BTreeMap<String, Vec<u8>> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .filter(|(name, _)| name != "run.lock")
        .collect();
    let expect = |names: &[&String], what: &str| {
        let found = named(dir);
        let hit = found.iter().any(|line| names.iter().any(|name| line.contains(name.as_str())));
        assert!(hit, "{what} of {names:?} in {} is not found: {found:?}", dir.display());
    };
    for (name, bytes) in &content {
        let path = dir.join(name);
        for _ in 0..6 {
            let at = rng.random_range(0..bytes.len());
            let edited = |edit: &dyn Fn(&mut Vec<u8>)| {
                let mut bytes = bytes.clone();
                edit(&mut bytes);
                bytes
            };
            let (bit, byte) = (1 << rng.random_range(0..8u8), rng.random::<u8>());
            for (what, edited) in [
                ("a flip", edited(&|b| b[at] ^= bit)),
                ("an insertion", edited(&|b| b.insert(at, byte))),
                ("an addition", edited(&|b| b.push(byte))),
                ("a deletion", edited(&|b| _ = b.remove(at))),
                ("a truncation", edited(&|b| b.truncate(at))),
            ] {
                fs::write(&path, edited).unwrap();
                expect(&[name], &format!("{what} at {at}"));
            }
        }
        fs::remove_file(&path).unwrap();
        expect(&[name], "a removal");
        fs::write(&path, bytes).unwrap();
    }
    for (a, first) in &content {
        for (b, second) in content.range(a.clone()..).skip(1).filter(|(_, second)| *second != first) {
            fs::write(dir.join(a), second).unwrap();
            fs::write(dir.join(b), first).unwrap();
            expect(&[a, b], "a swap");
            fs::write(dir.join(a), first).unwrap();
            fs::write(dir.join(b), second).unwrap();
        }
    }
    assert_eq!(named(dir), Vec::<String>::new(), "{}", dir.display());
}

#[test]
fn every_edit_of_any_file_of_a_checkpoint_or_a_student_is_named() {
    let bench = trained("epochs = 1", &[]);
    every_edit_is_named(&bench.path("run/checkpoints/step-00000006"), 1);
    every_edit_is_named(&bench.path("run/student"), 2);
}

#[test]
fn every_edit_of_any_file_of_an_export_an_untrained_student_or_a_cache_is_named() {
    let bench = trained("steps = 1", &[]);
    let gguf = goldens("gguf/smollm.gguf");
    bench.expect(&["export", gguf.to_str().unwrap(), "--dequantize", "--output", "exported"], 0);
    every_edit_is_named(&bench.path("exported"), 3);
    bench.expect(&["init", "--config", "run.toml", "--output", "untouched"], 0);
    every_edit_is_named(&bench.path("untouched"), 4);
    bench.expect(&["cache", "--config", "run.toml", "--output", "cache"], 0);
    every_edit_is_named(&bench.path("cache"), 5);
    bench.expect(&["cache", "--config", "run.toml", "--output", "shard", "--shard", "1/2"], 0);
    every_edit_is_named(&bench.path("shard"), 6);
}

#[test]
fn a_file_that_was_added_is_named_too() {
    let bench = trained("steps = 2", &[]);
    for folder in ["run/student", "run/checkpoints/step-00000002"] {
        bench.write(&format!("{folder}/chat_template.jinja"), "{{ messages }}");
        let found = named(&bench.path(folder));
        assert!(found.len() == 1 && found[0].contains("chat_template.jinja: it was added"), "{found:?}");
    }
}

#[test]
fn exit_codes_say_recorded_differs_and_nothing_to_verify() {
    let bench = trained("epochs = 1", &[]);
    let verify = |path: &str, code| String::from_utf8(bench.expect(&["verify", path], code).stdout).unwrap();
    for path in ["run/student", "run/checkpoints/latest", "run/checkpoints/step-00000006"] {
        let table = verify(path, 0);
        assert!(table.contains(" 0 not there, 0 differ"), "{table}");
    }
    // Two checkpoints are kept: the one before them is gone.
    assert!(verify("run", 0).contains(" 1 not there, 0 differ"));
    let corpus = bench.read("train.jsonl");
    bench.write("train.jsonl", &corpus[1..]);
    let table = verify("run", 1);
    assert!(table.contains("corpus: train.jsonl") && table.contains("DIFFERS"), "{table}");
    // What is gone is no failure; what it would have taken to recompute the order is not there either.
    fs::remove_file(bench.path("train.jsonl")).unwrap();
    fs::remove_dir_all(bench.path("teacher")).unwrap();
    let table = verify("run/student", 0);
    for part in ["corpus: train.jsonl", "teacher: model.safetensors", "order of 6 steps"] {
        let line = table.lines().find(|line| line.starts_with(part)).unwrap_or_else(|| panic!("{part}: {table}"));
        assert!(line.contains("not there"), "{line}");
    }
    bench.expect(&["verify", "run", "--json", "found.json"], 0);
    let found = bench.json("found.json");
    assert_eq!(found["differ"], 0);
    assert_eq!(found["checks"][0]["finding"], "as_recorded");
    // A student that was moved out of its run is verified as it is.
    fs::rename(bench.path("run/student"), bench.path("moved")).unwrap();
    assert!(verify("moved", 0).contains("no config.toml stands where that of a run does"));
    assert!(verify("run", 1).contains("student"), "a run that has ended has its student");
    let said = bench.refused(&["verify", goldens("models/qwen2").to_str().unwrap()]);
    assert!(said.contains("is a model without provenance.json"), "{said}");
    assert!(bench.refused(&["verify", "."]).contains("nothing to verify"));
    assert!(bench.refused(&["verify", "absent"]).contains("does not exist"));
}

#[test]
fn an_edited_config_log_or_summary_of_a_run_is_named() {
    let bench = trained("epochs = 1", &[]);
    for (file, from, to, said) in [
        ("config.toml", "learning_rate = 0.005", "learning_rate = 0.05", "train.learning_rate"),
        ("config.toml", "seed = 42", "seed = 43", "seed"),
        ("metrics.jsonl", "\"step\":3", "\"step\":4", "metrics.jsonl"),
        ("metrics.jsonl", "\"tokens\":", "\"tokens\":1", "metrics.jsonl"),
        ("summary.json", "\"rows_used\": 23", "\"rows_used\": 24", "summary.json"),
        ("summary.json", "\"steps\": 6", "\"steps\": 5", "summary.json"),
        ("checkpoints/latest", "step-00000006", "step-00000005", "checkpoints/latest"),
    ] {
        let file = format!("run/{file}");
        let text = String::from_utf8(bench.read(&file)).unwrap();
        assert!(text.contains(from), "{from} in {text}");
        bench.write(&file, text.replace(from, to));
        let found = named(&bench.path("run"));
        assert!(found.iter().any(|line| line.contains(said)), "{said}: {found:?}");
        bench.write(&file, text);
    }
    clean(&bench, "run");
    // Keys that a resumed run may change are no part of what it is.
    let text = String::from_utf8(bench.read("run/config.toml")).unwrap();
    bench.write("run/config.toml", text.replace("keep_last = 2", "keep_last = 7"));
    clean(&bench, "run");
}

#[test]
fn what_was_deleted_from_a_run_is_not_passed_over() {
    let bench = trained("steps = 6", &["checkpoint.every_steps=2"]);
    let dir = bench.path("run");
    clean(&bench, "run");
    let not_there = |part: &str| {
        let report = check(&dir, &quiet()).unwrap();
        assert_eq!(report.differing().count(), 0, "{part}: {report:#?}");
        report.checks.iter().any(|(what, finding)| what == part && matches!(finding, Finding::NotThere(_)))
    };
    fs::remove_dir_all(dir.join("checkpoints/step-00000004")).unwrap();
    assert!(not_there("checkpoints/step-00000004"));
    fs::remove_file(dir.join("summary.json")).unwrap();
    assert!(not_there("summary.json"));
    fs::remove_dir_all(dir.join("checkpoints")).unwrap();
    assert!(not_there("checkpoints/step-00000004") && not_there("checkpoints/step-00000006"));
}

#[test]
fn a_forged_order_is_found_from_the_corpus_alone() {
    let bench = trained("epochs = 2", &[]);
    let dir = bench.path("run/student");
    fs::remove_dir_all(bench.path("teacher/student")).unwrap();
    let truth = Provenance::read(&dir).unwrap();
    type Forgery = fn(&mut Provenance);
    let forgeries: [(Forgery, &str); 3] = [
        (|p| p.training.as_mut().unwrap().order.digest.replace_range(..1, "x"), "other rows or another order"),
        (|p| p.training.as_mut().unwrap().seed += 1, "other rows or another order"),
        (|p| p.corpus.as_mut().unwrap().rows.as_mut().unwrap().used -= 1, "used: 23"),
    ];
    for (forge, said) in forgeries {
        let mut forged = truth.clone();
        forge(&mut forged);
        forged.write_over(&dir).unwrap();
        let found = named(&dir);
        assert!(found.len() == 1 && found[0].contains("order of 12 steps") && found[0].contains(said), "{found:?}");
    }
}

#[test]
fn a_record_that_names_a_device_in_a_files_place_has_it_never_read() {
    let bench = trained("steps = 1", &[]);
    let dir = bench.path("run/student");
    let mut forged = Provenance::read(&dir).unwrap();
    let corpus = &mut forged.corpus.as_mut().unwrap().files[0];
    (corpus.path, corpus.size) = ("/dev/zero".into(), 0);
    forged.write_over(&dir).unwrap();
    let report = check(&dir, &quiet()).unwrap();
    let not_there = |what: &str| report.checks.iter().any(|(w, f)| w == what && matches!(f, Finding::NotThere(_)));
    assert!(not_there("corpus: zero") && not_there("order of 1 steps"), "{report:#?}");
}

#[test]
fn every_kind_of_run_says_what_it_has_and_nothing_else_and_is_found_as_it_says() {
    let gist = |bench: &Bench, run: &str| -> Value {
        clean(bench, run);
        let (student, checkpoints) = (format!("{run}/student"), format!("{run}/checkpoints/latest"));
        clean(bench, &student);
        clean(bench, &checkpoints);
        bench.json(&format!("{student}/provenance.json"))
    };
    let bench = trained("epochs = 1", &["data.packing=true"]);
    // Hard labels: no teacher at all.
    let labels = gist(&bench, "teacher");
    for absent in ["teacher", "held_out", "chat_template"] {
        assert!(labels.get(absent).is_none(), "{absent}: {labels:#}");
    }
    assert_eq!((&labels["student"]["kind"], &labels["student"]["weights"]), (&"fresh".into(), &Value::Null));
    // A live teacher, in packs.
    let live = gist(&bench, "run");
    assert_eq!(live["teacher"]["kind"], "local");
    // The student of one run teaches the next: its provenance is one of its files.
    assert!(live["teacher"]["files"]["provenance.json"].is_object());
    assert_eq!(live["corpus"]["rows"]["used"], 23);
    assert_eq!(live["corpus"]["files"][0]["size"], bench.read("train.jsonl").len());
    assert!(live["training"].get("rollouts").is_none() && live["corpus"].get("written_from").is_none());
    assert_eq!(live["environments"].as_array().unwrap().len(), 1);
    assert_eq!(live["config"]["keys"]["train.learning_rate"], 0.005);
    assert!(!String::from_utf8(bench.read("run/student/provenance.json")).unwrap().contains("second"));
    // A cache has the same teacher.
    train(&bench, "written", &["cache.write_through=true"], 0);
    gist(&bench, "written");
    bench.expect(&["cache", "--config", "run.toml", "--output", "cache"], 0);
    let tokenizer = "student.tokenizer=teacher/student";
    train(&bench, "cached", &["teacher.kind=cache", "teacher.path=cache", tokenizer], 0);
    let cached = gist(&bench, "cached");
    assert_eq!(cached["teacher"]["kind"], "cache");
    assert_eq!(cached["teacher"]["weights"], live["teacher"]["weights"]);
    assert_eq!(cached["teacher"]["vocabulary"], live["tokenizer"]["vocabulary"]);
    // Rows of its own.
    train(&bench, "own", &["rollout.fraction=0.5", "rollout.max_new_tokens=5"], 0);
    let own = gist(&bench, "own");
    assert!(own["training"]["rollouts"]["rows"].as_u64().unwrap() > 0);
    assert_eq!(own["training"]["order"]["prompts"], true);
    // The teacher's responses, and what they follow from.
    train(&bench, "told", &["rollout.from=teacher", "rollout.max_new_tokens=5", "rollout.temperature=1.0"], 0);
    let told = gist(&bench, "told");
    assert!(told["corpus"]["files"][0]["path"].as_str().unwrap().ends_with("told/responses.jsonl"));
    assert_eq!(told["corpus"]["prompts"][0], bench.path("train.jsonl").to_str().unwrap());
    assert!(told["corpus"]["written_from"]["rollout.max_new_tokens"] == "5");
    bench.write("told/responses.jsonl", [bench.read("told/responses.jsonl"), b"\n".to_vec()].concat());
    let found = named(&bench.path("told"));
    assert!(found.iter().any(|line| line.starts_with("responses.jsonl")), "{found:?}");
    // Adapters on a frozen model, a template that is a file, layers that were chosen.
    let text = String::from_utf8(bench.read("run.toml")).unwrap();
    bench.write("chat.jinja", "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}");
    let text = text.replace("chat_template = \"none\"", "chat_template = \"chat.jinja\"");
    bench.write("run.toml", text.replace("kind = \"fresh\"\nconfig = \"student.json\"", ""));
    train(&bench, "adapted", &["student.kind=lora", "student.from=teacher/student", "student.rank=2"], 0);
    let adapted = gist(&bench, "adapted");
    assert_eq!((&adapted["student"]["kind"], &adapted["config"]["keys"]["student.rank"]), (&"lora".into(), &2.into()));
    assert_eq!(adapted["student"]["weights"], live["teacher"]["weights"]);
    assert!(adapted["chat_template"]["path"].as_str().unwrap().ends_with("chat.jinja"));
    let auto = ["student.kind=pruned", "student.layers=auto", "student.count=1", "student.rows=4"];
    train(&bench, "cut", &auto, 0);
    assert_eq!(gist(&bench, "cut")["config"]["keys"]["student.layers"].as_array().unwrap().len(), 1);
    let sets = auto.iter().flat_map(|set| ["--set", set]);
    let init: Vec<&str> = ["init", "--config", "run.toml", "--output", "first"].into_iter().chain(sets).collect();
    bench.expect(&init, 0);
    let first = bench.json("first/provenance.json");
    assert_eq!((&first["made_by"], &first["corpus"]["rows"]), (&"init".into(), &Value::Null));
    assert!(first["environments"][0]["hardware"].is_string() && first.get("training").is_none());
    clean(&bench, "first");
}

#[test]
fn licences_and_hub_names_are_told_and_kept() {
    let bench = Bench::with_teacher();
    let snapshot = bench.path("hub/models--org--big/snapshots/abc123");
    fs::create_dir_all(snapshot.parent().unwrap()).unwrap();
    fs::rename(bench.path("teacher/student"), &snapshot).unwrap();
    fs::create_dir_all(bench.path("hub/models--org--big/refs")).unwrap();
    bench.write("hub/models--org--big/refs/main", "abc123");
    fs::write(snapshot.join("README.md"), "---\nlicense: apache-2.0\n---\n# Big\n").unwrap();
    fs::write(snapshot.join("LICENSE"), "Do as you like.\n").unwrap();
    bench.distil_config("steps = 2");
    let text = String::from_utf8(bench.read("run.toml")).unwrap();
    bench.write("run.toml", text.replace("teacher/student", "org/big"));
    let mut command = bench.command(&["train", "--config", "run.toml"]);
    assert_eq!(command.env("HF_HUB_CACHE", bench.path("hub")).status().unwrap().code(), Some(0));
    let teacher = &bench.json("run/student/provenance.json")["teacher"];
    assert_eq!(teacher["hub"], "org/big@abc123");
    assert_eq!(teacher["license"], serde_json::json!({"id": "apache-2.0", "said_in": "README.md", "text": "LICENSE"}));
    clean(&bench, "run");
    fs::write(snapshot.join("LICENSE"), "Do as we like.\n").unwrap();
    assert_eq!(named(&bench.path("run/student")).len(), 1);
    // Of a GGUF file, its own metadata and what lies beside it.
    let gguf = goldens("gguf/qwen2.gguf");
    bench.write("file/qwen2.gguf", fs::read(gguf).unwrap());
    bench.write("file/README.md", "---\nlicense: mit\n---\n");
    bench.expect(&["export", "file/qwen2.gguf", "--dequantize", "--output", "out"], 0);
    let made = bench.json("out/provenance.json");
    assert_eq!((&made["student"]["kind"], &made["student"]["license"]["id"]), (&"gguf".into(), &"mit".into()));
    assert!(made["environments"][0].get("hardware").is_none());
    clean(&bench, "out");
}

#[test]
fn checkpoints_name_what_they_went_on_from_and_a_run_on_other_hardware_names_both() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 6");
    let portable = |args: &[&str]| {
        let mut command = bench.command(&[&["train", "--config", "run.toml", "--device", "cpu"], args].concat());
        command.env("DISTILL_SIMD", "portable").status().unwrap().code()
    };
    assert_eq!(portable(&["--stop-after", "4"]), Some(75));
    bench.expect(&["train", "--config", "run.toml", "--device", "cpu", "--resume"], 0);
    let read = |step: u64| Manifest::read(&bench.path(&format!("run/checkpoints/step-{step:08}"))).unwrap();
    assert_eq!(read(6).parent, Some(read(4).as_parent()));
    assert_eq!(read(6).tool.unwrap().name, "distill");
    let environments = bench.json("run/student/provenance.json")["environments"].as_array().unwrap().clone();
    let hardware: Vec<&Value> = environments.iter().map(|environment| &environment["hardware"]).collect();
    // A machine that has nothing else goes on with the same.
    assert!(hardware[0] == "portable" && hardware.len() == if hardware.last() == hardware.first() { 1 } else { 2 });
    clean(&bench, "run/student");
    let shown = String::from_utf8(bench.expect(&["inspect", "run/checkpoints/latest"], 0).stdout).unwrap();
    assert!(shown.contains("went on from    step-00000004") && shown.contains("written by      distill"), "{shown}");
}

#[test]
fn another_teacher_is_found_by_every_byte_where_the_sample_of_it_is_the_same() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 6");
    bench.expect(&["train", "--config", "run.toml", "--stop-after", "4"], 75);
    // As a large file is that changed between the places that are sampled: the record differs, the sample does not.
    let dir = bench.path("run/checkpoints/step-00000004");
    let mut provenance = Provenance::read(&dir).unwrap();
    provenance.teacher.as_mut().unwrap().weights = Some("0".repeat(64));
    provenance.write(&dir).unwrap();
    let mut manifest: Value = serde_json::from_slice(&fs::read(dir.join("manifest.json")).unwrap()).unwrap();
    let bytes = fs::read(dir.join("provenance.json")).unwrap();
    let (size, sha256) = distill::checkpoint::hash_file(&dir.join("provenance.json")).unwrap();
    assert_eq!(size, bytes.len() as u64);
    manifest["files"]["provenance.json"] = serde_json::json!({ "size": size, "sha256": sha256 });
    let seal = |manifest: &Value| serde_json::to_string_pretty(manifest).unwrap() + "\n";
    manifest["digest"] = "".into();
    let digest = <sha2::Sha256 as sha2::Digest>::digest(seal(&manifest));
    manifest["digest"] = distill::units::hex(&digest).into();
    fs::write(dir.join("manifest.json"), seal(&manifest)).unwrap();
    let said = bench.refused(&["train", "--config", "run.toml", "--resume"]);
    assert!(said.contains("the weights of the teacher are not what the run began with"), "{said}");
}

/// The run of the golden checkpoint, with its paths.
fn format_1() -> Bench {
    let bench = Bench::new();
    let golden = goldens("format1");
    for name in ["train.jsonl", "student.json"] {
        bench.write(name, fs::read(golden.join(name)).unwrap());
    }
    for name in ["metrics.jsonl", "summary.json", "checkpoints/latest"] {
        bench.write(&format!("run/{name}"), fs::read(golden.join("run").join(name)).unwrap());
    }
    let step = "run/checkpoints/step-00000004";
    for (name, content) in fs::read_dir(golden.join(step)).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())
    }) {
        bench.write(&format!("{step}/{name}"), content);
    }
    let config = fs::read_to_string(golden.join("run/config.toml")).unwrap();
    let config = config.replace("FIXTURE", bench.path("").to_str().unwrap().trim_end_matches('/'));
    bench.write("run/config.toml", config.replace("GOLDENS", goldens("").to_str().unwrap().trim_end_matches('/')));
    bench
}

#[test]
fn a_checkpoint_of_format_1_is_inspected_verified_and_gone_on_from() {
    let bench = format_1();
    let shown = String::from_utf8(bench.expect(&["inspect", "run/checkpoints/latest"], 0).stdout).unwrap();
    assert!(shown.contains("checkpoint after step 4: every file matches its digest"), "{shown}");
    assert!(!shown.contains("went on from"), "{shown}");
    let table = String::from_utf8(bench.expect(&["verify", "run"], 0).stdout).unwrap();
    assert!(table.contains("manifest format 1 is of a version that recorded none"), "{table}");
    let before = files(&bench.path("run/checkpoints/step-00000004"));
    bench.expect(&["train", "--config", "run/config.toml", "--device", "cpu", "--resume"], 0);
    assert_eq!(bench.json("run/summary.json")["steps"], 6);
    assert_eq!(files(&bench.path("run/checkpoints/step-00000004")), before);
    let read = |step: u64| Manifest::read(&bench.path(&format!("run/checkpoints/step-{step:08}"))).unwrap();
    assert_eq!((read(4).format, read(6).format), (1, 2));
    assert_eq!(read(6).parent, Some(read(4).as_parent()));
    // The order of the steps before is that of a run that recorded it from the start.
    bench.expect(&["train", "--config", "run/config.toml", "--device", "cpu", "--output", "anew"], 0);
    let order =
        |run: &str| bench.json(&format!("{run}/student/provenance.json"))["training"]["order"]["digest"].clone();
    assert_eq!(order("run"), order("anew"));
    let first = bench.json("run/student/provenance.json")["environments"][0].clone();
    assert!(first.get("version").is_none() && first["hardware"].is_string(), "{first}");
    assert_eq!(named(&bench.path("run")), Vec::<String>::new());
}
