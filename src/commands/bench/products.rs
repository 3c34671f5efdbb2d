//! The matrix products of a step, attention's included, timed alone: what a step would take if everything else were free.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::kernels::{Mat, MatMut, Panels, Precision, QUERY_BLOCK, Right, matmul};
use crate::loss::ChunkedLogits;
use crate::model::ModelConfig;

/// Tokens and targets of a micro-batch, and how many micro-batches a step has; means over the timed steps.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub tokens: usize,
    /// Tokens of a row.
    pub length: usize,
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
    precision: Precision,
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
    /// A block of queries with the keys or values before it; one per thread at a time.
    Attention,
}

impl Products {
    /// The frozen teacher's.
    pub fn add_teacher(&mut self, model: &ModelConfig, size: Size, precision: Precision) {
        for (rows, count, (inner, outer)) in linears(model, size) {
            self.add(count, rows, inner, outer, precision, Kind::Frozen);
        }
        self.add_attention(model, size, 2);
        self.add_head(model, size, precision, Kind::Frozen);
    }

    /// The student's, forward and backward; its logits are f32. `frozen`: its own weights do not learn, and what its adapters
    /// multiply is not counted.
    pub fn add_student(&mut self, model: &ModelConfig, size: Size, precision: Precision, frozen: bool) {
        let learns = usize::from(!frozen);
        for (rows, count, (inner, outer)) in linears(model, size) {
            self.add(count, rows, inner, outer, precision, Kind::Forward);
            self.add(count, rows, outer, inner, precision, Kind::Input);
            self.add(count * learns, outer, rows, inner, precision, Kind::Weight);
        }
        // Two products forward, five backward.
        self.add_attention(model, size, 7);
        self.add_head(model, size, Precision::F32, Kind::Forward);
        let (rows, chunks) = chunks(model, size);
        self.add(chunks, rows, model.vocab_size, model.hidden_size, precision, Kind::Input);
        self.add(chunks * learns, model.vocab_size, rows, model.hidden_size, precision, Kind::Weight);
    }

    fn add_head(&mut self, model: &ModelConfig, size: Size, precision: Precision, kind: Kind) {
        let (rows, chunks) = chunks(model, size);
        self.add(chunks, rows, model.hidden_size, model.vocab_size, precision, kind);
    }

    /// `products` of each block of queries; half of them give scores from heads, the other half heads from scores.
    fn add_attention(&mut self, model: &ModelConfig, size: Size, products: usize) {
        let blocks = size.length.div_ceil(QUERY_BLOCK).max(1);
        let (queries, keys) = (size.length.div_ceil(blocks), size.length.div_ceil(blocks) * (blocks + 1) / 2);
        let rows = size.tokens.div_ceil(size.length.max(1)) * size.micro_batches;
        let count = rows * blocks * model.heads * model.layers * products;
        self.add(count / 2, queries, model.head_dim, keys, Precision::F32, Kind::Attention);
        self.add(count - count / 2, queries, keys, model.head_dim, Precision::F32, Kind::Attention);
    }

    fn add(&mut self, count: usize, m: usize, k: usize, n: usize, precision: Precision, kind: Kind) {
        if count > 0 {
            *self.0.entry(Product { m, k, n, precision, kind }).or_default() += count;
        }
    }

    /// Seconds that all of them take, each shape timed alone: the median of five.
    pub fn seconds(&self) -> f64 {
        self.0.iter().map(|(product, count)| product.seconds() * *count as f64).sum()
    }
}

/// Targets in equal chunks.
fn chunks(model: &ModelConfig, size: Size) -> (usize, usize) {
    let chunks = size.targets.div_ceil(ChunkedLogits::rows_per_chunk(model.vocab_size)).max(1);
    (size.targets.div_ceil(chunks), chunks * size.micro_batches)
}

/// Rows, number, and inner and outer size of the blocks' products: the last block runs all but keys and values at targets.
fn linears(model: &ModelConfig, size: Size) -> Vec<(usize, usize, (usize, usize))> {
    let (d, f) = (model.hidden_size, model.intermediate_size);
    let (q, kv) = (model.heads * model.head_dim, model.kv_heads * model.head_dim);
    let everywhere = [(d, kv), (d, kv)];
    let gate = model.mlp.is_gated().then_some((d, f));
    let asked: Vec<_> = [(d, q), (q, d), (d, f), (f, d)].into_iter().chain(gate).collect();
    let (all, last) = (size.micro_batches * model.layers, size.micro_batches);
    let of_all = everywhere.map(|shape| (size.tokens, all, shape));
    let of_most = asked.iter().map(|shape| (size.tokens, all - last, *shape));
    let of_last = asked.iter().map(|shape| (size.targets, last, *shape));
    of_all.into_iter().chain(of_most).chain(of_last).collect()
}

/// Floating-point operations of the blocks' products in a forward pass, attention's own left out.
pub fn block_operations(model: &ModelConfig, size: Size) -> f64 {
    linears(model, size).iter().map(|(rows, count, (k, n))| 2.0 * (rows * k * n) as f64 * *count as f64).sum()
}

impl Product {
    fn seconds(&self) -> f64 {
        if self.kind == Kind::Attention {
            return self.seconds_on_every_thread();
        }
        let Self { m, k, n, precision, kind } = *self;
        let (a, b, mut c) = (vec![0.5f32; m * k], vec![0.25f32; k * n], vec![0.0f32; m * n]);
        // Where our kernel does not run, a frozen f32 matrix is multiplied as it is.
        let packed = (kind == Kind::Frozen && (precision == Precision::Bf16 || precision.is_native()))
            .then(|| Panels::new(Mat::new(&b, n, k), precision));
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

    /// Of one product, when every thread runs such products of its own.
    fn seconds_on_every_thread(&self) -> f64 {
        const REPEATS: usize = 500;
        let Self { m, k, n, .. } = *self;
        let (a, b) = (vec![0.5f32; m * k], vec![0.25f32; k * n]);
        let started = Instant::now();
        rayon::broadcast(|_| {
            let mut c = vec![0.0f32; m * n];
            let b = Right::new(Mat::new(&b, k, n));
            (0..REPEATS).for_each(|_| b.multiply(Mat::new(&a, m, k), MatMut::new(&mut c, m, n), false));
        });
        started.elapsed().as_secs_f64() / (REPEATS * rayon::current_num_threads()) as f64
    }
}
