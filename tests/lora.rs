//! A frozen student with low-rank adapters: against PyTorch (tests/goldens/README.md, `lora`), and as runs of the binary.

mod common;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use common::golden_step::{Expected, close, goldens, json, stepper, steps, teacher, values};
use common::{Bench, files};
use distill::checkpoint::Dtype;
use distill::config::plan::Plan;
use distill::corpus::{Batch, TextTokenizer};
use distill::kernels::Precision;
use distill::metrics::Screen;
use distill::model::{Adaptation, Decoder, ModelConfig, load_weights};
use distill::student::{Companions, fresh_adapters, write_model};
use distill::train::{Decay, Schedule};
use serde::Deserialize;

/// What the golden student is adapted by.
#[derive(Deserialize)]
struct Adapted {
    rank: usize,
    alpha: f64,
}

fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect()
}

fn batches() -> Vec<Vec<Batch>> {
    steps().iter().map(|rows| vec![Batch::new(rows)]).collect()
}

/// The golden student; None: with adapters that are new.
fn student(device: &Device, adapters: Option<BTreeMap<String, Tensor>>) -> Decoder {
    let e: Adapted = json("lora/expected.json");
    let folder = goldens("step/student_qwen2");
    let config = ModelConfig::read(&folder).unwrap();
    let weights = load_weights(&folder, &config).unwrap();
    let adaptation = Adaptation { rank: e.rank, alpha: e.alpha, targets: None };
    let adapters = adapters.unwrap_or_else(|| fresh_adapters(&config, &adaptation, 1).unwrap());
    Decoder::adapted(config, weights, &adaptation, adapters, device).unwrap()
}

fn golden_student(device: &Device) -> Decoder {
    student(device, Some(tensors(&goldens("lora/adapters.safetensors"))))
}

fn gradients(student: &Decoder) -> HashMap<String, Vec<f32>> {
    student.parameters().trainable().map(|p| (p.name.clone(), values(p.grad.as_ref().unwrap().tensor()))).collect()
}

/// What the model says of the first step's targets.
fn logits(model: &Decoder) -> Vec<f32> {
    values(&model.logits(&model.hidden(&batches()[0][0]).unwrap()).unwrap())
}

distill::on_every_device! {
fn the_gradients_of_the_factors_and_ten_steps_equal_pytorch(device) {
    let (teacher, student) = (teacher(device), golden_student(device));
    let e: Expected = json("lora/expected.json");
    let want = tensors(&goldens("lora/expected.safetensors"));
    let before: Vec<Vec<f32>> = student.parameters().iter().map(|p| values(p.tensor().unwrap())).collect();
    let mut stepper = stepper(&teacher, &student, &e);
    let report = stepper.accumulate(&batches()[0]).unwrap();
    close(report.loss, e.loss[0], 1e-6, "loss");
    let got = gradients(&student);
    assert_eq!(got.len(), want.len());
    for (name, want) in want {
        let want = values(&want);
        let largest = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        for (got, want) in got[&name].iter().zip(&want) {
            assert!((got - want).abs() <= 1e-5 * largest, "{name}: {got} instead of {want}");
        }
    }
    let (learning_rate, warmup_steps) = (e.peak_learning_rate, e.warmup_steps);
    let schedule = Schedule { learning_rate, decay: Decay::Linear, warmup_steps, total_steps: 10 };
    for (i, step) in batches().iter().enumerate() {
        let report = stepper.step(step, i as u64, schedule.at(i as u64)).unwrap();
        close(report.loss, e.loss[i], 2e-6, &format!("loss of step {i}"));
        close(report.grad_norm, e.grad_norm[i], 1e-5, &format!("gradient norm of step {i}"));
    }
    let after: Vec<Vec<f32>> = student.parameters().iter().map(|p| values(p.tensor().unwrap())).collect();
    assert!(before == after, "a frozen weight moved");
}

fn new_adapters_change_nothing_and_after_two_steps_all_of_them_learn(device) {
    let (teacher, student) = (teacher(device), student(device, None));
    let base = Decoder::load(&goldens("step/student_qwen2"), false, device).unwrap();
    assert_eq!(logits(&student), logits(&base));
    let e: Expected = json("lora/expected.json");
    let mut stepper = stepper(&teacher, &student, &e);
    for (i, step) in batches().iter().take(2).enumerate() {
        stepper.step(step, i as u64, 1e-3).unwrap();
        // B is 0 at first, so A hears of nothing yet.
        for (name, gradient) in gradients(&student) {
            let learns = gradient.iter().any(|&g| g != 0.0);
            assert_eq!(learns, i == 1 || name.contains("lora_B"), "{name} at step {i}");
        }
    }
}

fn in_bf16_the_gradient_of_the_factors_is_within_three_percent(device) {
    let (teacher, student) = (teacher(device), golden_student(device));
    let e: Expected = json("lora/expected.json");
    let mut stepper = stepper(&teacher, &student, &e);
    stepper.precision = Precision::Bf16;
    let report = stepper.accumulate(&batches()[0]).unwrap();
    close(report.loss, e.loss[0], 1e-3, "loss");
    let got = gradients(&student);
    let (mut off, mut all) = (0.0f64, 0.0f64);
    for (name, want) in tensors(&goldens("lora/expected.safetensors")) {
        for (g, w) in got[&name].iter().zip(values(&want)) {
            (off, all) = (off + ((g - w) as f64).powi(2), all + (w as f64).powi(2));
        }
    }
    assert!(off.sqrt() <= 0.03 * all.sqrt(), "the gradient is off by {}", (off / all).sqrt());
}

fn the_merged_folder_says_what_the_adapted_model_says(device) {
    let student = golden_student(device);
    let dir = tempfile::tempdir().unwrap();
    let companions = Companions::of(&TextTokenizer::from_dir(&common::tokenizer()).unwrap()).unwrap();
    write_model(dir.path(), &student, &companions, Dtype::F32).unwrap().sync().unwrap();
    let merged = Decoder::load(dir.path(), false, device).unwrap();
    let base = Decoder::load(&goldens("step/student_qwen2"), false, device).unwrap();
    let worst = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let adapted = logits(&student);
    assert!(worst(&adapted, &logits(&merged)) < 2e-5, "{}", worst(&adapted, &logits(&merged)));
    assert!(worst(&adapted, &logits(&base)) > 0.1, "the adapters of this test do nothing");
}
}

/// A run that adapts the shape of the teacher, trained a little, to the teacher.
fn bench(more: &str) -> Bench {
    let bench = Bench::with_teacher();
    let text = String::from_utf8(bench.read("teacher.toml")).unwrap();
    bench.write("base.toml", text.replace("steps = 20", "steps = 2").replace("dir = \"teacher\"", "dir = \"base\""));
    bench.expect(&["train", "--config", "base.toml"], 0);
    bench.distil_config(more);
    lora(&bench, "rank = 2");
    bench
}

fn lora(bench: &Bench, keys: &str) {
    let text = String::from_utf8(bench.read("run.toml")).unwrap();
    let (head, rest) = text.split_once("[student]\n").unwrap();
    let (_, tail) = rest.split_once("[data]").unwrap();
    let student = format!("[student]\nkind = \"lora\"\nfrom = \"base/student\"\n{keys}\n");
    bench.write("run.toml", format!("{head}{student}[data]{tail}"));
}

#[test]
fn a_run_that_was_stopped_and_resumed_equals_the_unbroken_one_byte_for_byte() {
    for more in ["epochs = 2\nweight_decay = 0.1", "epochs = 2\ndtype = \"bf16\"\ncheckpoint_activations = true"] {
        let bench = bench(more);
        let resume = ["train", "--config", "run.toml", "--resume", "--output", "broken"];
        bench.expect(&["train", "--config", "run.toml", "--output", "whole"], 0);
        for stop in ["1", "4", "7"] {
            bench.expect(&[&resume[..], &["--stop-after", stop]].concat(), 75);
        }
        bench.expect(&resume, 0);
        let last = "checkpoints/step-00000012";
        let (whole, broken) = (files(&bench.path("whole").join(last)), files(&bench.path("broken").join(last)));
        assert!(whole.contains_key("adapters.safetensors"));
        assert_eq!(whole, broken, "the last checkpoints differ");
        assert_eq!(files(&bench.path("whole/student")), files(&bench.path("broken/student")));
        assert_eq!(bench.timeless_metrics("whole"), bench.timeless_metrics("broken"));
        let kl = |of: &str| bench.json("whole/summary.json")[of]["kl_mean"].as_f64().unwrap();
        assert!(kl("final_eval") < kl("initial_eval"), "nothing was learned");
    }
}

#[test]
fn checkpoints_hold_the_adapters_and_the_merged_model_and_an_optimizer_of_the_adapters_alone() {
    let bench = bench("steps = 3");
    bench.expect(&["train", "--config", "run.toml"], 0);
    let full = ["--set", "student.path=base/student", "--output", "full"];
    let text = String::from_utf8(bench.read("run.toml")).unwrap();
    bench.write(
        "full.toml",
        text.replace("kind = \"lora\"", "kind = \"local\"").replace("rank = 2\n", "").replace("from", "path"),
    );
    bench.expect(&[&["train", "--config", "full.toml"][..], &full].concat(), 0);
    let size = |run: &str, name: &str| bench.read(&format!("{run}/checkpoints/step-00000003/{name}")).len();
    assert!(size("run", "optimizer.safetensors") * 4 <= size("full", "optimizer.safetensors"));
    assert!(size("run", "adapters.safetensors") * 4 <= size("run", "model.safetensors"));
    assert_eq!(size("run", "model.safetensors"), size("full", "model.safetensors"));
    // The plan knew it: what it says of the disk is right but for the headers.
    let config = distill::config::load(&bench.path("run.toml"), &[], None).unwrap();
    let devices = config.devices(distill::device::DeviceChoice::Cpu).unwrap();
    let memory = Plan::new(config, devices, &Screen::plain(std::io::sink())).unwrap().memory;
    let tensors_of = |names: &[&str]| -> usize {
        let header = |bytes: &[u8]| 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let read = names.iter().map(|name| bench.read(&format!("run/checkpoints/step-00000003/{name}.safetensors")));
        read.map(|bytes| bytes.len() - header(&bytes)).sum()
    };
    assert_eq!(memory.optimizer, tensors_of(&["optimizer"]) as u64);
    assert_eq!(4 * memory.trainable, tensors_of(&["adapters"]) as u64);
    assert_eq!(memory.checkpoint, tensors_of(&["model", "adapters", "optimizer"]) as u64);
    let checkpoint = "run/checkpoints/step-00000003";
    let adapters = tensors(&bench.path(checkpoint).join("adapters.safetensors"));
    assert_eq!(adapters.len(), 2 * 2 * 7);
    assert_eq!(adapters["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"].dims(), [2, 48]);
    // The merged model is W + 16 B A: alpha is 32.
    let (base, merged) =
        (bench.path("base/student/model.safetensors"), bench.path(checkpoint).join("model.safetensors"));
    let (base, merged) = (tensors(&base), tensors(&merged));
    let name = "model.layers.0.self_attn.v_proj";
    let factor = |letter| &adapters[&format!("base_model.model.{name}.lora_{letter}.weight")];
    let delta = (factor("B").matmul(factor("A")).unwrap() * 16.0).unwrap();
    let (name, mut moved) = (format!("{name}.weight"), 0.0f32);
    let want = values(&(&base[&name] + &delta).unwrap());
    for ((got, want), delta) in values(&merged[&name]).iter().zip(want).zip(values(&delta)) {
        assert!((got - want).abs() < 1e-6);
        moved = moved.max(delta.abs());
    }
    assert!(moved > 1e-4, "the adapter did not move");
    for frozen in ["model.embed_tokens.weight", "model.norm.weight"] {
        assert_eq!(values(&merged[frozen]), values(&base[frozen]));
    }
    assert_eq!(bench.read("run/student/model.safetensors"), bench.read(&format!("{checkpoint}/model.safetensors")));
    let shown = String::from_utf8(bench.expect(&["inspect", checkpoint], 0).stdout).unwrap();
    assert!(shown.contains("adapters.safetensors") && shown.contains("parameters"), "{shown}");
    bench.expect(&["inspect", "run"], 0);
    let plan = String::from_utf8(bench.expect(&["train", "--config", "run.toml", "--dry-run"], 0).stdout).unwrap();
    assert!(plan.contains("adapters   rank 2, alpha 32 on every matrix of the blocks"), "{plan}");
}

#[test]
fn a_base_that_changed_is_noticed_on_resume() {
    let bench = bench("steps = 5");
    bench.expect(&["train", "--config", "run.toml", "--stop-after", "2"], 75);
    let mut weights = bench.read("base/student/model.safetensors");
    let last = weights.len() - 3;
    weights[last] ^= 1;
    bench.write("base/student/model.safetensors", weights);
    let said = bench.refused(&["train", "--config", "run.toml", "--resume"]);
    assert!(said.contains("the model that student.from adapts changed"), "{said}");
}

#[test]
fn unknown_targets_and_ranks_without_room_are_refused_before_anything_is_loaded() {
    let bench = bench("steps = 5");
    let run = |set: &str| bench.refused(&["train", "--config", "run.toml", "--set", set]);
    let said = run("student.targets=[\"q_proj\", \"query\"]");
    assert!(said.contains("\"query\"") && said.contains("down_proj, gate_proj, k_proj, o_proj"), "{said}");
    let said = run("student.rank=40");
    assert!(said.contains("student.rank = 40, but"), "{said}");
    bench.expect(&["train", "--config", "run.toml", "--set", "student.targets=[\"q_proj\"]"], 0);
    let adapters = tensors(&bench.path("run/checkpoints/step-00000005/adapters.safetensors"));
    assert_eq!(adapters.len(), 4);
}
