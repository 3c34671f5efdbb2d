//! A user's folder: a tiny corpus, tiny model shapes, a config, and the binary that runs on them.
#![allow(dead_code)] // each test file uses its own part

pub mod golden_step;
pub mod runs;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub struct Bench {
    pub dir: tempfile::TempDir,
    pub threads: usize,
    /// Whether all commands run there, whatever GPU there is.
    pub on_cpu: bool,
}

/// A tokenizer of 400 tokens with special tokens; see tests/goldens/README.md.
pub fn tokenizer() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/chat")
}

pub fn model_config(layers: usize, width: usize) -> String {
    format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": {width}, "intermediate_size": 48,
        "num_hidden_layers": {layers}, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 400,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "bos_token_id": 3, "eos_token_id": 1, "initializer_range": 0.1, "torch_dtype": "float32"}}"#
    )
}

pub const WORDS: [&str; 8] = ["red", "a green", "blue and", "the old", "stone", "river runs", "sky", "no"];

pub fn pair(i: usize) -> String {
    let word = |n: usize| WORDS[(i * 7 + n * 3 + i / 5) % WORDS.len()];
    format!("{{\"prompt\": \"{} {i}?\", \"response\": \"{} {} {}\"}}\n", word(0), word(1), word(2), word(i % 4))
}

impl Bench {
    /// A folder with train.jsonl (23 rows), held_out.jsonl (5 rows) and the shapes of a teacher and a student.
    pub fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap(), threads: 2, on_cpu: false };
        bench.write("train.jsonl", (0..23).map(pair).collect::<String>());
        bench.write("held_out.jsonl", (100..105).map(pair).collect::<String>());
        bench.write("teacher.json", model_config(2, 32));
        bench.write("student.json", model_config(1, 16));
        bench
    }

    /// The same with a trained teacher in teacher/student.
    pub fn with_teacher() -> Self {
        let bench = Self::new();
        let config = format!(
            "[student]\nkind = \"fresh\"\nconfig = \"teacher.json\"\ntokenizer = '{}'\n\
             [data]\ntrain = \"train.jsonl\"\nmax_length = 48\nchat_template = \"none\"\n\
             [loss]\nkind = \"cross_entropy\"\n[train]\nsteps = 20\nbatch_size = 8\nlearning_rate = 1e-2\n\
             [output]\ndir = \"teacher\"\n",
            tokenizer().display()
        );
        bench.write("teacher.toml", &config);
        bench.expect(&["train", "--config", "teacher.toml"], 0);
        bench
    }

    /// A run config that distils teacher/student into a fresh student; `more` is added to `[train]`.
    pub fn distil_config(&self, more: &str) -> &'static str {
        let config = format!(
            "[teacher]\nkind = \"local\"\npath = \"teacher/student\"\n[student]\nkind = \"fresh\"\nconfig = \"student.json\"\n\
             [data]\ntrain = \"train.jsonl\"\neval = \"held_out.jsonl\"\nmax_length = 48\nchat_template = \"none\"\n\
             [eval]\nevery_steps = 4\n[checkpoint]\nevery_steps = 3\n[output]\ndir = \"run\"\n\
             [train]\nbatch_size = 4\nmicro_batch_size = 3\nlearning_rate = 5e-3\n{more}\n"
        );
        self.write("run.toml", &config);
        "run.toml"
    }

    /// The teacher of [`Self::with_teacher`] as teacher.gguf, in f32, written by candle; llama files keep the rows of queries
    /// and keys for an interleaved rotation.
    pub fn gguf_teacher(&self) -> &'static str {
        use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
        let weights = self.path("teacher/student/model.safetensors");
        let weights = candle_core::safetensors::load(weights, &candle_core::Device::Cpu).unwrap();
        let number = |key: &str, n: u32| (format!("llama.{key}"), gguf_file::Value::U32(n));
        let float = |key: &str, x: f32| (format!("llama.{key}"), gguf_file::Value::F32(x));
        let vocabulary = std::fs::read(tokenizer().join("tokenizer.json")).unwrap();
        let vocabulary = tokenizers::Tokenizer::from_bytes(vocabulary).unwrap();
        let token = |id| gguf_file::Value::String(vocabulary.id_to_token(id).unwrap_or_else(|| format!("[PAD{id}]")));
        let metadata = [
            ("general.architecture".to_owned(), gguf_file::Value::String("llama".into())),
            ("tokenizer.ggml.tokens".to_owned(), gguf_file::Value::Array((0..400).map(token).collect())),
            number("block_count", 2),
            number("context_length", 128),
            number("embedding_length", 32),
            number("feed_forward_length", 48),
            number("attention.head_count", 4),
            number("attention.head_count_kv", 2),
            float("rope.freq_base", 10000.0),
            float("attention.layer_norm_rms_epsilon", 1e-5),
        ];
        let tensors: Vec<(String, QTensor)> = weights
            .iter()
            .map(|(name, tensor)| {
                let rotated = name.contains(".q_proj.") || name.contains(".k_proj.");
                let (rows, columns) = (tensor.dims()[0], tensor.dims().get(1).copied().unwrap_or(1));
                let stored = match rotated {
                    true => tensor.reshape((rows / 8, 2, 4, columns)).unwrap().transpose(1, 2).unwrap(),
                    false => tensor.clone(),
                };
                let stored = stored.contiguous().unwrap().reshape(tensor.shape()).unwrap();
                (distill::model::gguf::gguf_name(name).unwrap(), QTensor::quantize(&stored, GgmlDType::F32).unwrap())
            })
            .collect();
        let mut file = std::fs::File::create(self.path("teacher.gguf")).unwrap();
        let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        gguf_file::write(&mut file, &metadata, &tensors).unwrap();
        "teacher.gguf"
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        let path = self.path(name);
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    pub fn json(&self, name: &str) -> serde_json::Value {
        serde_json::from_slice(&self.read(name)).unwrap()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_distill"));
        let cpu = ["--device", "cpu"];
        let takes_device = ["train", "eval", "cache", "init"].iter().any(|name| args.first() == Some(name));
        command.args(args).args(if self.on_cpu && takes_device { &cpu[..] } else { &[] });
        command.current_dir(self.dir.path()).env("RAYON_NUM_THREADS", self.threads.to_string());
        command
    }

    /// Runs the binary in the folder and insists on its exit code.
    pub fn expect(&self, args: &[&str], code: i32) -> Output {
        let output = self.command(args).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "distill {args:?}\n{}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Runs a command that must be refused with exit 2 and returns what it said.
    pub fn refused(&self, args: &[&str]) -> String {
        let output = self.expect(args, 2);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!text.contains("panicked"), "{text}");
        text
    }

    /// metrics.jsonl without the fields that hold times.
    pub fn timeless_metrics(&self, run: &str) -> Vec<serde_json::Value> {
        let text = String::from_utf8(self.read(&format!("{run}/metrics.jsonl"))).unwrap();
        let timeless = |line: &str| {
            let mut event: serde_json::Value = serde_json::from_str(line).unwrap();
            let fields = event.as_object_mut().unwrap();
            fields.retain(|name, _| !name.contains("second"));
            if let Some(rollout) = fields.get_mut("rollout").and_then(|rollout| rollout.as_object_mut()) {
                rollout.retain(|name, _| name == "rows" || name == "tokens");
            }
            event
        };
        text.lines().map(timeless).filter(|e| e["event"] != "checkpoint" && e["event"] != "warning").collect()
    }
}

/// [`files`] without what says where the model comes from: models that are the same, made in two ways.
pub fn model_files(folder: &Path) -> Files {
    files(folder).into_iter().filter(|(name, _)| name != "provenance.json").collect()
}

pub type Files = std::collections::BTreeMap<String, Vec<u8>>;

/// Every file of a folder by name, but times.json and the manifest that has its digest. The number of threads, which
/// may change where it changes no bit, is left out of state.json.
pub fn files(folder: &Path) -> Files {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .filter(|(name, _)| name != "times.json" && name != "manifest.json")
        .map(|(name, content)| match name == "state.json" {
            true => (name, without_threads(&content)),
            false => (name, content),
        })
        .collect()
}

fn without_threads(state: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(state).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("  \"threads\"")).collect();
    assert_eq!(lines.len() + 1, text.lines().count(), "{text}");
    lines.concat().into_bytes()
}
