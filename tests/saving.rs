//! A checkpoint is written while the next step runs, and holds nothing of that step.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use candle_core::Device;
use distill::checkpoint::{Dtype, Retention, Store, latest_valid};
use distill::corpus::{CorpusIndex, Encoder, LoadOrder, Loader, LossOn, OnBadRecord, ReadAhead, StepShape};
use distill::corpus::{TemplateChoice, TextTokenizer};
use distill::error::{Error, Result};
use distill::kernels::Precision;
use distill::loss::Objective;
use distill::metrics::{Event, Sink, Sinks};
use distill::model::{Decoder, Keep, ModelConfig};
use distill::student::{Companions, fresh_weights, write_model};
use distill::train::{AdamW, AdamWConfig, Decay, Ending, Pace, Run, Saver, Schedule, Stepper, TrainState, Writer};
use tempfile::TempDir;

const STEPS: u64 = 4;

/// Where the events go; those of one step's training are refused.
struct Seen {
    events: Sender<Event>,
    refused: Option<u64>,
}

impl Sink for Seen {
    fn record(&mut self, event: &Event) -> Result<()> {
        if matches!(event, Event::Train(_)) && self.refused == Some(event.step()) {
            return Err(Error::run("no place for an event"));
        }
        self.events.send(event.clone()).expect("somebody listens");
        Ok(())
    }
}

/// What goes wrong, and how long a checkpoint takes before its files are written.
#[derive(Default, Clone, Copy)]
struct Faults {
    pause: Duration,
    unwritable: Option<u64>,
    panics: Option<u64>,
    unrecordable: Option<u64>,
}

/// Trains with a checkpoint at every step; how it ended, the run's folder and its events.
fn train(device: &Device, faults: Faults) -> (Result<Ending>, TempDir, Vec<Event>) {
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

    let store = Arc::new(Store::open(&dir.path().join("run")).unwrap());
    let model_writer = |state: &TrainState| -> Result<Writer> {
        let (student, companions, step) = (student.clone(), companions.clone(), state.step);
        Ok(Box::new(move |dir| {
            std::thread::sleep(faults.pause);
            assert_ne!(faults.panics, Some(step), "as it was asked to");
            if faults.unwritable == Some(step) {
                return Err(Error::run("no space left"));
            }
            write_model(dir, &student, &companions, Dtype::F32)
        }))
    };
    let (sender, events) = channel();
    let mut sinks = Sinks(vec![Box::new(Seen { events: sender, refused: faults.unrecordable })]);
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
    let ended = run.go();
    drop(run);
    drop(sinks);
    let events = events.iter().collect();
    (ended, dir, events)
}

/// The steps whose checkpoints were said to be there.
fn said(events: &[Event]) -> Vec<u64> {
    events.iter().filter(|event| matches!(event, Event::Checkpoint(_))).map(Event::step).collect()
}

/// The files of every checkpoint by step and name, but for the times.
fn checkpoints(device: &Device, pause: Duration) -> Vec<BTreeMap<String, Vec<u8>>> {
    let (ended, dir, events) = train(device, Faults { pause, ..Faults::default() });
    assert_eq!(ended.unwrap(), Ending::Complete);
    assert_eq!(said(&events), (0..=STEPS).collect::<Vec<_>>());
    let files = |step: u64| {
        let folder = dir.path().join(format!("run/checkpoints/step-{step:08}"));
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
    let started = Instant::now();
    let quick = checkpoints(device, Duration::ZERO);
    // Longer than all its steps together.
    let slow = checkpoints(device, started.elapsed());
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

fn latest(dir: &TempDir) -> u64 {
    let found = latest_valid(&dir.path().join("run")).unwrap();
    assert!(found.damage.is_empty());
    found.checkpoint.unwrap().step()
}

#[test]
fn a_disk_that_refuses_a_checkpoint_ends_the_run_and_the_one_before_stays() {
    let (ended, dir, events) = train(&Device::Cpu, Faults { unwritable: Some(2), ..Faults::default() });
    assert_eq!(ended.unwrap_err().to_string(), "cannot save the checkpoint of step 2: no space left");
    assert_eq!((latest(&dir), said(&events)), (1, vec![0, 1]));
}

#[test]
fn a_run_that_fails_beside_a_checkpoint_finishes_and_tells_of_it() {
    let pause = Duration::from_millis(60);
    let (ended, dir, events) = train(&Device::Cpu, Faults { pause, unrecordable: Some(2), ..Faults::default() });
    assert_eq!(ended.unwrap_err().to_string(), "no place for an event");
    assert_eq!((latest(&dir), said(&events)), (1, vec![0, 1]));
}

#[test]
fn a_run_that_fails_tells_of_that_and_a_checkpoint_lost_beside_it_is_a_warning() {
    let faults = Faults { unrecordable: Some(2), unwritable: Some(1), ..Faults::default() };
    let (ended, dir, events) = train(&Device::Cpu, faults);
    assert_eq!(ended.unwrap_err().to_string(), "no place for an event");
    assert_eq!((latest(&dir), said(&events)), (0, vec![0]));
    let warned = events.iter().any(|event| matches!(event, Event::Warning(w) if w.code == "checkpoint_not_saved"));
    assert!(warned, "{events:?}");
}

#[test]
fn a_panic_while_a_checkpoint_is_written_is_the_runs_own() {
    let faults = Faults { panics: Some(3), ..Faults::default() };
    let run = std::panic::catch_unwind(|| train(&Device::Cpu, faults));
    let message = run.err().and_then(|panic| panic.downcast::<String>().ok()).unwrap();
    assert!(message.contains("as it was asked to"), "{message}");
}
