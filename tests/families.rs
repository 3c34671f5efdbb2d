//! What every family has to do beyond its logits: be saved, be cut, be trained from nothing, and know its limits.

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use common::{Bench, tokenizer};
use distill::checkpoint::Dtype;
use distill::corpus::{Batch, Row, RowRef, TextTokenizer};
use distill::kernels::Precision;
use distill::model::{Decoder, KvCache, ModelConfig};
use distill::student::{Companions, pruned, pruned_folder, write_model};

const CPU: Device = Device::Cpu;

fn variants() -> Vec<PathBuf> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/models");
    let mut folders: Vec<_> = std::fs::read_dir(models).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders
}

fn variant(name: &str) -> PathBuf {
    variants().into_iter().find(|folder| folder.ends_with(name)).unwrap()
}

fn save(model: &Decoder) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let companions = Companions::of(&TextTokenizer::from_dir(&tokenizer()).unwrap()).unwrap();
    write_model(dir.path(), model, &companions, Dtype::F32).unwrap().sync().unwrap();
    dir
}

fn tensors(file: PathBuf) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(file, &CPU).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// A row of `n` tokens, all but the first its targets.
fn row(n: usize) -> Batch {
    let source = RowRef { digest: [0; 32], file: Arc::new("test.jsonl".into()), line: 1 };
    let tokens = (0..n as u32).map(|i| i * 7 % 97).collect();
    Batch::new(&[Row { tokens, targets: (0..n).map(|i| i > 0).collect(), source }])
}

#[test]
fn a_saved_folder_holds_the_tensors_that_transformers_wrote() {
    for folder in variants().iter().filter(|folder| folder.join("model.safetensors").is_file()) {
        for packed in [false, true] {
            let model = match packed {
                false => Decoder::load(folder, true, &CPU).unwrap(),
                true => Decoder::load_frozen(folder, Precision::F32, &CPU).unwrap(),
            };
            let saved = tensors(save(&model).path().join("model.safetensors"));
            let bare = folder.ends_with("gpt2_bare");
            let mut count = 0;
            for (name, want) in tensors(folder.join("model.safetensors")) {
                if name.ends_with(".attn.bias") {
                    continue;
                }
                let name = if bare { format!("transformer.{name}") } else { name };
                let want = want.to_dtype(candle_core::DType::F32).unwrap();
                assert_eq!(saved[&name].dims(), want.dims(), "{}: {name}", folder.display());
                assert_eq!(values(&saved[&name]), values(&want), "{}: {name}", folder.display());
                count += 1;
            }
            assert_eq!(saved.len(), count, "{}", folder.display());
        }
    }
}

#[test]
fn a_cut_student_says_in_its_folder_what_its_layers_are() {
    for folder in variants() {
        let whole = Decoder::load(&folder, false, &CPU).unwrap();
        let count = whole.config().layers;
        for layers in [vec![count - 1], vec![0, count - 1], vec![count - 1, 0]] {
            let (config, weights) = pruned(&whole, &layers).unwrap();
            let (_, from_folder) = pruned_folder(&folder, &layers).unwrap();
            assert_eq!(weights.len(), from_folder.len());
            assert!(weights.iter().all(|(name, tensor)| values(tensor) == values(&from_folder[name])));
            let cut = Decoder::new(config, weights, true, &CPU).unwrap();
            let again = Decoder::load(save(&cut).path(), false, &CPU).unwrap();
            let name = folder.display();
            assert_eq!(again.config().windows, cut.config().windows, "{name}");
            assert_eq!(again.config().rotations, cut.config().rotations, "{name}");
            let [a, b] = [&cut, &again].map(|model| values(&model.hidden(&row(20)).unwrap()));
            assert_eq!(a, b, "{name} with {layers:?}");
        }
    }
}

#[test]
fn there_are_no_positions_beyond_those_that_were_learned() {
    let model = Decoder::load(&variant("gpt2"), true, &CPU).unwrap();
    assert!(model.hidden(&row(40)).is_ok());
    let said = model.hidden(&row(41)).unwrap_err().to_string();
    assert!(said.contains("at least 41 tokens") && said.contains("40 positions"), "{said}");
    let mut cache = KvCache::new(1);
    model.advance(&[(0, &[1; 40])], &mut cache, 0).unwrap();
    assert!(model.advance(&[(0, &[1])], &mut cache, 0).is_err());

    let bench = Bench::with_teacher();
    bench.write("student.json", shapes()[3].1.replace("128", "40"));
    let said = bench.refused(&["train", "--config", bench.distil_config("steps = 2")]);
    assert!(said.contains("data.max_length = 48") && said.contains("40 positions"), "{said}");
}

const SIZES: &str = r#""hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 400, "max_position_embeddings": 128, "initializer_range": 0.1,
    "bos_token_id": 3, "eos_token_id": 1"#;

/// A small config of each family.
fn shapes() -> [(&'static str, String); 4] {
    let gemma = r#""hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 8, "sliding_window": 6"#;
    [
        (
            "smollm3",
            format!(
                r#"{{"model_type": "smollm3", {SIZES}, "rope_theta": 1e4, "no_rope_layer_interval": 2,
 "pad_token_id": null}}"#
            ),
        ),
        (
            "gemma2",
            format!(
                r#"{{"model_type": "gemma2", {SIZES}, {gemma}, "rope_theta": 1e4, "attn_logit_softcapping": 5.0,
                "final_logit_softcapping": 10.0}}"#
            ),
        ),
        (
            "gemma3_text",
            format!(
                r#"{{"model_type": "gemma3_text", {SIZES}, {gemma}, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
                "sliding_window_pattern": 2}}"#
            ),
        ),
        (
            "gpt2",
            r#"{"model_type": "gpt2", "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 128, "vocab_size": 400,
            "initializer_range": 0.1, "bos_token_id": 3, "eos_token_id": 1}"#
                .into(),
        ),
    ]
}

#[test]
fn every_family_learns_from_nothing_is_cut_teaches_and_generates() {
    let bench = Bench::with_teacher();
    for (family, shape) in shapes() {
        bench.write("student.json", shape);
        for run in ["run", "cut"] {
            let _ = std::fs::remove_dir_all(bench.path(run));
        }
        let config = bench.distil_config("steps = 60");
        let missing = ModelConfig::read(&bench.path("student.json")).unwrap().without_gpu_kernel();
        let device = ["--device", if missing.is_some() { "cpu" } else { "auto" }];

        bench.expect(&[&["train", "--config", config][..], &device].concat(), 0);
        let summary = bench.json("run/summary.json");
        let kl = |which: &str| summary[which]["kl_mean"].as_f64().unwrap();
        assert!(kl("final_eval") < 0.8 * kl("initial_eval"), "{family}: {summary}");

        // Two of its layers learn from it again, in bf16, with activations computed again and rows packed.
        let cut = "[teacher]\nkind = \"local\"\npath = \"run/student\"\ndtype = \"bf16\"\n[student]\nkind = \"pruned\"\n\
                   layers = [0, 2]\n[data]\ntrain = \"train.jsonl\"\neval = \"held_out.jsonl\"\n\
                   max_length = 48\nchat_template = \"none\"\npacking = true\n[output]\ndir = \"cut\"\n[train]\nsteps = 40\n\
                   batch_size = 4\nlearning_rate = 5e-3\ndtype = \"bf16\"\ncheckpoint_activations = true\n";
        bench.write("cut.toml", cut);
        bench.expect(&[&["train", "--config", "cut.toml"][..], &device].concat(), 0);
        let summary = bench.json("cut/summary.json");
        let kl = |which: &str| summary[which]["kl_mean"].as_f64().unwrap();
        assert!(kl("final_eval") < kl("initial_eval"), "{family}: {summary}");

        let said = String::from_utf8(bench.expect(&["inspect", "cut/student"], 0).stdout).unwrap();
        assert!(said.contains(family) && said.contains("2 × 16 wide"), "{said}");
        let answer = ["generate", "--model", "cut/student", "--prompt", "red 3?", "--raw", "--max-tokens", "5"];
        bench.expect(&[&answer[..], &device].concat(), 0);
        assert_eq!(ModelConfig::read(&bench.path("cut/student")).unwrap().layers, 2);
    }
}
