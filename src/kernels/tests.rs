//! Every op against the same arithmetic composed from candle's own differentiable operations, on the CPU and, where there is
//! one, on a GPU.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::ops;

use super::*;

mod families;

/// Reproducible values between −1 and 1.
fn noise(shape: &[usize], seed: u32) -> Tensor {
    let mut x = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        (x >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// [`noise`] on a device.
fn noise_on(device: &Device, shape: &[usize], seed: u32) -> Tensor {
    noise(shape, seed).to_device(device).unwrap()
}

fn assert_close(got: &Tensor, want: &Tensor, what: &str) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (got, want) = (values(got), values(want));
    let largest = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    for (g, w) in got.iter().zip(&want) {
        // NaN is not close to anything.
        assert!((g - w).abs() <= 1e-5 * largest + 1e-6, "{what}: {g} instead of {w}, of at most {largest}");
    }
}

fn slot(t: &Tensor) -> GradSlot {
    GradSlot::of(t).unwrap()
}

fn gradient(slot: &GradSlot) -> Tensor {
    slot.tensor().copy().unwrap()
}

/// Compares the output and every input's gradient of a kernel on `device` with those of the `composed` graph on the CPU.
/// `fused` returns the output and, given ∂y, the gradients of its inputs.
fn agree(
    device: &Device,
    what: &str,
    inputs: &[Tensor],
    fused: impl Fn(&[Tensor], &dyn Fn(&Tensor) -> Tensor) -> Result<(Tensor, Vec<Tensor>)>,
    composed: impl Fn(&[Var]) -> Result<Tensor>,
) {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let there: Vec<Tensor> = inputs.iter().map(|t| t.to_device(device).unwrap()).collect();
    let (got, gradients) = fused(&there, &upstream).unwrap();
    let want = composed(&vars).unwrap();
    assert_close(&got, &want, what);
    let upstream = upstream(&want);
    let want = (want * upstream).unwrap().sum_all().unwrap().backward().unwrap();
    for (i, (got, var)) in gradients.iter().zip(&vars).enumerate() {
        assert_close(got, want.get(var).unwrap(), &format!("{what}: gradient of input {i}"));
    }
}

/// ∂y for an output.
fn upstream(y: &Tensor) -> Tensor {
    noise(y.dims(), 99).to_device(y.device()).unwrap()
}

/// Attention of one head over one span, with a mask of ordinary operations.
fn composed_attention(shape: &AttentionShape, spans: &[Span], v: &[Var]) -> Result<Tensor> {
    let (d, group) = (shape.head_dim, shape.heads / shape.kv_heads);
    let mut rows = vec![];
    for span in spans {
        let (nq, nk) = (span.q.len(), span.k.len());
        let mask: Vec<f32> = (0..nq)
            .flat_map(|i| {
                (0..nk).map(move |j| {
                    let last = i + nk - nq;
                    let seen = j <= last && shape.window.is_none_or(|w| last - j < w);
                    if seen { 0.0 } else { f32::NEG_INFINITY }
                })
            })
            .collect();
        let mask = Tensor::from_vec(mask, (nq, nk), &Device::Cpu)?;
        let heads = (0..shape.heads).map(|h| {
            let q = v[0].narrow(0, span.q.start, nq)?.narrow(1, h * d, d)?;
            let k = v[1].narrow(0, span.k.start, nk)?.narrow(1, h / group * d, d)?;
            let values = v[2].narrow(0, span.k.start, nk)?.narrow(1, h / group * d, d)?;
            let scores = (q.contiguous()?.matmul(&k.t()?.contiguous()?)? * shape.scale as f64)?;
            let scores = match shape.cap {
                Some(SoftCap(c)) => ((scores / c as f64)?.tanh()? * c as f64)?,
                None => scores,
            };
            ops::softmax(&(scores + &mask)?, 1)?.matmul(&values.contiguous()?)
        });
        rows.push(Tensor::cat(&heads.collect::<Result<Vec<_>>>()?, 1)?);
    }
    Tensor::cat(&rows, 0)
}

fn attention_agrees(device: &Device, shape: AttentionShape, spans: &[Span], queries: usize, keys: usize, what: &str) {
    let (wide, narrow) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let inputs = [noise(&[queries, wide], 1), noise(&[keys, narrow], 2), noise(&[keys, narrow], 3)];
    let fused = |v: &[Tensor], dy: &dyn Fn(&Tensor) -> Tensor| {
        let spans = Spans::new(spans.to_vec(), v[0].device())?;
        let (y, lse) = shape.forward(&spans, &v[0], &v[1], &v[2])?;
        let gradients = shape.backward(&spans, (&v[0], &v[1], &v[2]), (&y, &lse), &dy(&y))?;
        Ok((y, gradients.to_vec()))
    };
    agree(device, what, &inputs, fused, |v| composed_attention(&shape, spans, v));
}

crate::on_every_device! {
fn linear_equals_the_composed_product_with_and_without_bias(device) {
    for (rows, inner, outer) in [(1, 1, 1), (3, 5, 7), (33, 64, 17), (300, 40, 130)] {
        let (x, w, b) = (noise(&[rows, inner], 1), noise(&[outer, inner], 2), noise(&[outer], 3));
        for bias in [None, Some(b.clone())] {
            let there = |t: &Tensor| t.to_device(device).unwrap();
            let (dw, db) = (slot(&there(&w)), slot(&there(&b)));
            let layer = Linear {
                weight: Weight::Dense(there(&w)),
                bias: bias.as_ref().map(there),
                weight_grad: Some(dw.clone()),
                bias_grad: bias.as_ref().map(|_| db.clone()),
                adapter: None,
            };
            let (wv, bv) = (Var::from_tensor(&w).unwrap(), Var::from_tensor(&b).unwrap());
            let reference = |x: &Tensor| -> Result<Tensor> {
                let y = x.matmul(&wv.t()?)?;
                if bias.is_some() { y.broadcast_add(bv.as_tensor()) } else { Ok(y) }
            };
            let fused = |v: &[Tensor], dy: &dyn Fn(&Tensor) -> Tensor| {
                let y = layer.forward(&v[0], Precision::F32)?;
                let dx = layer.backward(&v[0], &dy(&y), None, Precision::F32)?;
                Ok((y, vec![dx]))
            };
            agree(device, "linear", std::slice::from_ref(&x), fused, |v| reference(&v[0]));
            let want = (reference(&x).unwrap() * noise(&[rows, outer], 99)).unwrap().sum_all().unwrap();
            let want = want.backward().unwrap();
            assert_close(&gradient(&dw), want.get(&wv).unwrap(), "dW");
            if bias.is_some() {
                assert_close(&gradient(&db), want.get(&bv).unwrap(), "db");
            }
        }
    }
}

fn linear_in_bf16_is_within_a_percent_of_f32_forward_and_backward(device) {
    for (rows, inner, outer) in [(3, 5, 7), (33, 64, 17), (301, 41, 130)] {
        let on = |shape: &[usize], seed| noise_on(device, shape, seed);
        let (x, w, dy) = (on(&[rows, inner], 1), on(&[outer, inner], 2), on(&[rows, outer], 3));
        let run = |precision: Precision| {
            let dw = slot(&w);
            let weight = Weight::Dense(w.clone());
            let layer = Linear { weight, bias: None, weight_grad: Some(dw.clone()), bias_grad: None, adapter: None };
            let y = layer.forward(&x, precision).unwrap();
            let dx = layer.backward(&x, &dy, None, precision).unwrap();
            [y, dx, gradient(&dw)]
        };
        for (half, full) in run(Precision::Bf16).iter().zip(run(Precision::F32)) {
            let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            assert!(norm(&(half - &full).unwrap()) <= 0.01 * norm(&full));
        }
    }
}

fn weight_gradients_accumulate_over_calls_and_frozen_layers_have_none(device) {
    let (x, w) = (noise_on(device, &[4, 3], 1), noise_on(device, &[2, 3], 2));
    let dw = slot(&w);
    let mut layer =
        Linear { weight: Weight::Dense(w.clone()), bias: None, weight_grad: Some(dw.clone()), bias_grad: None, adapter: None };
    let run = |layer: &Linear| layer.backward(&x, &noise_on(device, &[4, 2], 5), None, Precision::F32).unwrap();
    run(&layer);
    let once = gradient(&dw);
    run(&layer);
    assert_close(&gradient(&dw), &(&once * 2.0).unwrap(), "two calls");
    layer.weight_grad = None;
    run(&layer);
    assert_close(&gradient(&dw), &(&once * 2.0).unwrap(), "a frozen call");
}

fn a_low_rank_correction_has_the_values_and_gradients_of_the_formula(device) {
    let (x, w, a, b, bias) =
        (noise(&[33, 20], 1), noise(&[17, 20], 2), noise(&[4, 20], 3), noise(&[17, 4], 4), noise(&[17], 5));
    let there = |t: &Tensor| t.to_device(device).unwrap();
    let (da, db) = (slot(&there(&a)), slot(&there(&b)));
    let factor = |t: &Tensor, grad: &GradSlot| Linear {
        weight_grad: Some(grad.clone()),
        ..Linear::frozen(Weight::Dense(there(t)))
    };
    let adapter = Adapter { down: factor(&a, &da), up: factor(&b, &db), scale: 0.3 };
    let merged = Linear::frozen(Weight::Dense(adapter.merged(&there(&w)).unwrap()));
    let layer = Linear {
        bias: Some(there(&bias)),
        adapter: Some(adapter.into()),
        ..Linear::frozen(Weight::Dense(there(&w)))
    };
    let (av, bv) = (Var::from_tensor(&a).unwrap(), Var::from_tensor(&b).unwrap());
    let reference = |x: &Tensor| -> Result<Tensor> {
        let low = (x.matmul(&av.t()?)?.matmul(&bv.t()?)? * 0.3)?;
        (x.matmul(&w.t()?)? + low)?.broadcast_add(&bias)
    };
    let fused = |v: &[Tensor], dy: &dyn Fn(&Tensor) -> Tensor| {
        let y = layer.forward(&v[0], Precision::F32)?;
        let dx = layer.backward(&v[0], &dy(&y), None, Precision::F32)?;
        Ok((y, vec![dx]))
    };
    agree(device, "low rank", std::slice::from_ref(&x), fused, |v| reference(&v[0]));
    let want = (reference(&x).unwrap() * noise(&[33, 17], 99)).unwrap().sum_all().unwrap().backward().unwrap();
    assert_close(&gradient(&da), want.get(&av).unwrap(), "dA");
    assert_close(&gradient(&db), want.get(&bv).unwrap(), "dB");
    let (there, residual) = (there(&x), noise_on(device, &[33, 17], 6));
    let onto = layer.forward_onto(&there, &residual, Precision::F32).unwrap();
    let alone = layer.forward(&there, Precision::F32).unwrap();
    assert_close(&onto, &(&alone + residual).unwrap(), "residual");
    let bias = bias.to_device(device).unwrap();
    let merged = merged.forward(&there, Precision::F32).unwrap().broadcast_add(&bias).unwrap();
    assert_close(&merged, &alone, "merged");
}

fn rms_norm_equals_the_composed_formula_on_rows_and_on_heads(device) {
    for (rows, width, heads) in [(1, 4, 1), (7, 33, 1), (50, 64, 1), (150, 20, 1), (5, 8, 3)] {
        let (x, w) = (noise(&[rows, heads * width], 1), noise(&[width], 2));
        let (x_there, w_there) = (x.to_device(device).unwrap(), w.to_device(device).unwrap());
        let dw = slot(&w_there);
        let norm = RmsNorm { weight: w_there, offset: 0.0, epsilon: 1e-5, weight_grad: Some(dw.clone()) };
        let wv = Var::from_tensor(&w).unwrap();
        let reference = |x: &Tensor| -> Result<Tensor> {
            let x3 = x.reshape((rows, heads, width))?;
            let mean = (x3.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?;
            x3.broadcast_div(&mean.sqrt()?)?.broadcast_mul(wv.as_tensor())?.reshape((rows, heads * width))
        };
        let fused = |v: &[Tensor], dy: &dyn Fn(&Tensor) -> Tensor| {
            let y = norm.forward(&v[0])?;
            let dx = norm.backward(&v[0], &dy(&y), None)?;
            Ok((y, vec![dx]))
        };
        agree(device, "rms_norm", std::slice::from_ref(&x), fused, |v| reference(&v[0]));
        let once = gradient(&dw);
        let dy = upstream(&x_there);
        let onto = norm.backward(&x_there, &dy, Some(&x_there)).unwrap();
        assert_close(&(gradient(&dw) - &once).unwrap(), &once, "dw of two calls");
        let alone = norm.backward(&x_there, &dy, None).unwrap();
        assert_close(&(onto - alone).unwrap(), &x, "added to a residual");
        let want = (reference(&x).unwrap() * noise(x.dims(), 99)).unwrap().sum_all().unwrap().backward().unwrap();
        assert_close(&once, want.get(&wv).unwrap(), "dw");
    }
}

fn swiglu_equals_the_composed_formula(device) {
    for shape in [[1, 1], [3, 37], [40, 1000]] {
        let inputs = [(noise(&shape, 1) * 6.0).unwrap(), noise(&shape, 2)];
        let fused = |v: &[Tensor], dy: &dyn Fn(&Tensor) -> Tensor| {
            let y = swiglu(&v[0], &v[1])?;
            let (d_gate, d_up) = swiglu_backward(&v[0], &v[1], &dy(&y))?;
            Ok((y, vec![d_gate, d_up]))
        };
        agree(device, "swiglu", &inputs, fused, |v| v[0].silu()? * v[1].as_tensor());
    }
}

fn rope_equals_candles_differentiable_rope_at_any_position(device) {
    let (rows, heads, d) = (9, 3, 8);
    let frequencies: Vec<f32> = (0..d / 2).map(|i| 100f32.powf(-(2.0 * i as f32) / d as f32)).collect();
    let positions: Vec<u32> = (0..rows as u32).map(|p| p * 5 % 11).collect();
    let angles: Vec<f32> = positions.iter().flat_map(|&p| frequencies.iter().map(move |f| p as f32 * f)).collect();
    let angles = Tensor::from_vec(angles, (rows, d / 2), &Device::Cpu).unwrap();
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    let rope = Rope::new(&positions, &frequencies, device).unwrap();
    let composed = |x: &Tensor| {
        let x = x.reshape((1, rows, heads, d))?.transpose(1, 2)?.contiguous()?;
        candle_nn::rotary_emb::rope_slow(&x, &cos, &sin)?.transpose(1, 2)?.reshape((rows, heads * d))
    };
    let fused = |v: &[Tensor], dy: &dyn Fn(&Tensor) -> Tensor| {
        let y = rope.forward(&v[0])?;
        let dx = rope.backward(&dy(&y))?;
        Ok((y, vec![dx]))
    };
    agree(device, "rope", &[noise(&[rows, heads * d], 4)], fused, |v| composed(&v[0]));
}

fn attention_equals_the_composed_graph_for_every_grouping_window_and_row_length(device) {
    let lengths: [&[usize]; 3] = [&[1], &[5, 1, 70], &[150, 3]];
    for (heads, kv_heads, head_dim) in [(1, 1, 4), (4, 2, 8), (6, 2, 6), (3, 1, 16)] {
        for window in [None, Some(1), Some(4), Some(90), Some(i32::MAX as usize)] {
            for lengths in lengths {
                let shape = AttentionShape::new(heads, kv_heads, head_dim, window);
                let mut start = 0;
                let span = |n: &usize| {
                    start += n;
                    Span { q: start - n..start, k: start - n..start }
                };
                let spans: Vec<Span> = lengths.iter().map(span).collect();
                attention_agrees(device, shape, &spans, start, start, &format!("attention {shape:?} over {lengths:?}"));
            }
        }
    }
}

fn attention_of_chosen_queries_adds_up_over_the_keys_they_share(device) {
    // Two runs of one row, and a row with one query: keys overlap, and some are never asked for.
    let spans = [Span { q: 0..3, k: 0..5 }, Span { q: 3..80, k: 0..90 }, Span { q: 80..81, k: 95..103 }];
    for window in [None, Some(7)] {
        let shape = AttentionShape::new(4, 2, 8, window);
        attention_agrees(device, shape, &spans, 81, 110, &format!("runs with window {window:?}"));
    }
}

fn attention_of_many_single_queries_shares_the_gradients_of_their_keys(device) {
    let spans: Vec<Span> = (0..40).map(|i| Span { q: i..i + 1, k: 0..2 * i + 1 }).collect();
    let shape = AttentionShape::new(2, 1, 8, None);
    attention_agrees(device, shape, &spans, 40, 80, "single queries");
}

fn linear_adds_onto_a_residual_and_onto_a_gradient(device) {
    let on = |shape: &[usize], seed| noise_on(device, shape, seed);
    let (x, w, b, dy) = (on(&[9, 6], 1), on(&[5, 6], 2), on(&[5], 3), on(&[9, 5], 4));
    let (weight, residual) = (Weight::Dense(w), on(&[9, 5], 5));
    let layer = Linear { weight, bias: Some(b), weight_grad: None, bias_grad: None, adapter: None };
    let alone = layer.forward(&x, Precision::F32).unwrap();
    let onto = layer.forward_onto(&x, &residual, Precision::F32).unwrap();
    assert_close(&onto, &(alone + &residual).unwrap(), "residual");
    let alone = layer.backward(&x, &dy, None, Precision::F32).unwrap();
    let before = on(&[9, 6], 6);
    let onto = layer.backward(&x, &dy, Some(before.copy().unwrap()), Precision::F32).unwrap();
    assert_close(&onto, &(alone + before).unwrap(), "gradient");
}

fn attention_over_cached_keys_equals_the_end_of_a_whole_row(device) {
    let shape = AttentionShape::new(4, 2, 8, Some(20));
    let n = 90;
    let on = |shape: &[usize], seed| noise_on(device, shape, seed);
    let (q, k, v) = (on(&[n, 32], 1), on(&[n, 16], 2), on(&[n, 16], 3));
    let (whole, _) =
        shape.forward(&Spans::new(vec![Span { q: 0..n, k: 0..n }], device).unwrap(), &q, &k, &v).unwrap();
    let end = q.narrow(0, n - 5, 5).unwrap();
    let (last, _) =
        shape.forward(&Spans::new(vec![Span { q: 0..5, k: 0..n }], device).unwrap(), &end, &k, &v).unwrap();
    assert_close(&last, &whole.narrow(0, n - 5, 5).unwrap(), "the last five queries");
}

fn attention_of_heads_wider_than_a_warp_equals_the_composed_graph(device) {
    for (heads, kv_heads, head_dim, window) in [(2, 1, 34, None), (2, 1, 130, Some(20)), (2, 2, 64, Some(9)), (2, 1, 80, None), (1, 1, 256, None)] {
        let shape = AttentionShape::new(heads, kv_heads, head_dim, window);
        let spans = [Span { q: 0..35, k: 0..35 }, Span { q: 35..38, k: 35..38 }];
        attention_agrees(device, shape, &spans, 38, 38, &format!("attention {shape:?}"));
    }
}

fn adamw_and_sums_of_squares_equal_plain_loops(device) {
    for n in [1, 1000, 140_000] {
        let tensors: [Tensor; 4] = [1, 2, 3, 4].map(|seed| noise_on(device, &[n], seed));
        let [w, g, m, v] = &tensors;
        let v = v.abs().unwrap();
        let before = [w, g, m, &v].map(values);
        let update = AdamWUpdate {
            beta1: 0.9,
            beta2: 0.6,
            gradient_scale: 0.7,
            step_size: 0.1,
            inverse_correction2: 3.0,
            epsilon: 0.05,
            keep: 0.8,
        };
        let square = |x: &f32| (*x as f64).powi(2);
        let [of_w, of_g] = [0, 1].map(|i| before[i].iter().map(square).sum::<f64>());
        for (got, want) in sums_of_squares(&[w, g]).unwrap().iter().zip([of_w, of_g]) {
            assert!((got - want).abs() <= 1e-6 * want, "{got} instead of {want}");
        }
        update.apply(w, g, m, &v).unwrap();
        let mut want: [Vec<f32>; 3] = Default::default();
        let [w_before, g, m_before, v_before] = &before;
        for ((w, g), (m, v)) in w_before.iter().zip(g).zip(m_before.iter().zip(v_before)) {
            let g = 0.7 * g;
            let (m, v) = (0.9 * m + 0.1 * g, 0.6 * v + 0.4 * g * g);
            want[0].push(0.8 * w - 0.1 * m / (3.0 * v.sqrt() + 0.05));
            want[1].push(m);
            want[2].push(v);
        }
        for (got, want) in [w, m, &v].into_iter().zip(want) {
            assert_close(got, &Tensor::from_vec(want, n, &Device::Cpu).unwrap(), "adamw");
        }
    }
}

fn more_elements_than_a_grid_has_threads_are_all_computed(device) {
    let n = (1 << 20) + 300;
    let (gate, up) = (noise_on(device, &[1, n], 1), noise_on(device, &[1, n], 2));
    let tail = |t: &Tensor| t.narrow(1, n - 300, 300).unwrap().contiguous().unwrap();
    let small = swiglu(&tail(&gate), &tail(&up)).unwrap();
    assert_close(&tail(&swiglu(&gate, &up).unwrap()), &small, "the last elements");
}

fn embedding_rows_are_added_to_what_is_there(device) {
    let table = noise_on(device, &[3, 200], 1);
    let rows = noise_on(device, &[4, 200], 2);
    let row = |t: &Tensor, i: usize| t.narrow(0, i, 1).unwrap();
    let want = [
        (row(&table, 0) + row(&rows, 1)).unwrap(),
        row(&table, 1).copy().unwrap(),
        (((row(&table, 2) + row(&rows, 0)).unwrap() + row(&rows, 2)).unwrap() + row(&rows, 3)).unwrap(),
    ];
    add_rows(&table, &[2, 0, 2, 2], &rows).unwrap();
    assert_close(&table, &Tensor::cat(&want, 0).unwrap(), "sums");
}

fn embedding_rows_are_gathered_and_scattered_in_place(device) {
    let table = Tensor::new(&[[0.0f32, 1.0], [10.0, 11.0], [20.0, 21.0]], device).unwrap();
    let rows = gather(&table, &[2, 0, 2]).unwrap();
    assert_eq!(rows.to_vec2::<f32>().unwrap(), [[20.0, 21.0], [0.0, 1.0], [20.0, 21.0]]);
    let sums = table.zeros_like().unwrap();
    let rows = Tensor::new(&[[1.0f32, 2.0], [3.0, 4.0], [5.0, 6.0]], device).unwrap();
    add_rows(&sums, &[2, 0, 2], &rows).unwrap();
    assert_eq!(sums.to_vec2::<f32>().unwrap(), [[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]]);
}
}

#[test]
fn a_kernel_refuses_what_is_not_f32() {
    let x = noise(&[2, 3], 1).to_dtype(DType::F64).unwrap();
    let weight = Weight::Dense(noise(&[4, 3], 2));
    let layer = Linear { weight, bias: None, weight_grad: None, bias_grad: None, adapter: None };
    assert!(layer.forward(&x, Precision::F32).is_err());
}
