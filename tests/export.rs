//! `distill export`: a GGUF file as a folder that evaluates, learns and encodes as the file does. And a file's own tokenizer
//! in a run.

mod common;

use common::Bench;
use distill::corpus::TextTokenizer;

const FILES: [&str; 4] = ["gpt-2.gguf", "smollm.gguf", "qwen2.gguf", "llama-bpe.gguf"];

/// Rows to learn from, and the golden files: Q8_0, Q4_1, Q5_0, F16 and F32 tensors in each.
fn bench() -> Bench {
    let bench = Bench::new();
    let goldens = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/gguf");
    for name in FILES {
        bench.write(name, std::fs::read(goldens.join(name)).unwrap());
    }
    bench.write("student.json", common::model_config(1, 16).replace("\"vocab_size\": 400", "\"vocab_size\": 568"));
    bench
}

/// A run that distils `file` into a fresh student.
fn config(bench: &Bench, teacher: &str, student: &str) -> &'static str {
    bench.write(
        "run.toml",
        format!(
            "[teacher]\nkind = \"gguf\"\n{teacher}\n[student]\n{student}\n[data]\ntrain = \"train.jsonl\"\neval = \
             \"held_out.jsonl\"\nmax_length = 48\n[train]\nsteps = 4\nbatch_size = 4\n[output]\ndir = \"run\"\n"
        ),
    );
    "run.toml"
}

const FRESH: &str = "kind = \"fresh\"\nconfig = \"student.json\"";

/// On the CPU, where a GGUF teacher runs in any case: a student on a GPU sums in another order.
const CPU: [&str; 2] = ["--device", "cpu"];

fn kl(bench: &Bench, teacher: &str, student: &str) -> f64 {
    let args = ["eval", "--teacher", teacher, "--student", student, "--data", "held_out.jsonl", "--json", "e.json"];
    bench.expect(&[&args[..], &CPU].concat(), 0);
    bench.json("e.json")["kl_mean"].as_f64().unwrap()
}

#[test]
fn an_exported_folder_evaluates_as_its_file_does() {
    let bench = bench();
    for file in FILES {
        let out = format!("out/{file}");
        bench.expect(&["export", file, "--dequantize", "--output", &out], 0);
        let mut names: Vec<_> = common::files(&bench.path(&out)).into_keys().collect();
        names.sort();
        let want = ["config.json", "generation_config.json", "model.safetensors", "provenance.json"];
        assert_eq!(names, [&want[..], &["tokenizer.json", "tokenizer_config.json"]].concat());
        let kl_f32 = kl(&bench, file, &out);
        assert!(kl_f32.abs() < 1e-9, "{file}: {kl_f32}");
        let half = format!("half/{file}");
        bench.expect(&["export", file, "--dequantize", "--output", &half, "--dtype", "bf16"], 0);
        let kl_bf16 = kl(&bench, file, &half);
        assert!(kl_bf16 > kl_f32 && kl_bf16 < 1e-3, "{file}: {kl_bf16}");
        let sizes = [&out, &half].map(|dir| bench.read(&format!("{dir}/model.safetensors")).len());
        assert!(sizes[1] * 2 < sizes[0] * 11 / 10, "{sizes:?}");
    }
    // A second one, elsewhere, has the same bytes; an empty folder is taken.
    std::fs::create_dir(bench.path("again")).unwrap();
    bench.expect(&["export", FILES[0], "--dequantize", "--output", "again"], 0);
    assert_eq!(common::files(&bench.path("again")), common::files(&bench.path(&format!("out/{}", FILES[0]))));
    bench.expect(&["generate", "--model", "again", "--prompt", "a", "--max-tokens", "2"], 0);
}

#[test]
fn what_export_cannot_do_is_refused_and_nothing_is_written() {
    let bench = bench();
    bench.write("full/file", "x");
    bench.write("no.gguf", "GGML or anything");
    let mut bytes = bench.read("smollm.gguf");
    let at = bytes.windows(6).rposition(|w| w == b"smollm").unwrap();
    bytes[at..at + 6].copy_from_slice(b"tekken");
    bench.write("other/other.gguf", &bytes);
    bench.write("wrong/smollm.gguf", bench.read("smollm.gguf"));
    bench.write("wrong/tokenizer.json", std::fs::read(common::tokenizer().join("tokenizer.json")).unwrap());
    let export = |args: &[&str]| bench.refused(&[&["export"], args].concat());
    for (said, parts) in [
        (export(&["smollm.gguf", "--dequantize", "--output", "full"]), ["full", "absent or empty"]),
        (export(&["smollm.gguf", "--dequantize", "--output", "full/file"]), ["full/file", "absent or empty"]),
        (export(&["smollm.gguf", "--output", "out"]), ["--dequantize", "required"]),
        (export(&["no.gguf", "--dequantize", "--output", "out"]), ["no.gguf", "does not begin with GGUF"]),
        (export(&["absent.gguf", "--dequantize", "--output", "out"]), ["absent.gguf", "cannot read"]),
        (export(&["full", "--dequantize", "--output", "out"]), ["full", "takes a GGUF file"]),
        (export(&["other/other.gguf", "--dequantize", "--output", "out"]), ["\"tekken\"", "--tokenizer"]),
        (
            export(&["smollm.gguf", "--dequantize", "--output", "out", "--tokenizer", "full"]),
            ["full", "tokenizer.json"],
        ),
        (
            export(&[
                "smollm.gguf",
                "--dequantize",
                "--output",
                "out",
                "--tokenizer",
                common::tokenizer().to_str().unwrap(),
            ]),
            ["tokens differ", "--tokenizer"],
        ),
    ] {
        assert!(parts.iter().all(|part| said.contains(part)), "{parts:?} are not in: {said}");
    }
    assert!(!bench.path("out").exists());
    // The way out, both ways; what the folder does not say comes from the file.
    bench.expect(&["export", "smollm.gguf", "--dequantize", "--output", "made"], 0);
    bench.write("beside/tokenizer.json", bench.read("made/tokenizer.json"));
    bench.write("beside/other.gguf", &bytes);
    bench.expect(&["export", "beside/other.gguf", "--dequantize", "--output", "one"], 0);
    bench.expect(&["export", "other/other.gguf", "--dequantize", "--output", "two", "--tokenizer", "beside"], 0);
    for folder in ["one", "two"] {
        assert_eq!(common::model_files(&bench.path(folder)), common::model_files(&bench.path("made")), "{folder}");
    }
}

#[test]
fn a_fresh_student_takes_the_tokenizer_that_the_file_has() {
    let bench = bench();
    let config = config(&bench, "path = \"smollm.gguf\"", FRESH);
    bench.expect(&["train", "--config", config, "--stop-after", "2"], 75);
    bench.expect(&["train", "--config", config, "--resume"], 0);
    bench.expect(&["export", "smollm.gguf", "--dequantize", "--output", "out"], 0);
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        assert_eq!(bench.read(&format!("run/student/{name}")), bench.read(&format!("out/{name}")), "{name}");
    }
    // The saved config plans the same run, and the folder stands by itself.
    bench.expect(&["train", "--config", "run/config.toml", "--output", "again", "--dry-run"], 0);
    let tokenizer = TextTokenizer::from_dir(&bench.path("run/student")).unwrap();
    assert_eq!(tokenizer.encode("<|im_start|>12", false).unwrap().len(), 3);
    let shown = String::from_utf8(bench.expect(&["inspect", "smollm.gguf"], 0).stdout).unwrap();
    for part in ["566 tokens", "<|im_start|> (562), <|im_end|> (563)", "chat template   yes"] {
        assert!(shown.contains(part), "{part:?} is not in:\n{shown}");
    }
}

#[test]
fn a_given_tokenizer_is_compared_with_the_file_and_lent_to_the_student() {
    let bench = bench();
    bench.expect(&["export", "smollm.gguf", "--dequantize", "--output", "out"], 0);
    // Only tokenizer.json: the special tokens and the template are the file's.
    bench.write("given/tokenizer.json", bench.read("out/tokenizer.json"));
    let given = "path = \"smollm.gguf\"\ntokenizer = \"given\"";
    bench.expect(&["train", "--config", config(&bench, given, FRESH)], 0);
    assert_eq!(bench.read("run/student/tokenizer_config.json"), bench.read("out/tokenizer_config.json"));
    let refused = |teacher: &str, student: &str| {
        bench.refused(&["train", "--config", config(&bench, teacher, student), "--output", "other"])
    };
    let other = format!("path = \"smollm.gguf\"\ntokenizer = '{}'", common::tokenizer().display());
    for student in [FRESH, "kind = \"local\"\npath = \"out\""] {
        let said = refused(&other, student);
        assert!(said.contains("teacher.tokenizer") && said.contains("tokens differ"), "{said}");
    }
    let said = refused("path = \"smollm.gguf\"", "kind = \"pruned\"\nlayers = [0]");
    assert!(said.contains("student.from") && said.contains("distill export"), "{said}");
    let said = refused("path = \"smollm.gguf\"", "kind = \"local\"\npath = \"smollm.gguf\"");
    assert!(said.contains("student.path") && said.contains("distill export"), "{said}");
    let text = String::from_utf8(bench.read("run.toml")).unwrap().replace("\"gguf\"", "\"local\"");
    bench.write("local.toml", text.replace("path = \"smollm.gguf\"", "path = \"out\"\ntokenizer = \"given\""));
    let said = bench.refused(&["train", "--config", "local.toml"]);
    assert!(said.contains("teacher.tokenizer") && said.contains("kind = \"gguf\" alone"), "{said}");
}

#[test]
fn an_exported_folder_is_a_student_of_its_own_file() {
    let bench = bench();
    bench.expect(&["export", "llama-bpe.gguf", "--dequantize", "--output", "out"], 0);
    let config = config(&bench, "path = \"llama-bpe.gguf\"", "kind = \"pruned\"\nfrom = \"out\"\nlayers = [0]");
    bench.expect(&[&["train", "--config", config][..], &CPU].concat(), 0);
    let kl = bench.json("run/summary.json")["initial_eval"]["kl_mean"].as_f64().unwrap();
    assert!(kl.abs() < 1e-9, "{kl}");
}
