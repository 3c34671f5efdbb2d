//! The ops of Gemma and GPT-2. Those without a kernel on GPUs are tested on the CPU alone.

use super::*;

const CPU: Device = Device::Cpu;

/// GELU's tanh form in candle's own operations.
fn gelu_of(x: &Tensor) -> Result<Tensor> {
    let inner = (x + (x.powf(3.0)? * 0.044715)?)?;
    let inner = (inner * (2.0 / std::f64::consts::PI).sqrt())?;
    (x * 0.5)? * (inner.tanh()? + 1.0)?
}

#[test]
fn the_soft_cap_and_its_slope_are_those_of_tanh() {
    let x = (noise(&[3000], 1) * 40.0).unwrap();
    for c in [0.5f32, 30.0] {
        let cap = SoftCap(c);
        let fused = |v: &[Tensor], dy: &dyn Fn(&Tensor) -> Tensor| {
            let y = v[0].copy()?;
            cap.forward_tensor(&y)?;
            let (mut dx, dy) = (values(&y), values(&dy(&y)));
            cap.backward(&mut dx, &dy);
            Ok((y, vec![Tensor::from_vec(dx, 3000, &CPU)?]))
        };
        let c = c as f64;
        agree(&CPU, "soft cap", std::slice::from_ref(&x), fused, |v| (v[0].as_tensor() / c)?.tanh()? * c);
    }
}

#[test]
fn capped_attention_with_a_scale_of_its_own_equals_the_composed_graph() {
    let spans = [Span { q: 0..3, k: 0..5 }, Span { q: 3..80, k: 0..90 }, Span { q: 80..81, k: 95..103 }];
    for (scale, cap, window) in
        [(0.5, None, None), (0.5, Some(0.3), None), (2.0, Some(1.5), Some(7)), (0.01, Some(50.0), None)]
    {
        let shape = AttentionShape { scale, cap: cap.map(SoftCap), ..AttentionShape::new(4, 2, 8, window) };
        attention_agrees(&CPU, shape, &spans, 81, 110, &format!("{shape:?}"));
    }
}

crate::on_every_device! {
fn rms_norm_of_weights_around_zero_equals_that_of_weights_around_one(device) {
    let (x, w) = (noise_on(device, &[50, 3 * 20], 1), noise_on(device, &[20], 2));
    let run = |weight: &Tensor, offset: f32| {
        let dw = slot(weight);
        let norm = RmsNorm { weight: weight.clone(), offset, epsilon: 1e-6, weight_grad: Some(dw.clone()) };
        let y = norm.forward(&x).unwrap();
        let dx = norm.backward(&x, &upstream(&x), Some(&x)).unwrap();
        [y, dx, gradient(&dw)]
    };
    for (from_one, plain) in run(&w, 1.0).iter().zip(run(&(&w + 1.0).unwrap(), 0.0)) {
        assert_close(from_one, &plain, "weights around zero");
    }
}

fn gelu_and_geglu_equal_the_composed_formula(device) {
    for shape in [[1, 1], [3, 37], [40, 1000]] {
        let inputs = [(noise(&shape, 1) * 6.0).unwrap(), noise(&shape, 2)];
        let fused = |v: &[Tensor], dy: &dyn Fn(&Tensor) -> Tensor| {
            let y = gelu(&v[0])?;
            Ok((y.clone(), vec![gelu_backward(&v[0], &dy(&y))?]))
        };
        agree(device, "gelu", &inputs[..1], fused, |v| gelu_of(v[0].as_tensor()));
        let fused = |v: &[Tensor], dy: &dyn Fn(&Tensor) -> Tensor| {
            let y = geglu(&v[0], &v[1])?;
            let (d_gate, d_up) = geglu_backward(&v[0], &v[1], &dy(&y))?;
            Ok((y, vec![d_gate, d_up]))
        };
        agree(device, "geglu", &inputs, fused, |v| gelu_of(v[0].as_tensor())? * v[1].as_tensor());
    }
}

fn gelu_is_nothing_or_its_input_where_it_saturates(device) {
    let x = Tensor::new(&[-1e4f32, -40.0, -0.0, 40.0, 1e4], device).unwrap();
    let near = |got: Tensor, want: [f32; 5]| values(&got).iter().zip(want).all(|(g, w)| (g - w).abs() <= 1e-20);
    assert!(near(gelu(&x).unwrap(), [0.0, 0.0, 0.0, 40.0, 1e4]));
    assert!(near(gelu_backward(&x, &x.ones_like().unwrap()).unwrap(), [0.0, 0.0, 0.5, 1.0, 1.0]));
}

fn layer_norm_equals_the_composed_formula_also_far_from_zero(device) {
    for (rows, width, level) in [(1, 4, 0.0), (7, 33, 0.0), (50, 64, 20.0), (150, 20, -3.0)] {
        let x = (noise(&[rows, width], 1) + level).unwrap();
        let (w, b) = (noise(&[width], 2), noise(&[width], 3));
        let (x_there, w_there) = (x.to_device(device).unwrap(), w.to_device(device).unwrap());
        let b_there = b.to_device(device).unwrap();
        let (dw, db) = (slot(&w_there), slot(&b_there));
        let norm = LayerNorm {
            weight: w_there,
            bias: b_there,
            epsilon: 1e-5,
            weight_grad: Some(dw.clone()),
            bias_grad: Some(db.clone()),
        };
        let (wv, bv) = (Var::from_tensor(&w).unwrap(), Var::from_tensor(&b).unwrap());
        // In f64, or the reference's own rounding far from zero is what is measured.
        let reference = |x: &Tensor| -> Result<Tensor> {
            let x = x.to_dtype(DType::F64)?;
            let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
            let deviation = (x.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?.sqrt()?;
            let x = x.broadcast_div(&deviation)?.to_dtype(DType::F32)?;
            x.broadcast_mul(wv.as_tensor())?.broadcast_add(bv.as_tensor())
        };
        let fused = |v: &[Tensor], dy: &dyn Fn(&Tensor) -> Tensor| {
            let y = norm.forward(&v[0])?;
            let dx = norm.backward(&v[0], &dy(&y), None)?;
            Ok((y, vec![dx]))
        };
        agree(device, &format!("layer_norm around {level}"), std::slice::from_ref(&x), fused, |v| reference(&v[0]));
        let (dw_once, db_once) = (gradient(&dw), gradient(&db));
        let onto = norm.backward(&x_there, &upstream(&x_there), Some(&x_there)).unwrap();
        assert_close(&(gradient(&dw) - &dw_once).unwrap(), &dw_once, "dw of two calls");
        let alone = norm.backward(&x_there, &upstream(&x_there), None).unwrap();
        assert_close(&onto, &(alone + &x_there).unwrap(), "added to a residual");
        let want = (reference(&x).unwrap() * upstream(&x)).unwrap().sum_all().unwrap().backward().unwrap();
        assert_close(&dw_once, want.get(&wv).unwrap(), "dw");
        assert_close(&db_once, want.get(&bv).unwrap(), "db");
    }
}
}
