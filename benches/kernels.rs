//! Each kernel alone, at the sizes of README's Speed table: `cargo bench --bench kernels [-- FILTER]`.
//!
//! Throughput is in floating-point operations for products and in elements for everything else; a regression of one op
//! shows here, a regression of a step in `distill bench`.

use std::hint::black_box;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use distill::kernels::{
    Attention, AttentionShape, GradSlot, Linear, Mat, MatMut, PackedBf16, RmsNorm, Span, SwiGlu, Weight, add_rows,
    backward_from, gather_rows, matmul,
};
use distill::loss::{Divergence, ForwardKl, LogitRow};

const TOKENS: usize = 512;

fn noise(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn tensor(rows: usize, cols: usize) -> Tensor {
    Tensor::from_vec(noise(rows * cols), (rows, cols), &Device::Cpu).unwrap()
}

/// Forward, and forward with backward, of an op on one input.
fn both(group: &mut BenchmarkGroup<WallTime>, name: &str, x: &Tensor, op: impl Fn(&Tensor) -> Tensor) {
    group.bench_function(format!("{name}/forward"), |b| b.iter(|| black_box(op(x))));
    let x = Var::from_tensor(x).unwrap();
    let d_y = op(&x).ones_like().unwrap();
    group.bench_function(format!("{name}/forward and backward"), |b| {
        b.iter(|| black_box(backward_from(&op(&x), &d_y).unwrap()))
    });
}

fn products(c: &mut Criterion) {
    let mut group = c.benchmark_group("product");
    // rows, inner, outer: a teacher's projection, its MLP, a student's MLP, the head on a chunk, the head's gradients.
    for (m, k, n) in [(512, 576, 576), (512, 576, 1536), (512, 1536, 576), (512, 384, 1024), (256, 384, 49_152)] {
        group.throughput(Throughput::Elements(2 * (m * k * n) as u64));
        let (x, w, mut y) = (noise(m * k), noise(n * k), vec![0.0f32; m * n]);
        group.bench_function(format!("f32 {m}x{k}x{n}"), |b| {
            b.iter(|| matmul(Mat::new(&x, m, k), Mat::new(&w, n, k).t(), MatMut::new(&mut y, m, n), 1.0, false))
        });
        let packed = PackedBf16::new(&w, n, k);
        group.bench_function(format!("bf16 {m}x{k}x{n}"), |b| b.iter(|| packed.project(&x, &mut y, false)));
    }
}

fn block(c: &mut Criterion) {
    let mut group = c.benchmark_group("block");
    for width in [384, 576] {
        let x = tensor(TOKENS, width);
        let slot = |n: usize| Some(GradSlot::zeros(n));
        group.throughput(Throughput::Elements((TOKENS * width) as u64));
        let weight = Tensor::ones(width, candle_core::DType::F32, &Device::Cpu).unwrap();
        let norm = RmsNorm { weight, epsilon: 1e-5, weight_grad: slot(width) };
        both(&mut group, &format!("rms_norm {width}"), &x, |x| norm.forward(x).unwrap());
        let outer = width * 8 / 3;
        let (w, weight_grad) = (Weight::Dense(tensor(outer, width)), slot(outer * width));
        let linear = Linear { weight: w, bias: None, weight_grad, bias_grad: None };
        both(&mut group, &format!("linear {width} to {outer}"), &x, |x| linear.forward(x).unwrap());
        let (gate, up) = (tensor(TOKENS, outer), tensor(TOKENS, outer));
        both(&mut group, &format!("swiglu {outer}"), &gate, |x| SwiGlu.forward(x, &up).unwrap());
        let heads = width / 64;
        let shape = AttentionShape { heads, kv_heads: heads / 3, head_dim: 64, window: None };
        for length in [256, 512] {
            let spans: Vec<Span> = (0..TOKENS / length)
                .map(|r| Span { q: r * length..(r + 1) * length, k: r * length..(r + 1) * length })
                .collect();
            let spans = Arc::new(spans);
            let (k, v) = (tensor(TOKENS, heads / 3 * 64), tensor(TOKENS, heads / 3 * 64));
            both(&mut group, &format!("attention {heads} heads, rows of {length}"), &x, |q| {
                Attention::new(shape, spans.clone()).forward(q, &k, &v).unwrap()
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
    let mut table = noise(vocab * width);
    let tokens: Vec<u32> = (0..TOKENS as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab as u32).collect();
    let rows = noise(TOKENS * width);
    group.throughput(Throughput::Elements((TOKENS * width) as u64));
    group.bench_function("gather", |b| b.iter(|| gather_rows(&table, width, &tokens)));
    group.bench_function("scatter", |b| b.iter(|| add_rows(&mut table, width, &tokens, &rows)));
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(2)).warm_up_time(std::time::Duration::from_millis(500));
    targets = products, block, rows, embedding
}
criterion_main!(benches);
