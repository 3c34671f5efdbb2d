//! Wrong input gives one clear message and exit 2, and touches nothing.

mod common;

use common::Bench;

const TRAIN: [&str; 3] = ["train", "--config", "run.toml"];

fn ready() -> Bench {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 2");
    bench
}

/// The message of a run refused after `spoil`; the run's folder must not appear.
fn refused_after(spoil: impl Fn(&Bench)) -> String {
    let bench = ready();
    spoil(&bench);
    let said = bench.refused(&TRAIN);
    assert!(!bench.path("run").exists(), "a refused run left a folder");
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    said
}

fn edit(bench: &Bench, from: &str, to: &str) {
    let text = String::from_utf8(bench.read("run.toml")).unwrap();
    assert!(text.contains(from));
    bench.write("run.toml", text.replace(from, to));
}

fn has(said: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(said.contains(part), "{part:?} is not in: {said}"));
}

#[test]
fn config_faults_are_listed_all_at_once_with_their_lines() {
    let said = refused_after(|b| {
        edit(b, "learning_rate = 5e-3", "learning_rat = 5e-3\nwarmup_steps = \"two\"\nbeta1 = 1.5");
        edit(b, "max_length = 48", "max_length = 1");
    });
    has(&said, &["run.toml:", "learning_rat", "learning_rate", "warmup_steps", "two", "beta1", "1.5", "max_length"]);
}

#[test]
fn kinds_of_later_versions_are_refused_not_ignored() {
    has(&refused_after(|b| edit(b, "kind = \"local\"", "kind = \"api\"")), &["api", "not available"]);
    // No machine has so many.
    has(&ready().refused(&["train", "--config", "run.toml", "--device", "cuda:99"]), &["cuda:99", "--device cpu"]);
}

#[test]
fn missing_files_are_named_together() {
    let said = refused_after(|b| {
        edit(b, "teacher/student", "no/such/teacher");
        edit(b, "\"train.jsonl\"", "\"no_train.jsonl\"");
        edit(b, "\"held_out.jsonl\"", "\"no_held_out.jsonl\"");
    });
    has(&said, &["teacher.path", "no/such/teacher", "data.train", "no_train.jsonl", "data.eval", "no_held_out.jsonl"]);
}

#[test]
fn malformed_rows_are_named_by_file_and_line() {
    let said = refused_after(|b| {
        let good = common::pair(1);
        let rows = format!("{good}{{\"prompt\": \"a\"\n{good}[1]\n{{\"prompt\": 3, \"response\": \"b\"}}\n");
        drop(b.write("train.jsonl", rows));
    });
    has(&said, &["train.jsonl:2:", "train.jsonl:4:", "train.jsonl:5:", "on_bad_record = \"skip\""]);
}

#[test]
fn bad_rows_can_be_skipped_and_are_counted() {
    let bench = ready();
    let rows: String = (0..9).map(common::pair).collect();
    bench.write("train.jsonl", format!("{rows}not json\n"));
    edit(&bench, "max_length = 48", "max_length = 48\non_bad_record = \"skip\"");
    bench.expect(&TRAIN, 0);
    assert_eq!(bench.json("run/summary.json")["rows_rejected"], 1);
    let rejected = bench.json("run/rejected.jsonl");
    assert_eq!(rejected["line"], 10);
    assert!(rejected["reason"].as_str().unwrap().contains("malformed JSON"), "{rejected}");
}

#[test]
fn corpora_without_a_target_are_refused() {
    has(&refused_after(|b| drop(b.write("train.jsonl", ""))), &["data.train", "holds no rows"]);
    has(&refused_after(|b| edit(b, "max_length = 48", "max_length = 2")), &["max_length"]);
    let said = refused_after(|b| drop(b.write("held_out.jsonl", "{\"text\": \"\"}\n")));
    has(&said, &["data.eval"]);
}

#[test]
fn damaged_weights_are_named() {
    let weights = "teacher/student/model.safetensors";
    let cut = |keep: fn(usize) -> usize| {
        refused_after(|b| {
            let whole = b.read(weights);
            drop(b.write(weights, &whole[..keep(whole.len())]));
        })
    };
    has(&cut(|n| n - 100), &["model.safetensors"]);
    has(&cut(|_| 20), &["model.safetensors"]);
    has(&cut(|_| 0), &["model.safetensors"]);
    let bench = ready();
    let whole = bench.read(weights);
    bench.write(weights, &whole[..whole.len() - 100]);
    let (has_bytes, needs) = (whole.len() - 100, whole.len());
    let size = format!("it has {has_bytes} of the {needs} bytes that its header speaks of");
    has(
        &bench.refused(&["inspect", "teacher/student"]),
        &["model.safetensors is not a whole", &size, "fetch it again"],
    );
    let said = refused_after(|b| {
        let config = String::from_utf8(b.read("teacher/student/config.json")).unwrap();
        drop(b.write(
            "teacher/student/config.json",
            config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
        ));
    });
    has(&said, &["missing", "model.layers.2."]);
}

#[test]
fn pointers_instead_of_files_are_told_with_the_command_that_fetches_them() {
    let pointer = "version https://git-lfs.example/spec/v1\noid sha256:4d7a\nsize 4711\n";
    for name in ["model.safetensors", "tokenizer.json", "config.json"] {
        let said = refused_after(|b| drop(b.write(&format!("teacher/student/{name}"), pointer)));
        has(
            &said,
            &["is a Git LFS pointer and not the file itself, of 4711 bytes: fetch that: git -C ", "lfs pull", name],
        );
    }
    let said = refused_after(|b| {
        b.write("teacher.gguf", pointer);
        edit(b, "path = \"teacher/student\"", "path = \"teacher.gguf\"\ntokenizer = \"teacher/student\"");
        edit(b, "kind = \"local\"", "kind = \"gguf\"");
    });
    has(&said, &["teacher.gguf is a Git LFS pointer", "lfs pull --include teacher.gguf"]);
    let said = refused_after(|b| drop(b.write("train.jsonl", pointer)));
    has(&said, &["train.jsonl is a Git LFS pointer", "lfs pull --include train.jsonl"]);
}

#[test]
fn weights_that_are_not_finite_are_named_by_tensor_and_place() {
    let spoil = |b: &Bench| {
        let file = b.path("teacher/student/model.safetensors");
        let mut weights = candle_core::safetensors::load(&file, &candle_core::Device::Cpu).unwrap();
        let name = "model.layers.1.mlp.down_proj.weight";
        let shape = weights[name].dims().to_vec();
        let mut values: Vec<f32> = weights[name].flatten_all().unwrap().to_vec1().unwrap();
        values[3 * shape[1] + 2] = f32::NAN;
        let spoilt = candle_core::Tensor::from_vec(values, shape, &candle_core::Device::Cpu).unwrap();
        weights.insert(name.into(), spoilt);
        candle_core::safetensors::save(&weights, &file).unwrap();
    };
    const WHAT: &str = "model.safetensors: tensor model.layers.1.mlp.down_proj.weight holds NaN or infinity at [3, 2]";
    has(&refused_after(spoil), &[WHAT]);
    // Held in bf16, and as the student.
    let in_bf16 = |b: &Bench| {
        spoil(b);
        edit(b, "path = \"teacher/student\"", "path = \"teacher/student\"\ndtype = \"bf16\"");
    };
    has(&refused_after(in_bf16), &[WHAT]);
    let as_student = |b: &Bench| {
        spoil(b);
        let text = String::from_utf8(b.read("run.toml")).unwrap();
        let (_, rest) = text.split_once("[data]").unwrap();
        let student = "[student]\nkind = \"local\"\npath = \"teacher/student\"\n[loss]\nkind = \"cross_entropy\"\n";
        b.write("run.toml", format!("{student}[data]{rest}"));
    };
    has(&refused_after(as_student), &[WHAT]);
}

#[test]
fn a_teacher_whose_logits_overflow_is_named_by_the_row_and_nothing_is_learnt() {
    let bench = ready();
    edit(&bench, "eval = \"held_out.jsonl\"\n", "");
    edit(&bench, "steps = 2", "steps = 2\nbatch_size = 1");
    edit(&bench, "\nbatch_size = 4\nmicro_batch_size = 3", "");
    edit(&bench, "max_length = 48", "max_length = 48\nshuffle = false");
    let file = bench.path("teacher/student/model.safetensors");
    let mut weights = candle_core::safetensors::load(&file, &candle_core::Device::Cpu).unwrap();
    let norm = &weights["model.norm.weight"];
    let huge = candle_core::Tensor::full(3e38f32, norm.dims(), norm.device()).unwrap();
    weights.insert("model.norm.weight".into(), huge);
    candle_core::safetensors::save(&weights, &file).unwrap();
    let output = bench.expect(&TRAIN, 1);
    let said = String::from_utf8_lossy(&output.stderr);
    has(&said, &["train.jsonl:1: the teacher's logits for target 0 of the batch are not finite", "dtype may overflow"]);
    assert_eq!(bench.json("run/summary.json")["steps"], 0);
    assert!(!bench.path("run/student").exists());
}

#[test]
fn unsupported_architectures_are_refused_with_those_supported() {
    let said = refused_after(|b| {
        drop(b.write("student.json", common::model_config(1, 16).replace("\"llama\"", "\"mamba\"")));
    });
    has(&said, &["mamba", "llama, mistral, qwen2, qwen3"]);
}

#[test]
fn another_tokenizer_of_the_same_size_is_refused() {
    let said = refused_after(|b| {
        // Two tokens change places: the same size, other meanings.
        let mut tokenizer = b.json("teacher/student/tokenizer.json");
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        let (x, y) = (vocab["a"].clone(), vocab["b"].clone());
        vocab.insert("a".into(), y);
        vocab.insert("b".into(), x);
        drop(b.write("teacher/student/tokenizer.json", tokenizer.to_string()));
        let own = format!("config = \"student.json\"\ntokenizer = '{}'", common::tokenizer().display());
        edit(b, "config = \"student.json\"", &own);
    });
    has(&said, &["different tokenizers"]);
}

#[test]
fn a_loss_that_is_not_finite_names_the_step_and_leaves_the_checkpoint() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 50\nmax_grad_norm = 1e30");
    let output = bench.expect(&["train", "--config", "run.toml", "--set", "train.learning_rate=1e30"], 1);
    has(&String::from_utf8_lossy(&output.stderr), &["step ", "learning_rate"]);
    assert_eq!(bench.json("run/summary.json")["status"], "failed");
}
