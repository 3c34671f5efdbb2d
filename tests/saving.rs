//! A checkpoint is written while the next step runs, and holds nothing of that step.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use candle_core::Device;
use distill::checkpoint::{Dtype, Retention, Store};
use distill::corpus::{CorpusIndex, Encoder, LoadOrder, Loader, LossOn, OnBadRecord, ReadAhead, StepShape};
use distill::corpus::{TemplateChoice, TextTokenizer};
use distill::kernels::Precision;
use distill::loss::Objective;
use distill::metrics::{Event, Sinks};
use distill::model::{Decoder, Keep, ModelConfig};
use distill::student::{Companions, fresh_weights, write_model};
use distill::train::{AdamW, AdamWConfig, Decay, Ending, Pace, Run, Saver, Schedule, Stepper, TrainState, Writer};

const STEPS: u64 = 4;

/// Where the events go.
struct Seen(std::sync::mpsc::Sender<Event>);

impl distill::metrics::Sink for Seen {
    fn record(&mut self, event: &Event) -> distill::error::Result<()> {
        self.0.send(event.clone()).expect("somebody listens");
        Ok(())
    }
}

/// Trains with a checkpoint at every step, before each of which the disk takes `pause`; the files of every checkpoint by step and name, but
/// for the times.
fn checkpoints(device: &Device, pause: Duration) -> Vec<BTreeMap<String, Vec<u8>>> {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/chat");
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data.jsonl");
    let rows = (0..8).map(|i| format!("{{\"text\": \"The ferry {i} leaves at {i}:45.\"}}\n"));
    std::fs::write(&data, rows.collect::<String>()).unwrap();

    let tokenizer = Arc::new(TextTokenizer::from_dir(&goldens).unwrap());
    let companions = Companions::of(&tokenizer).unwrap();
    let config = ModelConfig::from_json(&format!(
        r#"{{"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "vocab_size": {}, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true}}"#,
        tokenizer.vocab_size()
    ));
    let config = config.unwrap();
    let weights = fresh_weights(&config, 3).unwrap();
    let student = Arc::new(Decoder::new(config, weights, true, device).unwrap());
    let encoder = Encoder::new(tokenizer, &TemplateChoice::Off, 32, LossOn::All).unwrap();
    let index = CorpusIndex::open(&[data], OnBadRecord::Fail).unwrap();
    let order = LoadOrder { seed: 5, shuffle: true, epochs: None };
    let loader = Loader::new(Arc::new(index), Arc::new(encoder), order);
    let adam = AdamWConfig { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.0 };

    let run_dir = dir.path().join("run");
    let store = Arc::new(Store::open(&run_dir).unwrap());
    let model_writer = |_: &TrainState| -> distill::error::Result<Writer> {
        let (student, companions) = (student.clone(), companions.clone());
        Ok(Box::new(move |dir| {
            std::thread::sleep(pause);
            write_model(dir, &student, &companions, Dtype::F32)
        }))
    };
    let (sender, events) = std::sync::mpsc::channel();
    let mut sinks = Sinks(vec![Box::new(Seen(sender))]);
    let mut run = Run {
        stepper: Stepper {
            teacher: None,
            student: &student,
            objective: Objective::cross_entropy(),
            hidden: None,
            optimizer: AdamW::new(adam, student.parameters()).unwrap(),
            max_grad_norm: 1.0,
            keep: Keep::Activations,
            precision: Precision::F32,
            exact_phases: false,
        },
        steps: ReadAhead::new(loader, StepShape { batch_size: 2, packing: false }).unwrap(),
        micro_batch_size: 2,
        rollouts: None,
        schedule: Schedule { learning_rate: 0.01, decay: Decay::Constant, warmup_steps: 0, total_steps: STEPS },
        pace: Pace {
            total_steps: STEPS,
            max_time: None,
            stop_after: None,
            eval_every: 100,
            checkpoint_every: 1,
            keep_best: false,
        },
        saver: Saver::new(store, Retention { last: 9, every: None }, None),
        sinks: &mut sinks,
        evaluate: None,
        model_writer: &model_writer,
        interrupted: &AtomicBool::new(false),
        state: TrainState::default(),
    };
    assert_eq!(run.go().unwrap(), Ending::Complete);
    drop(run);
    drop(sinks);
    let said: Vec<u64> = events.iter().filter(|e| matches!(e, Event::Checkpoint(_))).map(|e| e.step()).collect();
    assert_eq!(said, (0..=STEPS).collect::<Vec<_>>());
    let files = |step: u64| {
        let folder = run_dir.join(format!("checkpoints/step-{step:08}"));
        let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let named = names.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path));
        named
            .filter(|(name, _)| name != "times.json" && name != "manifest.json")
            .map(|(name, path)| (name, std::fs::read(path).unwrap()))
            .collect()
    };
    (0..=STEPS).map(files).collect()
}

distill::on_every_device! {
fn a_checkpoint_that_takes_longer_than_the_next_step_holds_nothing_of_it(device) {
    let [quick, slow] = [Duration::ZERO, Duration::from_millis(60)].map(|pause| checkpoints(device, pause));
    for (step, (quick, slow)) in quick.iter().zip(&slow).enumerate() {
        assert!(quick.contains_key("optimizer.safetensors") && quick.contains_key("model.safetensors"));
        let differ: Vec<_> = quick.keys().filter(|name| quick[*name] != slow[*name]).collect();
        assert!(differ.is_empty() && quick.len() == slow.len(), "step {step}: {differ:?}");
    }
    for pair in quick.windows(2) {
        assert_ne!(pair[0]["model.safetensors"], pair[1]["model.safetensors"]);
    }
}
}
