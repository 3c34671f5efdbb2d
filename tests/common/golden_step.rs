//! The golden step (tests/goldens/README.md, `step`): its teacher, its rows, and what PyTorch said of a student.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use distill::corpus::{Row, RowRef};
use distill::kernels::Precision;
use distill::loss::{ForwardKl, Objective};
use distill::model::{Decoder, Keep};
use distill::teacher::LocalTeacher;
use distill::train::{AdamW, AdamWConfig, Stepper};
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Expected {
    temperature: f64,
    hard_label_weight: f64,
    pub peak_learning_rate: f64,
    pub warmup_steps: u64,
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    pub targets: Vec<usize>,
    pub loss: Vec<f64>,
    pub divergence: Vec<f64>,
    pub cross_entropy: Vec<f64>,
    pub grad_norm: Vec<f64>,
    pub learning_rate: Vec<f64>,
}

#[derive(Deserialize)]
struct GoldenRow {
    ids: Vec<u32>,
    targets: Vec<u8>,
}

pub fn goldens(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

pub fn json<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(goldens(name)).unwrap()).unwrap()
}

pub fn values(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The rows of each of ten steps.
pub fn steps() -> Vec<Vec<Row>> {
    let source = RowRef { digest: [0; 32], file: Arc::new("batches.json".into()), line: 1 };
    let row = |r: GoldenRow| Row {
        tokens: r.ids,
        targets: r.targets.into_iter().map(|t| t == 1).collect(),
        source: source.clone(),
    };
    let steps = json::<Vec<Vec<GoldenRow>>>("step/batches.json").into_iter();
    steps.map(|rows| rows.into_iter().map(row).collect()).collect()
}

pub fn teacher(device: &Device) -> LocalTeacher {
    LocalTeacher::new(Arc::new(Decoder::load(&goldens("step/teacher"), false, device).unwrap()), device).unwrap()
}

pub fn stepper<'a>(teacher: &'a LocalTeacher, student: &'a Decoder, e: &Expected) -> Stepper<'a> {
    let config = AdamWConfig { beta1: e.beta1, beta2: e.beta2, epsilon: e.epsilon, weight_decay: e.weight_decay };
    Stepper {
        teacher: Some(teacher),
        student,
        objective: Objective::distillation(Box::new(ForwardKl), e.temperature, e.hard_label_weight, true),
        hidden: None,
        optimizer: AdamW::new(config, student.parameters()).unwrap(),
        max_grad_norm: e.max_grad_norm,
        keep: Keep::Activations,
        precision: Precision::F32,
        exact_phases: false,
    }
}

pub fn close(got: f64, want: f64, relative: f64, what: &str) {
    assert!((got - want).abs() <= relative * want.abs(), "{what}: {got} instead of {want}");
}
