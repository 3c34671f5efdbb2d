//! Fused kernels and the product, with their gradients, against naive loops in f64 and numerical derivatives of these.

use candle_core::{Device, Tensor};

use super::Check;
use super::numbers::{gradient, noise, relative_distance, wide};
use crate::error::Result;
use crate::kernels::{
    AdamWUpdate, AttentionShape, GradSlot, Linear, Precision, RmsNorm, Rope, Span, Spans, Weight, swiglu,
    swiglu_backward,
};

/// Of the largest element, for sums of a few hundred products in f32.
const ROUNDING: f64 = 1e-5;

pub fn checks(device: &Device) -> Result<Vec<Check>> {
    Ok(vec![product(device)?, rms_norm(device)?, attention(device)?, gated(device)?, adamw(device)?])
}

fn tensor(values: &[f32], shape: (usize, usize), device: &Device) -> Result<Tensor> {
    Ok(Tensor::from_slice(values, shape, device)?)
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// y = x Wᵀ and both gradients, of sizes on and off the blocks of the kernels.
fn product(device: &Device) -> Result<Check> {
    let mut check = Check::new("matrix product", ROUNDING);
    // What a_ik b_kj sum to, by the strides of i, j and k in a and b.
    let naive = |a: &[f32], b: &[f32], (m, n, k): (usize, usize, usize), sa: (usize, usize), sb: (usize, usize)| {
        let element = |i: usize, j: usize| {
            (0..k).map(|l| a[i * sa.0 + l * sa.1] as f64 * b[l * sb.0 + j * sb.1] as f64).sum::<f64>()
        };
        (0..m * n).map(|at| element(at / n, at % n)).collect::<Vec<f64>>()
    };
    for (rows, width, outputs) in [(1, 1, 1), (5, 33, 31), (12, 64, 96), (67, 129, 70)] {
        let (x, w) = (noise(rows * width, 1.0, 1), noise(outputs * width, 1.0, 2));
        let dy = noise(rows * outputs, 1.0, 3);
        let weight = tensor(&w, (outputs, width), device)?;
        let slot = GradSlot::of(&weight)?;
        let layer = Linear {
            weight: Weight::Dense(weight),
            bias: None,
            weight_grad: Some(slot.clone()),
            bias_grad: None,
            adapter: None,
        };
        let (there, dy_there) = (tensor(&x, (rows, width), device)?, tensor(&dy, (rows, outputs), device)?);
        let y = values(&layer.forward(&there, Precision::F32)?)?;
        check.met(relative_distance(&y, &naive(&x, &w, (rows, outputs, width), (width, 1), (1, width))));
        let dx = values(&layer.backward(&there, &dy_there, None, Precision::F32)?)?;
        check.met(relative_distance(&dx, &naive(&dy, &w, (rows, width, outputs), (outputs, 1), (width, 1))));
        let dw = values(slot.tensor())?;
        check.met(relative_distance(&dw, &naive(&dy, &x, (outputs, width, rows), (1, outputs), (width, 1))));
    }
    Ok(check)
}

fn rms_norm(device: &Device) -> Result<Check> {
    const EPSILON: f64 = 1e-5;
    let mut check = Check::new("rms_norm", ROUNDING);
    for (rows, width) in [(1, 3), (4, 33), (3, 64)] {
        let (x, w, dy) = (noise(rows * width, 2.0, 4), noise(width, 1.0, 5), noise(rows * width, 1.0, 6));
        let naive = |x: &[f64], w: &[f64]| -> Vec<f64> {
            let row = |x: &[f64]| {
                let root = (dot(x, x) / width as f64 + EPSILON).sqrt();
                x.iter().zip(w).map(|(x, w)| x / root * w).collect::<Vec<f64>>()
            };
            x.chunks(width).flat_map(row).collect()
        };
        let weight = Tensor::from_slice(&w, width, device)?;
        let slot = GradSlot::of(&weight)?;
        let norm = RmsNorm { weight, offset: 0.0, epsilon: EPSILON, weight_grad: Some(slot.clone()) };
        let (there, dy_there) = (tensor(&x, (rows, width), device)?, tensor(&dy, (rows, width), device)?);
        let (x, w, dy) = (wide(&x), wide(&w), wide(&dy));
        check.met(relative_distance(&values(&norm.forward(&there)?)?, &naive(&x, &w)));
        let dx = values(&norm.backward(&there, &dy_there, None)?)?;
        check.met(relative_distance(&dx, &gradient(&x, |x| dot(&naive(x, &w), &dy))));
        check.met(relative_distance(&values(slot.tensor())?, &gradient(&w, |w| dot(&naive(&x, w), &dy))));
    }
    Ok(check)
}

/// Rotated queries and keys of two rows, grouped heads, with and without a window.
fn attention(device: &Device) -> Result<Check> {
    const TOKENS: [usize; 2] = [3, 6];
    const FREQUENCIES: [f32; 4] = [1.0, 0.3, 0.1, 0.03];
    let mut check = Check::new("rotation and attention", ROUNDING);
    let total = TOKENS.iter().sum::<usize>();
    let positions: Vec<u32> = TOKENS.iter().flat_map(|&n| 0..n as u32).collect();
    for window in [None, Some(2)] {
        let shape = AttentionShape::new(4, 2, 8, window);
        let (wide_q, wide_kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let (q, k) = (noise(total * wide_q, 1.0, 7), noise(total * wide_kv, 1.0, 8));
        let (v, d_out) = (noise(total * wide_kv, 1.0, 9), noise(total * wide_q, 1.0, 10));

        let rope = Rope::new(&positions, &FREQUENCIES, device)?;
        let mut begin = 0;
        let spans = TOKENS.map(|n| {
            begin += n;
            Span { q: begin - n..begin, k: begin - n..begin }
        });
        let spans = Spans::new(spans.to_vec(), device)?;
        let on = |x: &[f32], width| tensor(x, (total, width), device);
        let (q_there, k_there, v_there) =
            (rope.forward(&on(&q, wide_q)?)?, rope.forward(&on(&k, wide_kv)?)?, on(&v, wide_kv)?);
        let (out, log_sums) = shape.forward(&spans, &q_there, &k_there, &v_there)?;
        let d_out_there = on(&d_out, wide_q)?;
        let inputs = (&q_there, &k_there, &v_there);
        let [dq, dk, dv] = shape.backward(&spans, inputs, (&out, &log_sums), &d_out_there)?;

        let (q, k, v, d_out) = (wide(&q), wide(&k), wide(&v), wide(&d_out));
        let naive =
            |q: &[f64], k: &[f64], v: &[f64]| naive_attention(&shape, &TOKENS, &positions, &FREQUENCIES, [q, k, v]);
        check.met(relative_distance(&values(&out)?, &naive(&q, &k, &v)));
        let loss = |q: &[f64], k: &[f64], v: &[f64]| dot(&naive(q, k, v), &d_out);
        check.met(relative_distance(&values(&rope.backward(&dq)?)?, &gradient(&q, |q| loss(q, &k, &v))));
        check.met(relative_distance(&values(&rope.backward(&dk)?)?, &gradient(&k, |k| loss(&q, k, &v))));
        check.met(relative_distance(&values(&dv)?, &gradient(&v, |v| loss(&q, &k, v))));
    }
    Ok(check)
}

fn naive_attention(
    shape: &AttentionShape,
    tokens: &[usize],
    positions: &[u32],
    frequencies: &[f32],
    [q, k, v]: [&[f64]; 3],
) -> Vec<f64> {
    let d = shape.head_dim;
    let rotated = |x: &[f64], t: usize, heads: usize, head: usize| -> Vec<f64> {
        let x = &x[(t * heads + head) * d..(t * heads + head + 1) * d];
        let turn = |i: usize| {
            let (sin, cos) = (positions[t] as f64 * frequencies[i % (d / 2)] as f64).sin_cos();
            if i < d / 2 { x[i] * cos - x[i + d / 2] * sin } else { x[i] * cos + x[i - d / 2] * sin }
        };
        (0..d).map(turn).collect()
    };
    let mut out = vec![];
    let mut first = 0;
    for &n in tokens {
        for t in first..first + n {
            for head in 0..shape.heads {
                let kv = head / (shape.heads / shape.kv_heads);
                let query = rotated(q, t, shape.heads, head);
                let from = shape.window.map_or(first, |window| first.max((t + 1).saturating_sub(window)));
                let scores: Vec<f64> = (from..=t)
                    .map(|s| (dot(&query, &rotated(k, s, shape.kv_heads, kv)) / (d as f64).sqrt()).exp())
                    .collect();
                let sum: f64 = scores.iter().sum();
                out.extend((0..d).map(|i| {
                    let mixed = scores.iter().zip(from..).map(|(p, s)| p * v[(s * shape.kv_heads + kv) * d + i]);
                    mixed.sum::<f64>() / sum
                }));
            }
        }
        first += n;
    }
    out
}

fn gated(device: &Device) -> Result<Check> {
    let mut check = Check::new("swiglu", ROUNDING);
    for n in [1, 33, 200] {
        let (gate, up, dy) = (noise(n, 5.0, 11), noise(n, 2.0, 12), noise(n, 1.0, 13));
        let on = |x: &[f32]| tensor(x, (1, n), device);
        let y = swiglu(&on(&gate)?, &on(&up)?)?;
        let (d_gate, d_up) = swiglu_backward(&on(&gate)?, &on(&up)?, &on(&dy)?)?;
        let (gate, up, dy) = (wide(&gate), wide(&up), wide(&dy));
        let naive = |gate: &[f64], up: &[f64]| -> Vec<f64> {
            gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
        };
        check.met(relative_distance(&values(&y)?, &naive(&gate, &up)));
        check.met(relative_distance(&values(&d_gate)?, &gradient(&gate, |gate| dot(&naive(gate, &up), &dy))));
        check.met(relative_distance(&values(&d_up)?, &gradient(&up, |up| dot(&naive(&gate, up), &dy))));
    }
    Ok(check)
}

/// Three steps of arXiv 1711.05101, algorithm 2, with PyTorch's decay by the learning rate.
fn adamw(device: &Device) -> Result<Check> {
    const N: usize = 130;
    let (beta1, beta2, rate, epsilon, decay, scale) = (0.9f64, 0.99f64, 1e-2f64, 1e-8f64, 0.1f64, 0.5f64);
    let mut check = Check::new("adamw", ROUNDING);
    let start = noise(N, 1.0, 14);
    let on = |x: &[f32]| Ok::<_, crate::Error>(Tensor::from_slice(x, x.len(), device)?);
    let (weight, first, second) = (on(&start)?, on(&[0.0; N])?, on(&[0.0; N])?);
    let (mut w, mut m, mut v) = (wide(&start), vec![0.0f64; N], vec![0.0f64; N]);
    for step in 1..=3i32 {
        let gradient = noise(N, 1.0, 20 + step as u32);
        let corrections = (1.0 - beta1.powi(step), 1.0 - beta2.powi(step));
        let update = AdamWUpdate {
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            gradient_scale: scale as f32,
            step_size: (rate / corrections.0) as f32,
            inverse_correction2: (1.0 / corrections.1.sqrt()) as f32,
            epsilon: epsilon as f32,
            keep: (1.0 - rate * decay) as f32,
        };
        update.apply(&weight, &on(&gradient)?, &first, &second)?;
        for i in 0..N {
            let g = gradient[i] as f64 * scale;
            m[i] = beta1 * m[i] + (1.0 - beta1) * g;
            v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
            let (mean, square) = (m[i] / corrections.0, v[i] / corrections.1);
            w[i] -= rate * (mean / (square.sqrt() + epsilon) + decay * w[i]);
        }
        for (ours, want) in [(&weight, &w), (&first, &m), (&second, &v)] {
            check.met(relative_distance(&values(ours)?, want));
        }
    }
    Ok(check)
}
