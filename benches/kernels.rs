//! Each kernel alone, at the sizes of README's Speed table: `cargo bench --bench kernels [-- FILTER]`.
//!
//! Throughput is in floating-point operations for products and in elements for everything else; a regression of one op
//! shows here, a regression of a step in `distill bench`.

use std::hint::black_box;

use candle_core::{Device, Tensor};
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use distill::kernels::{
    AttentionShape, GradSlot, Linear, Mat, MatMut, Panels, Precision, RmsNorm, Span, Spans, Weight, add_rows, gather,
    matmul, swiglu, swiglu_backward,
};
use distill::loss::{Divergence, ForwardKl, LogitRow};

const TOKENS: usize = 512;

fn noise(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn tensor(rows: usize, cols: usize) -> Tensor {
    Tensor::from_vec(noise(rows * cols), (rows, cols), &Device::Cpu).unwrap()
}

/// Forward and backward of an op, apart.
fn both<S>(
    group: &mut BenchmarkGroup<WallTime>,
    name: &str,
    forward: impl Fn() -> (Tensor, S),
    backward: impl Fn(&Tensor, &S, &Tensor),
) {
    group.bench_function(format!("{name}/forward"), |b| b.iter(|| black_box(forward())));
    let (y, saved) = forward();
    let dy = y.ones_like().unwrap();
    group.bench_function(format!("{name}/backward"), |b| b.iter(|| backward(&y, &saved, &dy)));
}

fn products(c: &mut Criterion) {
    let mut group = c.benchmark_group("product");
    // rows, inner, outer: a teacher's projections, a student's MLP, the head on a chunk.
    for (m, k, n) in
        [(512, 576, 192), (512, 576, 576), (512, 576, 1536), (512, 1536, 576), (512, 384, 1024), (256, 384, 49_152)]
    {
        group.throughput(Throughput::Elements(2 * (m * k * n) as u64));
        let (x, w, mut y) = (noise(m * k), noise(n * k), vec![0.0f32; m * n]);
        for precision in [Precision::F32, Precision::Bf16] {
            let name = format!("{precision:?} {m}x{k}x{n}");
            group.bench_function(&name, |b| {
                b.iter(|| {
                    matmul(Mat::new(&x, m, k), Mat::new(&w, n, k).t(), MatMut::new(&mut y, m, n), precision, false)
                })
            });
            let packed = Panels::new(Mat::new(&w, n, k), precision);
            group.bench_function(format!("{name} packed"), |b| b.iter(|| packed.project(&x, &mut y, false)));
        }
    }
    // The head's two gradients on a chunk: of the hidden states, and of the weight.
    let (m, k, n) = (256, 49_152, 384);
    group.throughput(Throughput::Elements(2 * (m * k * n) as u64));
    let (d_logits, w, hidden) = (noise(m * k), noise(k * n), noise(m * n));
    let (mut d_hidden, mut d_weight) = (vec![0.0f32; m * n], vec![0.0f32; k * n]);
    for precision in [Precision::F32, Precision::Bf16] {
        let (d_logits, w, hidden) = (Mat::new(&d_logits, m, k), Mat::new(&w, k, n), Mat::new(&hidden, m, n));
        group.bench_function(format!("{precision:?} d_hidden"), |b| {
            b.iter(|| matmul(d_logits, w, MatMut::new(&mut d_hidden, m, n), precision, false))
        });
        group.bench_function(format!("{precision:?} d_weight"), |b| {
            b.iter(|| matmul(d_logits.t(), hidden, MatMut::new(&mut d_weight, k, n), precision, true))
        });
    }
}

fn block(c: &mut Criterion) {
    let mut group = c.benchmark_group("block");
    for width in [384, 576] {
        let x = tensor(TOKENS, width);
        let slot = |t: &Tensor| Some(GradSlot::of(t).unwrap());
        group.throughput(Throughput::Elements((TOKENS * width) as u64));
        let weight = Tensor::ones(width, candle_core::DType::F32, &Device::Cpu).unwrap();
        let norm = RmsNorm { weight_grad: slot(&weight), weight, offset: 0.0, epsilon: 1e-5 };
        let forward = || (norm.forward(&x).unwrap(), ());
        both(&mut group, &format!("rms_norm {width}"), forward, |_, _, dy| {
            norm.backward(&x, dy, None).unwrap();
        });
        let outer = width * 8 / 3;
        for precision in [Precision::F32, Precision::Bf16] {
            let weight = tensor(outer, width);
            let weight_grad = slot(&weight);
            let linear =
                Linear { weight: Weight::Dense(weight), bias: None, weight_grad, bias_grad: None, adapter: None };
            let forward = || (linear.forward(&x, precision).unwrap(), ());
            both(&mut group, &format!("linear {precision:?} {width} to {outer}"), forward, |_, _, dy| {
                linear.backward(&x, dy, None, precision).unwrap();
            });
        }
        let (gate, up) = (tensor(TOKENS, outer), tensor(TOKENS, outer));
        let forward = || (swiglu(&gate, &up).unwrap(), ());
        both(&mut group, &format!("swiglu {outer}"), forward, |_, _, dy| {
            swiglu_backward(&gate, &up, dy).unwrap();
        });
        let heads = width / 64;
        let shape = AttentionShape::new(heads, heads / 3, 64, None);
        let (k, v) = (tensor(TOKENS, heads / 3 * 64), tensor(TOKENS, heads / 3 * 64));
        for length in [256, 512] {
            let rows = (0..TOKENS).step_by(length).map(|start| start..start + length);
            let spans = rows.map(|row| Span { q: row.clone(), k: row }).collect();
            let spans = Spans::new(spans, &Device::Cpu).unwrap();
            let forward = || shape.forward(&spans, &x, &k, &v).unwrap();
            both(&mut group, &format!("attention {heads} heads, rows of {length}"), forward, |y, lse, dy| {
                shape.backward(&spans, (&x, &k, &v), (y, lse), dy).unwrap();
            });
        }
    }
}

fn rows(c: &mut Criterion) {
    const VOCAB: usize = 49_152;
    let mut group = c.benchmark_group("row");
    group.throughput(Throughput::Elements(VOCAB as u64));
    let (p, q) = (noise(VOCAB), noise(VOCAB + 7)[7..].to_vec());
    let mut gradient = vec![0.0f32; VOCAB];
    group.bench_function("log_sum_exp", |b| b.iter(|| LogitRow::new(&p, 0.5)));
    group.bench_function("forward_kl with its gradient", |b| {
        let (p, q) = (LogitRow::new(&p, 0.5), LogitRow::new(&q, 0.5));
        b.iter(|| ForwardKl.row(p, q, Some((&mut gradient, 1.0))))
    });
}

fn embedding(c: &mut Criterion) {
    let mut group = c.benchmark_group("embedding");
    let (vocab, width) = (49_152, 384);
    let table = tensor(vocab, width);
    let tokens: Vec<u32> = (0..TOKENS as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab as u32).collect();
    let rows = tensor(TOKENS, width);
    group.throughput(Throughput::Elements((TOKENS * width) as u64));
    group.bench_function("gather", |b| b.iter(|| gather(&table, &tokens).unwrap()));
    group.bench_function("scatter", |b| b.iter(|| add_rows(&table, &tokens, &rows).unwrap()));
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(2)).warm_up_time(std::time::Duration::from_millis(500));
    targets = products, block, rows, embedding
}
criterion_main!(benches);
