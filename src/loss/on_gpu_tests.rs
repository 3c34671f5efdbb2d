//! The GPU's rows against the CPU's, which the goldens and finite differences hold.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::{
    Counts, Divergence, ForwardKl, Jsd, LogitRow, Objective, Part, Ramp, ReverseKl, SkewKl, SkewReverseKl, StudentHead,
    Terms, Tvd, cross_entropy_row,
};
use crate::corpus::{Batch, Row, RowRef};
use crate::device;
use crate::kernels::{GradSlot, Precision, RowScales, TeacherRows, cross_entropy_rows};
use crate::signal::{SampledRow, TeacherSignal, TopKRow};

/// Reproducible logits between −4 and 4.
fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut x = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        (x >> 8) as f32 / (1u32 << 21) as f32 - 4.0
    };
    (0..n).map(|_| next()).collect()
}

/// Rows of one shape, and what the CPU makes of them: divergences, cross-entropies and gradients.
struct Rows {
    teacher: Vec<f32>,
    student: Vec<f32>,
    labels: Vec<u32>,
    vocab: usize,
    teacher_vocab: usize,
}

impl Rows {
    fn new(rows: usize, vocab: usize, teacher_vocab: usize) -> Self {
        let labels = (0..rows).map(|n| ((n * 7919) % vocab.min(teacher_vocab)) as u32).collect();
        Self { teacher: noise(rows * teacher_vocab, 1), student: noise(rows * vocab, 2), labels, vocab, teacher_vocab }
    }

    fn on_the_cpu(&self, divergence: &dyn Divergence, scales: RowScales) -> (Vec<[f32; 2]>, Vec<f32>) {
        let (mut sums, mut gradients) = (vec![], vec![]);
        let rows = self.teacher.chunks(self.teacher_vocab).zip(self.student.chunks(self.vocab));
        for ((teacher, student), &label) in rows.zip(&self.labels) {
            let mut gradient = vec![0.0; self.vocab];
            let p = LogitRow::new(&teacher[..self.vocab.min(self.teacher_vocab)], scales.inverse_temperature);
            let q = LogitRow::new(student, scales.inverse_temperature);
            let kl = divergence.row(p, q, Some((&mut gradient, scales.divergence)));
            let hard = (scales.label > 0.0).then_some((gradient.as_mut_slice(), scales.label));
            let ce = cross_entropy_row(LogitRow::new(student, 1.0), label, hard);
            sums.push([kl as f32, ce as f32]);
            gradients.extend(gradient);
        }
        (sums, gradients)
    }

    fn tensor(values: &[f32], width: usize, device: &Device) -> Tensor {
        Tensor::from_slice(values, (values.len() / width, width), device).unwrap()
    }

    /// As [`Self::on_the_cpu`], from logits of `dtype`.
    fn on_a_gpu(
        &self,
        divergence: &dyn Divergence,
        scales: RowScales,
        dtype: DType,
        device: &Device,
    ) -> (Vec<[f32; 2]>, Vec<f32>) {
        let logits = |values, width| Self::tensor(values, width, device).to_dtype(dtype).unwrap();
        let (teacher, student) = (logits(&self.teacher, self.teacher_vocab), logits(&self.student, self.vocab));
        let labels = Tensor::new(&self.labels[..], device).unwrap();
        let said = divergence.rows_on_gpu(&TeacherRows::Logits(teacher), &student, &labels, scales).unwrap();
        (pairs(&said.sums), values(&student))
    }
}

/// Those whose kernel is the one of terms, of two parameters where they have one.
fn others() -> Vec<Box<dyn Divergence>> {
    vec![
        Box::new(Terms(ReverseKl)),
        Box::new(Terms(Jsd::new(0.5, false))),
        Box::new(Terms(Jsd::new(0.1, true))),
        Box::new(Terms(SkewKl { lambda: 0.1 })),
        Box::new(Terms(SkewKl { lambda: 0.6 })),
        Box::new(Terms(SkewReverseKl { lambda: 0.1 })),
        Box::new(Terms(SkewReverseKl { lambda: 0.6 })),
        Box::new(Terms(Tvd)),
    ]
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn pairs(sums: &Tensor) -> Vec<[f32; 2]> {
    values(sums).chunks(2).map(|pair| [pair[0], pair[1]]).collect()
}

fn scales(temperature: f32, label: f32) -> RowScales {
    RowScales { inverse_temperature: 1.0 / temperature, divergence: 0.7, label }
}

fn assert_near(got: &[f32], want: &[f32], relative: f32, absolute: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().filter(|x| x.is_finite()).fold(0.0f32, |m, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let near = g == w || (g - w).abs() <= relative * largest + absolute;
        assert!(near, "{what}: {g} instead of {w} at {i}, of at most {largest}");
    }
}

fn assert_agree(got: (Vec<[f32; 2]>, Vec<f32>), want: (Vec<[f32; 2]>, Vec<f32>), relative: f32, what: &str) {
    // Values are differences of log-sums around 10: their rounding does not shrink with them.
    assert_near(got.0.as_flattened(), want.0.as_flattened(), relative, 3e-6, &format!("{what}: sums"));
    assert_near(&got.1, &want.1, relative, 1e-9, &format!("{what}: gradient"));
}

/// (rows, student's vocabulary, teacher's): around warps, blocks and vectors, either one longer.
const SHAPES: [(usize, usize, usize); 7] =
    [(3, 1, 1), (5, 33, 33), (2, 257, 257), (3, 2052, 2052), (3, 260, 256), (3, 260, 257), (2, 256, 260)];

fn assert_whole_rows_agree(
    divergences: &[Box<dyn Divergence>],
    shapes: &[(usize, usize, usize)],
    scales: &[RowScales],
    device: &Device,
) {
    for &(rows, vocab, teacher_vocab) in SHAPES.iter().chain(shapes) {
        let all = Rows::new(rows, vocab, teacher_vocab);
        for (d, &scales) in divergences.iter().flat_map(|d| scales.iter().map(move |scales| (d, scales))) {
            let got = all.on_a_gpu(&**d, scales, DType::F32, device);
            let what = format!("{} {vocab} of {teacher_vocab}, {scales:?}", d.name());
            assert_agree(got, all.on_the_cpu(&**d, scales), 1e-5, &what);
        }
    }
}

#[test]
fn forward_kl_on_a_gpu_equals_the_cpus_for_every_width_and_temperature() {
    let Some(device) = device::for_tests() else { return };
    let more = [(4, 2, 2), (3, 31, 31), (1, 151_936, 151_669)];
    let scales = [scales(1.0, 0.0), scales(4.0, 0.0), scales(1.0, 0.3), scales(2.5, 0.3)];
    assert_whole_rows_agree(&[Box::new(ForwardKl)], &more, &scales, &device);
}

#[test]
fn every_other_divergence_on_a_gpu_equals_the_cpus() {
    let Some(device) = device::for_tests() else { return };
    assert_whole_rows_agree(&others(), &[(1, 5003, 4999)], &[scales(1.0, 0.0), scales(2.5, 0.3)], &device);
}

#[test]
fn every_other_divergence_of_impossible_tokens_on_a_gpu_is_the_cpus() {
    let Some(device) = device::for_tests() else { return };
    let mut all = Rows::new(4, 301, 301);
    all.teacher.iter_mut().step_by(3).for_each(|y| *y = f32::NEG_INFINITY);
    // Below what the CPU's exponential tells from 0, and the other side certain of one token.
    all.teacher.iter_mut().skip(1).step_by(7).for_each(|y| *y = -200.0);
    all.student.iter_mut().skip(2).step_by(5).for_each(|z| *z -= 120.0);
    (all.student[7], all.teacher[301 + 11]) = (60.0, 60.0);
    // The last: both sides exclude a token.
    (all.teacher[3 * 301 + 1], all.student[3 * 301 + 1]) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (d, scales) in others().iter().flat_map(|d| [scales(1.0, 0.0), scales(2.0, 0.5)].map(|s| (d, s))) {
        let got = all.on_a_gpu(&**d, scales, DType::F32, &device);
        assert!(got.1.iter().chain(got.0.as_flattened()).all(|x| x.is_finite()), "{}", d.name());
        assert_agree(got, all.on_the_cpu(&**d, scales), 1e-5, &format!("{}, {scales:?}", d.name()));
    }
}

#[test]
fn every_other_divergence_on_a_gpu_is_exactly_0_where_p_is_q_and_blind_to_constants() {
    let Some(device) = device::for_tests() else { return };
    for d in others() {
        let mut all = Rows::new(3, 257, 257);
        all.teacher.iter_mut().chain(&mut all.student).for_each(|x| *x = (*x * 64.0).round() / 64.0);
        let want = all.on_a_gpu(&*d, scales(4.0, 0.3), DType::F32, &device);
        all.teacher.iter_mut().chain(&mut all.student).for_each(|x| *x += 65_536.0);
        assert_agree(all.on_a_gpu(&*d, scales(4.0, 0.3), DType::F32, &device), want, 1e-6, d.name());
        all.student = all.teacher.clone();
        let (sums, gradient) = all.on_a_gpu(&*d, scales(2.0, 0.0), DType::F32, &device);
        assert!(sums.iter().all(|s| s[0] == 0.0) && gradient.iter().all(|g| g.abs() < 1e-8), "{}: {sums:?}", d.name());
    }
}

#[test]
fn impossible_tokens_and_large_logits_on_a_gpu_are_those_of_the_cpu() {
    let Some(device) = device::for_tests() else { return };
    let mut all = Rows::new(4, 301, 301);
    all.teacher.iter_mut().step_by(3).for_each(|y| *y = f32::NEG_INFINITY);
    all.teacher.iter_mut().skip(1).step_by(5).for_each(|y| *y *= 2500.0);
    all.student.iter_mut().step_by(7).for_each(|z| *z *= 2500.0);
    for scales in [scales(1.0, 0.0), scales(4.0, 0.5)] {
        assert_agree(
            all.on_a_gpu(&ForwardKl, scales, DType::F32, &device),
            all.on_the_cpu(&ForwardKl, scales),
            1e-5,
            "extremes",
        );
    }
    // Where the student excludes what the teacher expects, the divergence is infinite and the gradient is not.
    let mut all = Rows::new(1, 301, 301);
    all.student[2] = f32::NEG_INFINITY;
    let (sums, gradient) = all.on_a_gpu(&ForwardKl, scales(1.0, 0.0), DType::F32, &device);
    assert!(sums[0][0] == f32::INFINITY && gradient.iter().all(|g| g.is_finite()), "{sums:?}");
}

#[test]
fn the_largest_logit_on_a_gpu_may_stand_anywhere_and_be_of_any_size() {
    let Some(device) = device::for_tests() else { return };
    for shift in [0.0, -1000.0] {
        for at in [0, 31, 700, 2047, 2051] {
            let mut all = Rows::new(2, 2052, 2052);
            (all.teacher[at], all.student[2052 + at]) = (200.0, 200.0);
            all.teacher.iter_mut().chain(&mut all.student).for_each(|x| *x += shift);
            let scales = scales(1.0, 0.3);
            // At 1000 the logits' own rounding is 6e-5, and so is that of their log-sums.
            let got = all.on_a_gpu(&ForwardKl, scales, DType::F32, &device);
            assert_agree(got, all.on_the_cpu(&ForwardKl, scales), 1e-4, &format!("{at}, {shift}"));
        }
    }
}

#[test]
fn a_student_that_is_its_teacher_has_exactly_nothing_to_learn_on_a_gpu() {
    let Some(device) = device::for_tests() else { return };
    for vocab in [33, 4096] {
        let mut all = Rows::new(3, vocab, vocab);
        all.student = all.teacher.clone();
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let (sums, gradient) = all.on_a_gpu(&ForwardKl, scales(2.0, 0.0), dtype, &device);
            assert!(sums.iter().all(|s| s[0] == 0.0) && gradient.iter().all(|&g| g == 0.0), "{dtype:?}: {sums:?}");
        }
    }
}

#[test]
fn a_constant_added_to_large_logits_changes_nothing_on_a_gpu() {
    let Some(device) = device::for_tests() else { return };
    let mut all = Rows::new(3, 257, 257);
    // Multiples of 1/64: the sums with the constant are exact.
    all.teacher.iter_mut().chain(&mut all.student).for_each(|x| *x = (*x * 64.0).round() / 64.0);
    let want = all.on_a_gpu(&ForwardKl, scales(4.0, 0.3), DType::F32, &device);
    all.teacher.iter_mut().chain(&mut all.student).for_each(|x| *x += 65_536.0);
    assert_agree(all.on_a_gpu(&ForwardKl, scales(4.0, 0.3), DType::F32, &device), want, 1e-6, "65,536 more");
}

#[test]
fn half_precision_logits_on_a_gpu_are_summed_in_f32() {
    let Some(device) = device::for_tests() else { return };
    for (dtype, relative) in [(DType::BF16, 8e-3), (DType::F16, 1e-3)] {
        for vocab in [31, 4100] {
            let mut all = Rows::new(3, vocab, vocab);
            let got = all.on_a_gpu(&ForwardKl, scales(2.0, 0.3), dtype, &device);
            // What the kernel reads is rounded; what it adds up is not.
            let rounded = |x: &Vec<f32>| values(&Rows::tensor(x, vocab, &Device::Cpu).to_dtype(dtype).unwrap());
            (all.teacher, all.student) = (rounded(&all.teacher), rounded(&all.student));
            let want = all.on_the_cpu(&ForwardKl, scales(2.0, 0.3));
            assert_near(got.0.as_flattened(), want.0.as_flattened(), 1e-5, 3e-6, "sums");
            assert_near(&got.1, &want.1, relative, 0.0, "gradient");
        }
    }
}

#[test]
fn a_broken_teacher_row_is_told_apart_on_a_gpu() {
    let Some(device) = device::for_tests() else { return };
    // In rows that start at multiples of 16 bytes, and in others.
    for (bad, vocab) in [(f32::NAN, 40), (f32::INFINITY, 40), (f32::NAN, 41), (f32::INFINITY, 41)] {
        let mut all = Rows::new(3, vocab, vocab);
        all.teacher[vocab + 5] = bad;
        let teacher = TeacherRows::Logits(Rows::tensor(&all.teacher, vocab, &device));
        let labels = Tensor::new(&all.labels[..], &device).unwrap();
        let kl: Box<dyn Divergence> = Box::new(ForwardKl);
        for d in others().into_iter().chain([kl]) {
            let student = Rows::tensor(&all.student, vocab, &device);
            let said = d.rows_on_gpu(&teacher, &student, &labels, scales(1.0, 0.0)).unwrap();
            let log_sums = values(&said.teacher_log_sum_exp.unwrap());
            let finite: Vec<bool> = log_sums.iter().map(|x| x.is_finite()).collect();
            assert_eq!(finite, [true, false, true], "{}", d.name());
        }
    }
}

#[test]
fn cross_entropy_on_a_gpu_equals_the_cpus() {
    let Some(device) = device::for_tests() else { return };
    for vocab in [1, 2, 33, 2048, 2051] {
        let all = Rows::new(3, vocab, vocab);
        let student = Rows::tensor(&all.student, vocab, &device);
        let labels = Tensor::new(&all.labels[..], &device).unwrap();
        let said = cross_entropy_rows(&student, &labels, 0.4).unwrap();
        let none = RowScales { inverse_temperature: 1.0, divergence: 0.0, label: 0.4 };
        let (mut sums, gradient) = all.on_the_cpu(&ForwardKl, none);
        sums.iter_mut().for_each(|s| s[0] = 0.0);
        assert_agree((pairs(&said.sums), values(&student)), (sums, gradient), 1e-5, &format!("{vocab}"));
    }
}

#[test]
fn the_likeliest_tokens_and_a_bucket_on_a_gpu_equal_the_cpus() {
    let Some(device) = device::for_tests() else { return };
    for (vocab, k) in [(2, 1), (40, 1), (40, 40), (301, 7), (5000, 64), (5000, 900)] {
        let all = Rows::new(3, vocab, vocab);
        for scales in [scales(1.0, 0.0), scales(4.0, 0.0), scales(2.0, 0.3)] {
            assert_top_k_agrees(&ForwardKl, &all, k, scales, &device);
        }
        for (d, scales) in others().iter().flat_map(|d| [scales(1.0, 0.0), scales(2.0, 0.3)].map(|s| (d, s))) {
            assert_top_k_agrees(&**d, &all, k, scales, &device);
        }
    }
}

#[test]
fn a_student_that_is_sure_or_excludes_all_others_is_the_same_on_a_gpu() {
    let Some(device) = device::for_tests() else { return };
    for (vocab, k) in [(40, 30), (301, 7)] {
        for logit in [-40.0, f32::NEG_INFINITY] {
            let mut all = Rows::new(3, vocab, vocab);
            for (teacher, student) in all.teacher.chunks(vocab).zip(all.student.chunks_mut(vocab)) {
                likeliest(teacher)[k..].iter().for_each(|&i| student[i as usize] = logit);
            }
            let kl: Box<dyn Divergence> = Box::new(ForwardKl);
            for d in others().into_iter().chain([kl]) {
                assert_top_k_agrees(&*d, &all, k, scales(1.0, 0.0), &device);
                assert_top_k_agrees(&*d, &all, k, scales(2.0, 0.0), &device);
            }
        }
    }
}

#[test]
fn known_tokens_that_are_impossible_are_the_same_on_a_gpu() {
    let Some(device) = device::for_tests() else { return };
    let mut all = Rows::new(3, 40, 40);
    all.teacher.iter_mut().enumerate().filter(|(i, _)| i % 40 > 4).for_each(|(_, y)| *y = f32::NEG_INFINITY);
    let kl: Box<dyn Divergence> = Box::new(ForwardKl);
    for d in others().into_iter().chain([kl]) {
        assert_top_k_agrees(&*d, &all, 9, scales(2.0, 0.3), &device);
    }
}

/// Token ids by falling logit.
fn likeliest(teacher: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..teacher.len() as u32).collect();
    order.sort_by(|&a, &b| teacher[b as usize].total_cmp(&teacher[a as usize]));
    order
}

/// Keeps the teacher's k likeliest tokens and the mass of the others, and then without it.
fn assert_top_k_agrees(divergence: &dyn Divergence, all: &Rows, k: usize, scales: RowScales, device: &Device) {
    for bucket in [true, false] {
        assert_this_top_k_agrees(divergence, all, k, bucket, scales, device);
    }
}

fn assert_this_top_k_agrees(
    divergence: &dyn Divergence,
    all: &Rows,
    k: usize,
    bucket: bool,
    scales: RowScales,
    device: &Device,
) {
    let vocab = all.vocab;
    let (mut ids, mut log_p, mut tails, mut sums, mut gradients) = (vec![], vec![], vec![], vec![], vec![]);
    for (n, (teacher, student)) in all.teacher.chunks(vocab).zip(all.student.chunks(vocab)).enumerate() {
        let order = likeliest(teacher);
        let p = LogitRow::new(teacher, 1.0);
        let tempered = LogitRow::new(teacher, scales.inverse_temperature);
        let others: f64 = order[k..].iter().map(|&i| (tempered.log_probability(i as usize) as f64).exp()).sum();
        let known = order[..k].to_vec();
        let of_known: Vec<f32> = known.iter().map(|&i| p.log_probability(i as usize)).collect();
        let row = TopKRow { ids: &known, log_probabilities: &of_known, log_tail: bucket.then_some(others.ln() as f32) };
        let mut gradient = vec![0.0; vocab];
        let q = LogitRow::new(student, scales.inverse_temperature);
        let kl = divergence.top_k_row(row, q, Some((&mut gradient, scales.divergence)));
        let hard = (scales.label > 0.0).then_some((gradient.as_mut_slice(), scales.label));
        let ce = cross_entropy_row(LogitRow::new(student, 1.0), all.labels[n], hard);
        sums.push([kl as f32, ce as f32]);
        gradients.extend(gradient);
        tails.extend(row.log_tail);
        ids.extend(known);
        log_p.extend(of_known);
    }
    let teacher = TeacherRows::TopK {
        ids: Tensor::from_vec(ids, (3, k), device).unwrap(),
        log_probabilities: Tensor::from_vec(log_p, (3, k), device).unwrap(),
        log_tails: bucket.then(|| Tensor::from_vec(tails, 3, device).unwrap()),
    };
    let student = Rows::tensor(&all.student, vocab, device);
    let labels = Tensor::new(&all.labels[..], device).unwrap();
    let said = divergence.rows_on_gpu(&teacher, &student, &labels, scales).unwrap();
    let what = format!("{} {k} of {vocab}, bucket {bucket}, {scales:?}", divergence.name());
    assert_near(pairs(&said.sums).as_flattened(), sums.as_flattened(), 2e-5, 3e-6, &what);
    // But for forward KL, a gradient is a difference of numbers up to 1, which round to 6e-8.
    let absolute = if divergence.name() == ForwardKl.name() { 1e-9 } else { 5e-8 };
    assert_near(&values(&student), &gradients, 2e-5, absolute, &what);
}

#[test]
fn draws_give_the_loss_and_gradient_of_the_cpu_on_a_gpu() {
    let Some(device) = device::for_tests() else { return };
    for (vocab, draws) in [(17, 5), (300, 40), (5000, 900)] {
        let all = Rows::new(3, vocab, vocab);
        for scales in [scales(1.0, 0.0), scales(1.0, 0.3), scales(2.0, 0.0), scales(2.0, 0.3)] {
            let kl: Box<dyn Divergence> = Box::new(ForwardKl);
            for d in others().into_iter().chain([kl]).filter(|d| d.takes_draws()) {
                assert_draws_agree(&*d, &all, draws, scales, &device);
            }
        }
    }
}

/// Weights that do not add up to 1, and a different number of tokens in each row: the rest is padding.
fn assert_draws_agree(divergence: &dyn Divergence, all: &Rows, draws: usize, scales: RowScales, device: &Device) {
    let vocab = all.vocab;
    let (mut ids, mut log_p, mut weights, mut sums, mut gradients) = (vec![], vec![], vec![], vec![], vec![]);
    for (n, (teacher, student)) in all.teacher.chunks(vocab).zip(all.student.chunks(vocab)).enumerate() {
        let p = LogitRow::new(teacher, scales.inverse_temperature);
        // Token 0, which padding names too, is among them.
        let drawn: Vec<u32> = (0..draws - n).map(|i| ((i * 3) % vocab) as u32).collect();
        let of_drawn: Vec<f32> = drawn.iter().map(|&i| p.log_probability(i as usize)).collect();
        let counts: Vec<f32> = (0..drawn.len()).map(|i| (1 + i % 3) as f32 / draws as f32).collect();
        let row = SampledRow { ids: &drawn, log_probabilities: &of_drawn, weights: &counts };
        let mut gradient = vec![0.0; vocab];
        let q = LogitRow::new(student, scales.inverse_temperature);
        let kl = divergence.sampled_row(row, q, Some((&mut gradient, scales.divergence)));
        let hard = (scales.label > 0.0).then_some((gradient.as_mut_slice(), scales.label));
        let ce = cross_entropy_row(LogitRow::new(student, 1.0), all.labels[n], hard);
        sums.push([kl as f32, ce as f32]);
        gradients.extend(gradient);
        let end = (n + 1) * draws;
        ids.extend(&drawn);
        log_p.extend(&of_drawn);
        weights.extend(&counts);
        ids.resize(end, 0);
        log_p.resize(end, 0.0);
        weights.resize(end, 0.0);
    }
    let teacher = TeacherRows::Sampled {
        ids: Tensor::from_vec(ids, (3, draws), device).unwrap(),
        log_probabilities: Tensor::from_vec(log_p, (3, draws), device).unwrap(),
        weights: Tensor::from_vec(weights, (3, draws), device).unwrap(),
    };
    let student = Rows::tensor(&all.student, vocab, device);
    let labels = Tensor::new(&all.labels[..], device).unwrap();
    let said = divergence.rows_on_gpu(&teacher, &student, &labels, scales).unwrap();
    let what = format!("{} {draws} draws of {vocab}, {scales:?}", divergence.name());
    assert_agree((pairs(&said.sums), values(&student)), (sums, gradients), 2e-5, &what);
}

#[test]
fn a_mixture_with_labels_is_the_cpus_on_a_gpu_and_what_the_student_wrote_is_no_label() {
    let Some(device) = device::for_tests() else { return };
    let (n, width, vocab) = (7, 8, 300);
    let tensor = |rows: usize, columns: usize, seed, device: &Device| {
        Tensor::from_vec(noise(rows * columns, seed), (rows, columns), device).unwrap()
    };
    let tokens: Vec<u32> = (0..=n as u32).map(|t| t * 37 % vocab as u32).collect();
    let source = RowRef { digest: [0; 32], file: Arc::new(PathBuf::from("test.jsonl")), line: 1 };
    let row = Row { targets: (0..=n).map(|t| t > 0).collect(), tokens, source };
    for generated in [false, true] {
        let batch = Batch { generated, ..Batch::new([&row]) };
        let outcome = |device: &Device| {
            let part = |name: &str, weight, divergence| Part { name: name.into(), weight, divergence };
            let parts = vec![
                part("kl", 0.7, Box::new(ForwardKl) as Box<dyn Divergence>),
                part("jsd", 2.0, Box::new(Terms(Jsd::new(0.3, false)))),
                part("tvd", 0.5, Box::new(Terms(Tvd))),
            ];
            let mut objective = Objective::mixed(parts, Ramp::Constant(2.0), Ramp::Constant(0.25), true);
            objective = objective.with_rows_per_chunk(3);
            let (hidden, weight) = (tensor(n, width, 3, device), tensor(vocab, width, 4, device));
            let slot = GradSlot::of(&weight).unwrap();
            let head = StudentHead { weight: &weight, grad: Some(&slot), precision: Precision::F32, cap: None };
            let signal = TeacherSignal::Dense { logits: noise(n * vocab, 5), vocab_size: vocab };
            let out = objective.run(&hidden, &head, Some(&signal), &batch, Counts { targets: 20, labels: 9 }).unwrap();
            (out.sums, values(&out.d_hidden), values(slot.tensor()))
        };
        let ((sums, d_hidden, d_head), (want, want_hidden, want_head)) = (outcome(&device), outcome(&Device::Cpu));
        assert_eq!((sums.targets, sums.labels, sums.cross_entropy.is_none()), (n, want.labels, generated));
        for (got, want) in sums.divergences.iter().zip(&want.divergences) {
            assert!((got - want).abs() <= 1e-5 * want, "{got} instead of {want}");
        }
        assert_near(&d_hidden, &want_hidden, 1e-4, 1e-6, "states");
        assert_near(&d_head, &want_head, 1e-4, 1e-6, "head");
    }
}
