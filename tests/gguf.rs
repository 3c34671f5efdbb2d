//! A GGUF file as the teacher of a run, of an evaluation and of a benchmark.

mod common;

use common::Bench;

/// A run config whose teacher is teacher.gguf.
fn bench() -> Bench {
    let bench = Bench::with_teacher();
    bench.gguf_teacher();
    bench.distil_config("steps = 9");
    let text = String::from_utf8(bench.read("run.toml")).unwrap();
    let student = format!("config = \"student.json\"\ntokenizer = '{}'", common::tokenizer().display());
    let text = text
        .replace("kind = \"local\"\npath = \"teacher/student\"", "kind = \"gguf\"\npath = \"teacher.gguf\"")
        .replace("config = \"student.json\"", &student);
    bench.write("gguf.toml", text);
    bench
}

#[test]
fn a_file_of_the_same_weights_teaches_what_the_folder_does() {
    let bench = bench();
    bench.expect(&["train", "--config", "run.toml", "--output", "folder", "--device", "cpu"], 0);
    bench.expect(&["train", "--config", "gguf.toml", "--output", "file", "--device", "cpu"], 0);
    let losses = |run: &str| -> Vec<f64> {
        bench.timeless_metrics(run).iter().filter_map(|e| e["divergence"].as_f64()).collect()
    };
    let (folder, file) = (losses("folder"), losses("file"));
    assert!(
        folder.len() == 9 && folder.iter().zip(&file).all(|(a, b)| (a - b).abs() < 1e-5 * a),
        "{folder:?} {file:?}"
    );
    if distill::device::for_tests().is_some() {
        // The file stays on the CPU; its head goes to the student.
        bench.expect(&["train", "--config", "gguf.toml", "--output", "gpu", "--device", "cuda"], 0);
        let gpu = losses("gpu");
        assert!(gpu.len() == 9 && gpu.iter().zip(&file).all(|(a, b)| (a - b).abs() < 1e-5 * b), "{gpu:?} {file:?}");
    }
    let eval = |teacher: &str, json: &str| {
        let args = ["eval", "--teacher", teacher, "--student", "file/student", "--data", "held_out.jsonl"];
        bench.expect(&[&args[..], &["--chat-template", "none", "--json", json]].concat(), 0);
        bench.json(json)["kl_mean"].as_f64().unwrap()
    };
    let (folder, file) = (eval("teacher/student", "a.json"), eval("teacher.gguf", "b.json"));
    assert!((folder - file).abs() < 1e-5 * folder, "{folder} {file}");
    let shapes = ["bench", "--teacher", "teacher.gguf", "--student", "student.json", "--steps", "1", "--length", "16"];
    bench.expect(&shapes, 0);
}

#[test]
fn a_run_is_stopped_and_resumed_to_the_bit() {
    let bench = bench();
    let train = |more: &[&str], code| bench.expect(&[&["train", "--config", "gguf.toml"], more].concat(), code);
    train(&["--output", "whole"], 0);
    train(&["--output", "broken", "--stop-after", "4"], 75);
    train(&["--output", "broken", "--resume"], 0);
    assert_eq!(common::files(&bench.path("whole/student")), common::files(&bench.path("broken/student")));
    // Another file is another teacher.
    let mut bytes = bench.read("teacher.gguf");
    let last = bytes.len() - 5;
    bytes[last] ^= 1;
    bench.write("teacher.gguf", bytes);
    let said = bench.refused(&["train", "--config", "gguf.toml", "--output", "broken", "--resume"]);
    assert!(said.contains("the teacher changed"), "{said}");
}

#[test]
fn what_a_file_cannot_be_is_refused_with_the_way_out() {
    let bench = bench();
    let config = String::from_utf8(bench.read("gguf.toml")).unwrap();
    let refused = |from: &str, to: &str| {
        assert!(config.contains(from), "{from}");
        bench.write("bad.toml", config.replace(from, to));
        bench.refused(&["train", "--config", "bad.toml"])
    };
    let fresh = config.split("[student]\n").nth(1).unwrap().split("[data]").next().unwrap();
    for (said, parts) in [
        (refused("kind = \"gguf\"", "kind = \"local\""), ["teacher.path", "kind = \"gguf\""]),
        (refused("path = \"teacher.gguf\"", "path = \"no.gguf\""), ["teacher.path", "no.gguf"]),
        (refused("path = \"teacher.gguf\"", "path = \"teacher.gguf\"\ndevice = \"cuda\""), ["teacher.device", "CPU"]),
        (refused(fresh, "kind = \"local\"\npath = \"teacher.gguf\"\n"), ["student.path", "not learn"]),
        (refused(fresh, "kind = \"pruned\"\nlayers = [0]\n"), ["student.from", "GGUF"]),
    ] {
        assert!(parts.iter().all(|part| said.contains(part)), "{parts:?} are not in: {said}");
    }
    // A vocabulary with one other token.
    let vocabulary = std::fs::read(common::tokenizer().join("tokenizer.json")).unwrap();
    let token = tokenizers::Tokenizer::from_bytes(vocabulary).unwrap().id_to_token(300).unwrap();
    let stored = [&(token.len() as u64).to_le_bytes()[..], token.as_bytes()].concat();
    let mut bytes = bench.read("teacher.gguf");
    let at = bytes.windows(stored.len()).position(|w| w == stored).unwrap();
    bytes[at + stored.len() - 1] = b'~';
    bench.write("teacher.gguf", bytes);
    let said = bench.refused(&["train", "--config", "gguf.toml"]);
    assert!(said.contains("1 tokens differ: 300"), "{said}");
}

#[test]
fn inspect_shows_shape_types_and_metadata() {
    let bench = bench();
    let shown = String::from_utf8(bench.expect(&["inspect", "teacher.gguf"], 0).stdout).unwrap();
    for part in
        ["llama", "2 × 32 wide", "tensors of F32", "400 tokens", "llama.attention.head_count_kv", "GGUF version"]
    {
        assert!(shown.contains(part), "{part:?} is not in:\n{shown}");
    }
}
