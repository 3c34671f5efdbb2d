//! The matrix products of a step, timed alone: what a step would take if everything else were free.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::kernels::{Mat, MatMut, Panels, Precision, matmul};
use crate::model::ModelConfig;

/// Tokens and targets of a micro-batch, and how many micro-batches a step has; means over the timed steps.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub tokens: usize,
    pub targets: usize,
    pub micro_batches: usize,
}

/// Shapes `[m, k] · [k, n]` with their number in a step.
#[derive(Default)]
pub struct Products(BTreeMap<Product, usize>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Product {
    m: usize,
    k: usize,
    n: usize,
    bf16: bool,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// x Wᵀ with W packed once.
    Frozen,
    /// x Wᵀ.
    Forward,
    /// dy W.
    Input,
    /// dW += dyᵀ x.
    Weight,
}

/// Rows of a chunk of logits.
const CHUNK: usize = 256;

impl Products {
    /// The frozen teacher's.
    pub fn add_teacher(&mut self, model: &ModelConfig, size: Size, precision: Precision) {
        for (inner, outer) in linears(model) {
            self.add(size.micro_batches * model.layers, size.tokens, inner, outer, precision, Kind::Frozen);
        }
        self.add_head(model, size, precision, Kind::Frozen);
    }

    /// The student's, forward and backward; its logits are f32.
    pub fn add_student(&mut self, model: &ModelConfig, size: Size, precision: Precision) {
        let count = size.micro_batches * model.layers;
        for (inner, outer) in linears(model) {
            self.add(count, size.tokens, inner, outer, precision, Kind::Forward);
            self.add(count, size.tokens, outer, inner, precision, Kind::Input);
            self.add(count, outer, size.tokens, inner, precision, Kind::Weight);
        }
        self.add_head(model, size, Precision::F32, Kind::Forward);
        let (rows, chunks) = chunks(size);
        self.add(chunks, rows, model.vocab_size, model.hidden_size, precision, Kind::Input);
        self.add(chunks, model.vocab_size, rows, model.hidden_size, precision, Kind::Weight);
    }

    fn add_head(&mut self, model: &ModelConfig, size: Size, precision: Precision, kind: Kind) {
        let (rows, chunks) = chunks(size);
        self.add(chunks, rows, model.hidden_size, model.vocab_size, precision, kind);
    }

    fn add(&mut self, count: usize, m: usize, k: usize, n: usize, precision: Precision, kind: Kind) {
        *self.0.entry(Product { m, k, n, bf16: precision == Precision::Bf16, kind }).or_default() += count;
    }

    /// Seconds that all of them take, each shape timed alone: the median of five.
    pub fn seconds(&self) -> f64 {
        self.0.iter().map(|(product, count)| product.seconds() * *count as f64).sum()
    }
}

/// Targets in equal chunks.
fn chunks(size: Size) -> (usize, usize) {
    let chunks = size.targets.div_ceil(CHUNK).max(1);
    (size.targets.div_ceil(chunks), chunks * size.micro_batches)
}

/// Inner and outer size of a block's matrices.
fn linears(model: &ModelConfig) -> [(usize, usize); 7] {
    let (d, f) = (model.hidden_size, model.intermediate_size);
    let (q, kv) = (model.heads * model.head_dim, model.kv_heads * model.head_dim);
    [(d, q), (d, kv), (d, kv), (q, d), (d, f), (d, f), (f, d)]
}

impl Product {
    fn seconds(&self) -> f64 {
        let Self { m, k, n, bf16, kind } = *self;
        let precision = if bf16 { Precision::Bf16 } else { Precision::F32 };
        let (a, b, mut c) = (vec![0.5f32; m * k], vec![0.25f32; k * n], vec![0.0f32; m * n]);
        let packed = (kind == Kind::Frozen).then(|| Panels::new(Mat::new(&b, n, k), precision));
        let mut run = || {
            let started = Instant::now();
            let out = MatMut::new(&mut c, m, n);
            match (kind, &packed) {
                (Kind::Frozen, Some(packed)) => packed.project(&a, &mut c, false),
                (Kind::Weight, _) => matmul(Mat::new(&a, k, m).t(), Mat::new(&b, k, n), out, precision, true),
                (Kind::Input, _) => matmul(Mat::new(&a, m, k), Mat::new(&b, k, n), out, precision, false),
                _ => matmul(Mat::new(&a, m, k), Mat::new(&b, n, k).t(), out, precision, false),
            }
            started.elapsed().as_secs_f64()
        };
        run();
        let mut times: Vec<f64> = (0..5).map(|_| run()).collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }
}
