//! Layers chosen by what leaving each one out costs, and students written without training.

mod common;

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use common::{Bench, files, model_config};
use distill::corpus::{Batch, Row, RowRef};
use distill::eval::{choose_layers, evaluate, work};
use distill::kernels::Precision;
use distill::model::{Decoder, ModelConfig};
use distill::student::{fresh_weights, pruned};
use distill::teacher::LocalTeacher;

/// Random rows, with targets from somewhere in the middle on.
fn batches(n: usize) -> Vec<Batch> {
    let source = RowRef { digest: [0; 32], file: Arc::new("rows".into()), line: 1 };
    let row = |i: usize| {
        let length = 3 + (i * 7) % 11;
        let tokens = (0..length).map(|t| ((i * 31 + t * t * 17 + t) % 400) as u32).collect();
        Row { tokens, targets: (0..length).map(|t| t > i % 3).collect(), source: source.clone() }
    };
    (0..n).map(|b| Batch::new(&[row(2 * b), row(2 * b + 1)])).collect()
}

fn model(layers: usize) -> (ModelConfig, distill::model::Weights) {
    let config = ModelConfig::from_json(&model_config(layers, 32)).unwrap();
    let weights = fresh_weights(&config, 3).unwrap();
    (config, weights)
}

distill::on_every_device! {
fn the_search_takes_the_layer_that_a_search_by_evaluation_takes_and_at_the_same_cost(device) {
    let (config, weights) = model(5);
    let batches = batches(9);
    let whole = Decoder::new(config.clone(), weights.clone(), false, &Device::Cpu).unwrap();
    let teacher = LocalTeacher::new(Arc::new(Decoder::new(config.clone(), weights.clone(), false, device).unwrap()), device).unwrap();
    let frozen = Decoder::frozen(config, weights, Precision::F32, device).unwrap();
    let mut advanced = 0;
    let found = choose_layers(&frozen, &batches, 2, |n| { advanced += n; true }).unwrap().unwrap();
    assert_eq!(advanced, work(5, 2, batches.len()));
    assert_eq!((found.rows, found.targets), (18, batches.iter().map(Batch::valid_tokens).sum()));
    let mut kept: Vec<usize> = (0..5).collect();
    for cut in &found.cuts {
        let cost = |i: usize| {
            let mut left = kept.clone();
            left.remove(i);
            let (config, weights) = pruned(&whole, &left).unwrap();
            let student = Decoder::new(config, weights, false, device).unwrap();
            evaluate(Some(&teacher), &student, batches.iter().map(|b| Ok(b.clone()))).unwrap().kl_mean.unwrap()
        };
        let costs: Vec<f64> = (0..kept.len()).map(cost).collect();
        let cheapest = (0..kept.len()).min_by(|&a, &b| costs[a].total_cmp(&costs[b])).unwrap();
        assert_eq!(cut.removed, kept[cheapest], "{costs:?}");
        assert!((cut.kl - costs[cheapest]).abs() < 1e-5 * costs[cheapest], "{} instead of {}", cut.kl, costs[cheapest]);
        kept.remove(cheapest);
        assert_eq!(cut.left, kept.len());
    }
    assert_eq!((found.layers, found.cuts.len()), (kept, 3));
}
}

#[test]
fn a_search_that_is_told_to_stop_gives_nothing_and_one_that_keeps_all_layers_costs_nothing() {
    let (config, weights) = model(3);
    let model = Decoder::frozen(config, weights, Precision::F32, &Device::Cpu).unwrap();
    let mut asked = 0;
    let stop = |_| {
        asked += 1;
        asked < 4
    };
    assert!(choose_layers(&model, &batches(2), 1, stop).unwrap().is_none());
    assert_eq!(asked, 4);
    let all = choose_layers(&model, &batches(2), 3, |_| true).unwrap().unwrap();
    assert_eq!((all.layers, all.cuts.len()), (vec![0, 1, 2], 0));
    let said = choose_layers(&model, &[], 1, |_| true).unwrap_err().to_string();
    assert!(said.contains("no target token"), "{said}");
}

/// A teacher of five layers and a run that cuts it.
fn bench(student: &str) -> Bench {
    let bench = Bench::new();
    bench.write("teacher.json", model_config(5, 32));
    let common = "[data]\ntrain = \"train.jsonl\"\neval = \"held_out.jsonl\"\nmax_length = 48\nchat_template = \"none\"\n\
         [eval]\nevery_steps = 4\n[checkpoint]\nevery_steps = 3\n[train]\nbatch_size = 4\nlearning_rate = 5e-3\n";
    let fresh = format!(
        "[student]\nkind = \"fresh\"\nconfig = \"teacher.json\"\ntokenizer = '{}'\n",
        common::tokenizer().display()
    );
    let hard = "[loss]\nkind = \"cross_entropy\"\n[output]\ndir = \"teacher\"\n";
    bench.write("teacher.toml", format!("{fresh}{common}steps = 20\n{hard}"));
    bench.expect(&["train", "--config", "teacher.toml"], 0);
    let head = format!("[teacher]\npath = \"teacher/student\"\n[student]\n{student}\n[output]\ndir = \"run\"\n");
    bench.write("run.toml", format!("{head}{common}steps = 7\n"));
    bench
}

const AUTO: &str = "kind = \"pruned\"\nlayers = \"auto\"\ncount = 2\nrows = 9";

#[test]
fn a_run_chooses_once_records_what_it_chose_and_resumes_with_that() {
    let bench = bench(AUTO);
    let plan = String::from_utf8(bench.expect(&["train", "--config", "run.toml", "--dry-run"], 0).stdout).unwrap();
    assert!(plan.contains("2 layers of") && plan.contains("saving and the search for layers not counted"), "{plan}");
    assert!(!bench.path("run").exists());
    bench.expect(&["inspect", "run.toml"], 0);
    let first = bench.expect(&["train", "--config", "run.toml", "--output", "whole"], 0);
    let record = bench.json("whole/layers.json");
    assert_eq!((record["rows"].as_u64(), record["cuts"].as_array().unwrap().len()), (Some(9), 3));
    let list = record["layers"].to_string().replace(',', ", ");
    let config = String::from_utf8(bench.read("whole/config.toml")).unwrap();
    assert!(config.contains(&format!("layers = {list}")) && !config.contains("count"), "{config}");
    let said = String::from_utf8(first.stderr).unwrap();
    assert!(said.contains(&format!("student.layers = {list}")), "{said}");
    let resume = ["train", "--config", "run.toml", "--resume", "--output", "broken"];
    bench.expect(&[&resume[..], &["--stop-after", "5"]].concat(), 75);
    let second = String::from_utf8(bench.expect(&resume, 0).stderr).unwrap();
    assert!(!second.contains("chosen by the KL"), "{second}");
    let last = "checkpoints/step-00000007";
    assert_eq!(files(&bench.path("whole").join(last)), files(&bench.path("broken").join(last)));
    assert_eq!(files(&bench.path("whole/student")), files(&bench.path("broken/student")));
    assert_eq!(bench.timeless_metrics("whole"), bench.timeless_metrics("broken"));
    // The same list, written out, is the same run.
    let set = format!("student.layers={}", record["layers"]);
    let text = String::from_utf8(bench.read("run.toml")).unwrap().replace("count = 2\nrows = 9", "");
    bench.write("listed.toml", text);
    bench.expect(&["train", "--config", "listed.toml", "--set", &set, "--output", "listed"], 0);
    assert_eq!(files(&bench.path("whole/student")), files(&bench.path("listed/student")));
    // Another number of layers is another run.
    let said = bench.refused(&[&resume[..], &["--set", "student.count=3"]].concat());
    assert!(said.contains("student.count: absent in the run, now 3"), "{said}");
    let said = bench.refused(&["train", "--config", "run.toml", "--set", "student.count=6"]);
    assert!(said.contains("student.count = 6, but the model it is cut from has 5 layers"), "{said}");
}

#[test]
fn init_writes_the_student_that_the_run_begins_with() {
    let fresh = "kind = \"fresh\"\nconfig = \"student.json\"";
    for (student, layers) in [
        ("kind = \"pruned\"\nlayers = [0, 3]", 2),
        (fresh, 1),
        (AUTO, 2),
        ("kind = \"local\"\npath = \"teacher/student\"", 5),
    ] {
        let bench = bench(student);
        let init = ["init", "--config", "run.toml", "--output", "first"];
        let said = String::from_utf8(bench.expect(&init, 0).stdout).unwrap();
        assert!(said.contains(&format!("llama with {layers} layers")), "{said}");
        assert_eq!(said.contains("student.layers = ["), student == AUTO, "{said}");
        assert_eq!(ModelConfig::read(&bench.path("first")).unwrap().layers, layers);
        bench.expect(&["train", "--config", "run.toml", "--set", "train.steps=1"], 0);
        bench.expect(&["eval", "--config", "run.toml", "--student", "first", "--json", "eval.json"], 0);
        let (eval, summary) = (bench.json("eval.json"), bench.json("run/summary.json"));
        for name in ["kl_mean", "student_perplexity", "top1_agreement"] {
            assert_eq!(eval[name], summary["initial_eval"][name], "{student}: {name}");
        }
        let written = files(&bench.path("first"));
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            assert_eq!(written.get(name), files(&bench.path("run/student")).get(name), "{name}");
        }
        // What is there is not touched.
        let again = bench.refused(&init);
        assert!(again.contains("--output first is there already"), "{again}");
        assert_eq!(files(&bench.path("first")), written);
        bench.expect(&["init", "--config", "run.toml", "--output", "half", "--set", "output.dtype=bf16"], 0);
        let size = |name: &str| bench.read(&format!("{name}/model.safetensors")).len();
        assert!(size("half") < size("first") * 6 / 10);
    }
}

#[test]
fn init_refuses_adapters_and_what_the_plan_would_refuse_and_leaves_nothing() {
    let bench = bench("kind = \"lora\"");
    let init = |more: &[&str]| bench.refused(&[&["init", "--config", "run.toml", "--output", "first"], more].concat());
    let said = init(&[]);
    assert!(said.contains("adapters that have not learned change nothing"), "{said}");
    let cut = ["--set", "student.kind=pruned", "--set"];
    for (set, part) in [("student.layers=[0, 9]", "layer 9 does not exist"), ("student.layers=0", "wanted a list")] {
        let said = init(&[&cut[..], &[set]].concat());
        assert!(said.contains(part), "{said}");
    }
    let left = std::fs::read_dir(bench.path("")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let left: Vec<String> = left.filter(|name| name.contains("first")).collect();
    assert!(left.is_empty() && !Path::new("first").exists(), "{left:?}");
}
