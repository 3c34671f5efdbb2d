//! Losses against closed forms, float64 references and finite differences.

use std::path::Path;

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use distill::corpus::{Batch, Row, RowRef};
use distill::kernels::{GradSlot, Precision};
use distill::loss::{
    Counts, Divergence, ForwardKl, Jsd, LogitRow, Objective, Part, Path as Way, Ramp, ReverseKl, SkewKl, SkewReverseKl,
    StudentHead, Sums, Terms, Tvd, cross_entropy_row,
};
use distill::signal::{TeacherSignal, TopKRow};

const TEACHER: [[f32; 4]; 2] = [[2.0, 1.0, 0.0, -1.0], [0.5, -0.5, 3.0, 0.0]];
const STUDENT: [[f32; 4]; 2] = [[1.0, 1.0, 0.5, -0.5], [0.0, 0.0, 1.0, 2.0]];
const LABELS: [u32; 2] = [0, 2];

fn kl(p: &[f32], q: &[f32], t: f32) -> f64 {
    ForwardKl.row(LogitRow::new(p, 1.0 / t), LogitRow::new(q, 1.0 / t), None)
}

fn kl_gradient(p: &[f32], q: &[f32], t: f32, scale: f32) -> Vec<f32> {
    let mut gradient = vec![0.0; q.len()];
    ForwardKl.row(LogitRow::new(p, 1.0 / t), LogitRow::new(q, 1.0 / t), Some((&mut gradient, scale)));
    gradient
}

fn mean_kl(t: f32) -> f64 {
    TEACHER.iter().zip(&STUDENT).map(|(p, q)| kl(p, q, t)).sum::<f64>() / 2.0
}

/// Logits between −3.5 and 3.5.
fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut x = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        (x >> 8) as f32 / (1u32 << 24) as f32 * 7.0 - 3.5
    };
    (0..n).map(|_| next()).collect()
}

/// Every divergence but forward KL, by its name among the goldens.
fn every_divergence() -> Vec<(String, Box<dyn Divergence>)> {
    let mut all: Vec<(String, Box<dyn Divergence>)> =
        vec![("reverse_kl".into(), Box::new(Terms(ReverseKl))), ("tvd".into(), Box::new(Terms(Tvd)))];
    for beta in [0.1, 0.5, 0.9] {
        all.push((format!("jsd_{beta}"), Box::new(Terms(Jsd::new(beta, false)))));
    }
    for lambda in [0.1, 0.5] {
        all.push((format!("skew_kl_{lambda}"), Box::new(Terms(SkewKl { lambda }))));
        all.push((format!("skew_reverse_kl_{lambda}"), Box::new(Terms(SkewReverseKl { lambda }))));
    }
    all
}

fn value(divergence: &dyn Divergence, p: &[f32], q: &[f32], t: f32) -> f64 {
    divergence.row(LogitRow::new(p, 1.0 / t), LogitRow::new(q, 1.0 / t), None)
}

fn gradient(divergence: &dyn Divergence, p: &[f32], q: &[f32], t: f32) -> Vec<f32> {
    let mut gradient = vec![0.0; q.len()];
    divergence.row(LogitRow::new(p, 1.0 / t), LogitRow::new(q, 1.0 / t), Some((&mut gradient, 1.0)));
    gradient
}

#[test]
fn every_divergence_has_its_reference_values() {
    let of = |name: &str| every_divergence().into_iter().find(|(n, _)| n == name).unwrap().1;
    let mean = |name: &str, t: f32| {
        let divergence = of(name);
        TEACHER.iter().zip(&STUDENT).map(|(p, q)| value(&*divergence, p, q, t)).sum::<f64>() / 2.0
    };
    for (got, want) in [
        (mean("reverse_kl", 1.0), 0.810592984),
        (mean("reverse_kl", 2.0), 0.194209807),
        (mean("jsd_0.1", 1.0), 0.052741696),
        (mean("jsd_0.5", 1.0), 0.150464957),
        (mean("jsd_0.9", 1.0), 0.064852385),
        (mean("jsd_0.5", 2.0), 0.045129015),
        (mean("tvd", 1.0), 0.463266772),
        (mean("skew_kl_0.1", 1.0), 0.471189277),
        (mean("skew_reverse_kl_0.1", 1.0), 0.532688314),
    ] {
        assert!((got - want).abs() < 3e-7, "{got} instead of {want}");
    }
    let reverse = gradient(&*of("reverse_kl"), &TEACHER[0], &STUDENT[0], 1.0);
    for (got, want) in reverse.iter().zip([-0.140158407, 0.036541216, 0.075750237, 0.027866955]) {
        assert!((*got as f64 / 2.0 - want).abs() < 1e-7, "{got} instead of {want}");
    }
}

#[test]
fn every_divergence_is_zero_at_p_equals_q_bounded_and_blind_to_constants() {
    for (name, divergence) in every_divergence() {
        for n in [1, 2, 31, 33, 1000, 50_000] {
            let (p, q) = (noise(n, 1), noise(n, 2));
            for t in [1.0, 4.0] {
                assert_eq!(value(&*divergence, &p, &p, t), 0.0, "{name} of {n}");
                let at_zero = gradient(&*divergence, &p, &p, t);
                assert!(at_zero.iter().all(|g| g.abs() < 1e-7), "{name} of {n}");
                let d = value(&*divergence, &p, &q, t);
                assert!(d >= 0.0 && (n == 1 || d > 0.0), "{name}: {d}");
                let moved: Vec<f32> = q.iter().map(|x| x + 8.0).collect();
                assert!((d - value(&*divergence, &p, &moved, t)).abs() < 1e-5 * d.max(1.0));
                let entropy = |b: f64| -(b * b.ln() + (1.0 - b) * (1.0 - b).ln());
                let most = match name.split_once("jsd_") {
                    Some((_, beta)) => entropy(beta.parse().unwrap()),
                    None if name == "tvd" => 1.0,
                    None => f64::INFINITY,
                };
                // Two that have nothing in common reach the bound.
                let apart: Vec<f32> = (0..n).map(|i| if i < n / 2 { 90.0 } else { -90.0 }).collect();
                let other: Vec<f32> = apart.iter().map(|x| -x).collect();
                assert!(d <= most && value(&*divergence, &apart, &other, 1.0) <= most * (1.0 + 1e-5), "{name}");
                assert!(gradient(&*divergence, &apart, &other, 1.0).iter().all(|g| g.is_finite()), "{name}");
            }
        }
    }
}

#[test]
fn gradients_of_every_divergence_equal_finite_differences_whole_and_truncated() {
    let (p, q) = (noise(40, 5), noise(40, 6));
    for (name, divergence) in every_divergence() {
        for t in [1.0, 2.0] {
            // Whole, with a bucket, and renormalised.
            for stored in [None, Some(Stored::new(&p, 6, t)), Some(Stored::alone(&p, 6))] {
                let row = |q: &[f32], g: Option<(&mut [f32], f32)>| {
                    let q = LogitRow::new(q, 1.0 / t);
                    match &stored {
                        None => divergence.row(LogitRow::new(&p, 1.0 / t), q, g),
                        Some(stored) => divergence.top_k_row(stored.row(), q, g),
                    }
                };
                let mut gradient = vec![0.0; q.len()];
                row(&q, Some((&mut gradient, 1.0)));
                for i in 0..q.len() {
                    let h = 1e-2;
                    let at = |d: f32| {
                        let mut q = q.clone();
                        q[i] += d;
                        row(&q, None)
                    };
                    let difference = (at(h) - at(-h)) / (2.0 * h as f64);
                    // Where p = q, the total variation distance has a corner.
                    let near = (gradient[i] as f64 - difference).abs() < 3e-4;
                    assert!(near || name == "tvd", "{name} at {t}, token {i}: {} not {difference}", gradient[i]);
                }
            }
        }
    }
}

#[test]
fn truncated_to_every_token_each_divergence_is_whole_and_truncated_to_fewer_it_is_less() {
    let (p, q) = (noise(300, 11), noise(300, 12));
    for (name, divergence) in every_divergence() {
        for t in [1.0, 2.0] {
            let whole = value(&*divergence, &p, &q, t);
            let truncated =
                |stored: &Stored, q: &[f32]| divergence.top_k_row(stored.row(), LogitRow::new(q, 1.0 / t), None);
            let of = |k: usize, q: &[f32]| truncated(&Stored::new(&p, k, t), q);
            let alone = |k: usize, q: &[f32]| truncated(&Stored::alone(&p, k), q);
            for stored in [Stored::new(&p, 300, t), Stored::alone(&p, 300)] {
                let mut theirs = vec![0.0; 300];
                let d = divergence.top_k_row(stored.row(), LogitRow::new(&q, 1.0 / t), Some((&mut theirs, 1.0)));
                assert!((d - whole).abs() < 2e-6, "{name}");
                for (got, want) in theirs.iter().zip(gradient(&*divergence, &p, &q, t)) {
                    assert!((got - want).abs() < 1e-6, "{name}: {got} instead of {want}");
                }
            }
            for k in [1, 5, 100] {
                assert!(alone(k, &q) >= 0.0 && alone(k, &p).abs() < 1e-6, "{name}, {k}");
                // By the data processing inequality.
                assert!(of(k, &q) <= whole * (1.0 + 1e-6) && of(k, &q) > 0.0, "{name}, {k}");
                assert!(of(k, &p).abs() < 1e-6, "{name}, {k}");
            }
        }
    }
}

#[test]
fn draws_estimate_what_is_an_expectation_under_p() {
    let (p, q) = (noise(40, 13), noise(40, 14));
    for (name, divergence) in every_divergence() {
        assert_eq!(divergence.takes_draws(), name.starts_with("skew_kl") || name == "tvd", "{name}");
        if !divergence.takes_draws() {
            continue;
        }
        // Every token with the weight p is the expectation itself.
        let row = LogitRow::new(&p, 0.5);
        let ids: Vec<u32> = (0..40).collect();
        let log_p: Vec<f32> = (0..40).map(|i| row.log_probability(i)).collect();
        let weights: Vec<f32> = log_p.iter().map(|log_p| log_p.exp()).collect();
        let drawn = distill::signal::SampledRow { ids: &ids, log_probabilities: &log_p, weights: &weights };
        let mut theirs = vec![0.0; 40];
        let got = divergence.sampled_row(drawn, LogitRow::new(&q, 0.5), Some((&mut theirs, 1.0)));
        assert!((got - value(&*divergence, &p, &q, 2.0)).abs() < 1e-6, "{name}");
        for (got, want) in theirs.iter().zip(gradient(&*divergence, &p, &q, 2.0)) {
            assert!((got - want).abs() < 1e-6, "{name}");
        }
    }
}

#[test]
fn the_limits_of_divergences_are_other_divergences() {
    let (p, q) = (noise(100, 15), noise(100, 16));
    let close = |a: f64, b: f64| assert!((a - b).abs() < 5e-3 * b, "{a} instead of {b}");
    close(value(&Terms(ReverseKl), &p, &q, 1.0), kl(&q, &p, 1.0));
    close(value(&Terms(SkewKl { lambda: 1e-4 }), &p, &q, 1.0), kl(&p, &q, 1.0));
    close(value(&Terms(SkewReverseKl { lambda: 1e-4 }), &p, &q, 1.0), kl(&q, &p, 1.0));
    // β (1 − β) divided out, both ends are KL, from below.
    for (beta, want) in [(1e-3, kl(&p, &q, 1.0)), (0.999, kl(&q, &p, 1.0))] {
        let nearly = value(&Terms(Jsd::new(beta, true)), &p, &q, 1.0) / want;
        assert!((0.98..1.0).contains(&nearly), "{nearly}");
    }
    // Ids beyond the teacher's vocabulary: no different from impossible ones.
    for (name, divergence) in every_divergence() {
        let (p, q) = (noise(20, 7), noise(24, 8));
        let padded: Vec<f32> = p.iter().copied().chain([f32::NEG_INFINITY; 4]).collect();
        assert!((value(&*divergence, &p, &q, 1.0) - value(&*divergence, &padded, &q, 1.0)).abs() < 1e-6, "{name}");
        let (a, b) = (gradient(&*divergence, &p, &q, 1.0), gradient(&*divergence, &padded, &q, 1.0));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6) && a.iter().sum::<f32>().abs() < 1e-5, "{name}");
    }
}

#[test]
fn the_reference_vectors_hold() {
    let ce = STUDENT.iter().zip(LABELS).map(|(q, y)| cross_entropy_row(LogitRow::new(q, 1.0), y, None)).sum::<f64>();
    for (got, want) in [
        (ce / 2.0, 1.266984281),
        (mean_kl(1.0), 0.592797692),
        (mean_kl(2.0), 0.180251409),
        (4.0 * mean_kl(2.0), 0.721005636),
    ] {
        assert!((got - want).abs() < 3e-7, "{got} instead of {want}");
    }
    // ∂(T² · KL / N)/∂z with T = 2 and N = 2.
    let gradient = kl_gradient(&TEACHER[0], &STUDENT[0], 2.0, 4.0 / 2.0);
    for (got, want) in gradient.iter().zip([-0.147_472_4, 0.031_577_486, 0.072_139_87, 0.043_755_045]) {
        assert!((got - want).abs() < 1e-7, "{got} instead of {want}");
    }
}

#[test]
fn values_and_gradients_equal_pytorch_in_float64() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/losses.safetensors");
    let golden = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let matrix = |name: &str| golden[name].to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
    let rows = |name: &str| golden[name].to_vec2::<f32>().unwrap();
    let (teacher, student) = (rows("teacher"), rows("student"));
    let labels: Vec<i64> = golden["labels"].to_vec1().unwrap();
    let check = |name: &str, row: &dyn Fn(usize, &mut [f32]) -> f64| {
        let values: Vec<f64> = golden[&format!("{name}.values")].to_vec1().unwrap();
        let gradients = matrix(&format!("{name}.gradient"));
        for i in 0..values.len() {
            let mut gradient = vec![0.0; student[i].len()];
            let value = row(i, &mut gradient);
            assert!(
                (value - values[i]).abs() <= 2e-6 * values[i].abs().max(1.0),
                "{name} row {i}: {value} not {}",
                values[i]
            );
            // Where p = q the total variation distance has a corner, and the rounding of stored logarithms takes a side.
            if name.starts_with("tvd_t2_top8") && values[i] == 0.0 {
                continue;
            }
            for (got, want) in gradient.iter().zip(&gradients[i]) {
                // Differences of logarithms as large as ten cost a reverse divergence a digit.
                let tolerance = if name.contains("reverse") { 3e-6 } else { 1e-6 };
                assert!((*got as f64 - want).abs() <= tolerance, "{name} row {i}: gradient {got} not {want}");
            }
        }
    };
    for t in [1.0f32, 2.0, 4.0] {
        check(&format!("forward_kl_t{t}"), &|i, g| {
            ForwardKl.row(LogitRow::new(&teacher[i], 1.0 / t), LogitRow::new(&student[i], 1.0 / t), Some((g, 1.0)))
        });
    }
    for t in [1.0f32, 2.0] {
        for (name, divergence) in every_divergence() {
            check(&format!("{name}_t{t}"), &|i, g| {
                let (p, q) = (LogitRow::new(&teacher[i], 1.0 / t), LogitRow::new(&student[i], 1.0 / t));
                divergence.row(p, q, Some((g, 1.0)))
            });
        }
    }
    let ids: Vec<Vec<i64>> = golden["top8"].to_vec2().unwrap();
    let mut all = every_divergence();
    all.push(("forward_kl".into(), Box::new(ForwardKl)));
    for (name, divergence) in all {
        for tail in ["bucket", "renormalize"] {
            check(&format!("{name}_t2_top8_{tail}"), &|i, g| {
                let mut stored = Stored::new(&teacher[i], 8, 2.0);
                stored.ids = ids[i].iter().map(|&id| id as u32).collect();
                let p = LogitRow::new(&teacher[i], 1.0);
                stored.log_probabilities = stored.ids.iter().map(|&id| p.log_probability(id as usize)).collect();
                stored.log_tail = stored.log_tail.filter(|_| tail == "bucket");
                divergence.top_k_row(stored.row(), LogitRow::new(&student[i], 0.5), Some((g, 1.0)))
            });
        }
    }
    check("cross_entropy", &|i, g| {
        cross_entropy_row(LogitRow::new(&student[i], 1.0), labels[i] as u32, Some((g, 1.0)))
    });
}

#[test]
fn forward_kl_is_zero_where_p_equals_q_and_positive_elsewhere() {
    for n in [1, 2, 31, 33, 1000, 50_000] {
        let (p, q) = (noise(n, 1), noise(n, 2));
        for t in [1.0, 4.0] {
            assert_eq!(kl(&p, &p, t), 0.0);
            assert!(kl_gradient(&p, &p, t, 1.0).iter().all(|g| *g == 0.0));
            assert!(n == 1 || kl(&p, &q, t) > 0.0);
        }
    }
}

#[test]
fn a_constant_added_to_the_logits_changes_nothing() {
    let (p, q) = (noise(500, 3), noise(500, 4));
    let moved: Vec<f32> = q.iter().map(|x| x + 8.0).collect();
    assert!((kl(&p, &q, 2.0) - kl(&p, &moved, 2.0)).abs() < 1e-5);
}

#[test]
fn gradients_equal_finite_differences() {
    let (p, q) = (noise(40, 5), noise(40, 6));
    for t in [1.0, 2.0] {
        let gradient = kl_gradient(&p, &q, t, 1.0);
        for i in 0..q.len() {
            let h = 1e-2;
            let at = |d: f32| {
                let mut q = q.clone();
                q[i] += d;
                kl(&p, &q, t)
            };
            let difference = (at(h) - at(-h)) / (2.0 * h as f64);
            assert!((gradient[i] as f64 - difference).abs() < 2e-4, "{} instead of {difference}", gradient[i]);
        }
    }
}

#[test]
fn a_longer_student_row_is_pushed_down_beyond_the_teachers_vocabulary() {
    let (p, q) = (noise(20, 7), noise(24, 8));
    let padded: Vec<f32> = p.iter().copied().chain([f32::NEG_INFINITY; 4]).collect();
    assert!((kl(&p, &q, 1.0) - kl(&padded, &q, 1.0)).abs() < 1e-6);
    let gradient = kl_gradient(&p, &q, 1.0, 1.0);
    assert!(gradient[20..].iter().all(|g| *g > 0.0));
    assert!(gradient.iter().sum::<f32>().abs() < 1e-5);
}

/// What a cache would have stored of `teacher`: its k likeliest tokens at T = 1, and the others' log mass at `t`.
struct Stored {
    ids: Vec<u32>,
    log_probabilities: Vec<f32>,
    log_tail: Option<f32>,
}

impl Stored {
    fn new(teacher: &[f32], k: usize, t: f32) -> Self {
        let mut ids: Vec<u32> = (0..teacher.len() as u32).collect();
        ids.sort_by(|&a, &b| teacher[b as usize].total_cmp(&teacher[a as usize]));
        let rest: f64 = ids[k..].iter().map(|&i| (teacher[i as usize] as f64 / t as f64).exp()).sum();
        let all: f64 = teacher.iter().map(|&z| (z as f64 / t as f64).exp()).sum();
        ids.truncate(k);
        let row = LogitRow::new(teacher, 1.0);
        let log_probabilities = ids.iter().map(|&i| row.log_probability(i as usize)).collect();
        Self { ids, log_probabilities, log_tail: Some((rest / all).ln() as f32) }
    }

    /// For both sides renormalised over its tokens.
    fn alone(teacher: &[f32], k: usize) -> Self {
        Self { log_tail: None, ..Self::new(teacher, k, 1.0) }
    }

    fn row(&self) -> TopKRow<'_> {
        TopKRow { ids: &self.ids, log_probabilities: &self.log_probabilities, log_tail: self.log_tail }
    }

    fn kl(&self, q: &[f32], t: f32) -> f64 {
        ForwardKl.top_k_row(self.row(), LogitRow::new(q, 1.0 / t), None)
    }

    fn gradient(&self, q: &[f32], t: f32) -> Vec<f32> {
        let mut gradient = vec![0.0; q.len()];
        ForwardKl.top_k_row(self.row(), LogitRow::new(q, 1.0 / t), Some((&mut gradient, 1.0)));
        gradient
    }
}

#[test]
fn a_truncated_teacher_gives_the_reference_values_with_its_bucket_and_renormalised() {
    let rows = || TEACHER.iter().zip(&STUDENT);
    let bucket = rows().map(|(p, q)| Stored::new(p, 2, 1.0).kl(q, 1.0)).sum::<f64>() / 2.0;
    let alone = rows().map(|(p, q)| Stored::alone(p, 2).kl(q, 1.0)).sum::<f64>() / 2.0;
    assert!((bucket - 0.585255305).abs() < 3e-7 && (alone - 0.115764377).abs() < 3e-7, "{bucket}, {alone}");
}

#[test]
fn a_truncated_teacher_with_every_token_equals_the_whole_one() {
    let (p, q) = (noise(300, 9), noise(300, 10));
    for t in [1.0, 3.0] {
        for stored in [Stored::new(&p, 300, t), Stored::alone(&p, 300)] {
            assert!((stored.kl(&q, t) - kl(&p, &q, t)).abs() < 1e-6);
            for (got, want) in stored.gradient(&q, t).iter().zip(kl_gradient(&p, &q, t, 1.0)) {
                assert!((got - want).abs() < 1e-7);
            }
        }
    }
}

#[test]
fn a_truncated_teacher_never_costs_more_than_the_whole_one_and_nothing_where_p_equals_q() {
    let (p, q) = (noise(300, 11), noise(300, 12));
    for k in [1, 5, 100] {
        for t in [1.0, 2.0] {
            let stored = Stored::new(&p, k, t);
            assert!(stored.kl(&q, t) <= kl(&p, &q, t) && stored.kl(&q, t) > 0.0);
            assert!(stored.kl(&p, t).abs() < 1e-6);
            assert!(stored.gradient(&p, t).iter().all(|g| g.abs() < 1e-6));
        }
    }
}

#[test]
fn gradients_of_a_truncated_teacher_equal_finite_differences() {
    let (p, q) = (noise(40, 13), noise(40, 14));
    for t in [1.0, 2.0] {
        for stored in [
            Stored::new(&p, 6, t),
            Stored { log_tail: Some(f32::NEG_INFINITY), ..Stored::new(&p, 6, t) },
            Stored::alone(&p, 6),
        ] {
            let gradient = stored.gradient(&q, t);
            for i in 0..q.len() {
                let h = 1e-2;
                let at = |d: f32| {
                    let mut q = q.clone();
                    q[i] += d;
                    stored.kl(&q, t)
                };
                let difference = (at(h) - at(-h)) / (2.0 * h as f64);
                assert!((gradient[i] as f64 - difference).abs() < 2e-4, "{} instead of {difference}", gradient[i]);
            }
        }
    }
}

#[test]
fn a_truncated_teacher_pulls_finitely_and_exactly_at_a_student_that_is_sure() {
    let p = noise(50, 15);
    let stored = Stored { log_tail: Some(0.1f32.ln()), ..Stored::new(&p, 4, 1.0) };
    for sure in [30.0, 60.0, 100.0] {
        let mut q = noise(50, 16);
        q[stored.ids[1] as usize] = sure;
        let exact: Vec<f64> = q.iter().map(|&z| (z as f64 - sure as f64).exp()).collect();
        let total: f64 = exact.iter().sum();
        let rest: f64 = (0..50).filter(|i| !stored.ids.contains(&(*i as u32))).map(|i| exact[i]).sum();
        let known: f64 = stored.log_probabilities.iter().map(|&l| (l as f64).exp()).sum();
        for (i, got) in stored.gradient(&q, 1.0).iter().enumerate() {
            let share = exact[i] / total;
            let want = match stored.ids.iter().position(|&id| id as usize == i) {
                Some(at) => share - 0.9 * (stored.log_probabilities[at] as f64).exp() / known,
                None => (rest / total - 0.1) * exact[i] / rest,
            };
            assert!((*got as f64 - want).abs() < 1e-6, "{sure}, token {i}: {got} instead of {want}");
        }
    }
}

const WIDTH: usize = 6;
const VOCAB: usize = 37;

/// Twelve targets of two rows.
fn batch(generated: bool) -> Batch {
    let row = |seed: usize| Row {
        tokens: (0..7).map(|t| ((t * 5 + seed) % VOCAB) as u32).collect(),
        targets: (0..7).map(|t| t > 0).collect(),
        source: RowRef { digest: [seed as u8; 32], file: Arc::new(PathBuf::from("test.jsonl")), line: 1 },
    };
    Batch { generated, ..Batch::new(&[row(1), row(2)]) }
}

/// One micro-batch through an objective: its sums, ∂/∂hidden and the head's gradient.
fn outcome(objective: &mut Objective, batch: &Batch, counts: Counts) -> (Sums, Vec<f32>, Vec<f32>) {
    let n = batch.valid_tokens();
    let tensor = |n: usize, width, seed| Tensor::from_vec(noise(n * width, seed), (n, width), &Device::Cpu).unwrap();
    let (hidden, weight) = (tensor(n, WIDTH, 3), tensor(VOCAB, WIDTH, 4));
    let slot = GradSlot::of(&weight).unwrap();
    let head = StudentHead { weight: &weight, grad: Some(&slot), precision: Precision::F32, cap: None };
    let signal = TeacherSignal::Dense { logits: noise(n * VOCAB, 5), vocab_size: VOCAB };
    let out = objective.run(&hidden, &head, Some(&signal), batch, counts).unwrap();
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1().unwrap();
    (out.sums, values(&out.d_hidden), values(slot.tensor()))
}

fn part(name: &str, weight: f64, divergence: Box<dyn Divergence>) -> Part {
    Part { name: name.into(), weight, divergence }
}

#[test]
fn a_mixture_is_the_weighted_sum_of_its_parts_each_with_its_power_of_the_temperature() {
    let (batch, counts) = (batch(false), Counts { targets: 20, labels: 20 });
    let parts = || vec![part("forward_kl", 0.7, Box::new(ForwardKl)), part("tvd", 2.0, Box::new(Terms(Tvd)))];
    let mixed = |parts, w| Objective::mixed(parts, Ramp::Constant(2.0), Ramp::Constant(w), true);
    let mut whole = mixed(parts(), 0.25);
    let (sums, d_hidden, d_head) = outcome(&mut whole, &batch, counts);
    let mut expected = (0.0, vec![0.0f32; d_hidden.len()], vec![0.0f32; d_head.len()]);
    for (i, part) in parts().into_iter().enumerate() {
        let name = part.name.clone();
        let mut alone = mixed(vec![part], 0.0);
        let (own, d_own, d_own_head) = outcome(&mut alone, &batch, counts);
        assert_eq!(whole.parts_of(&sums)[i], (name.as_str(), own.divergences[0] / 12.0));
        expected.0 += 0.75 * alone.loss(&own);
        for (sum, own) in [(&mut expected.1, d_own), (&mut expected.2, d_own_head)] {
            sum.iter_mut().zip(own).for_each(|(sum, own)| *sum += 0.75 * own);
        }
    }
    let mut hard = Objective::cross_entropy();
    let (own, d_own, d_own_head) = outcome(&mut hard, &batch, counts);
    expected.0 += 0.25 * hard.loss(&own);
    for (sum, own) in [(&mut expected.1, d_own), (&mut expected.2, d_own_head)] {
        sum.iter_mut().zip(own).for_each(|(sum, own)| *sum += 0.25 * own);
    }
    // The sums are of the batch, so that loss() divides by its twelve targets and twelve labels.
    assert!((whole.loss(&sums) - expected.0).abs() < 1e-9, "{} {}", whole.loss(&sums), expected.0);
    for (got, want) in [(d_hidden, expected.1), (d_head, expected.2)] {
        let largest = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-5 * largest));
    }
}

#[test]
fn what_the_student_wrote_is_no_label_and_the_cross_entropy_is_over_the_corpus_alone() {
    let objective = |w| Objective::distillation(Box::new(ForwardKl), 1.0, w, true);
    let counts = Counts::of(&[batch(false), batch(true)]);
    assert_eq!(counts, Counts { targets: 24, labels: 12 });
    // Rows of the student's own: the divergence alone, at its weight.
    let (sums, d_hidden, d_head) = outcome(&mut objective(0.5), &batch(true), counts);
    assert_eq!((sums.targets, sums.labels, sums.cross_entropy), (12, 0, None));
    let (_, pure, pure_head) = outcome(&mut objective(0.0), &batch(true), counts);
    for (half, whole) in d_hidden.iter().chain(&d_head).zip(pure.iter().chain(&pure_head)) {
        assert!((half - 0.5 * whole).abs() < 1e-7);
    }
    // A step without any label is the divergence alone.
    let own = Counts::of(&[batch(true)]);
    assert_eq!(outcome(&mut objective(0.5), &batch(true), own), outcome(&mut objective(0.0), &batch(true), own));
    let (sums_alone, ..) = outcome(&mut objective(1.0), &batch(true), own);
    assert_eq!(objective(1.0).loss(&sums_alone), objective(0.0).loss(&sums_alone));
    // A step of both: the loss divides each by what it is over.
    let mut total = outcome(&mut objective(0.5), &batch(false), counts).0;
    let corpus = total.clone();
    total += &sums;
    let d = 0.5 * (corpus.divergences[0] + sums.divergences[0]) / 24.0;
    let ce = 0.5 * corpus.cross_entropy.unwrap() / 12.0;
    assert!((objective(0.5).loss(&total) - d - ce).abs() < 1e-12);
}

#[test]
fn a_moving_temperature_and_weight_are_those_of_the_step() {
    let ramp = |from, to| Ramp::Moving { from, to, path: Way::Linear, steps: 5 };
    let moving = || Objective::mixed(vec![part("kl", 1.0, Box::new(ForwardKl))], ramp(4.0, 2.0), ramp(0.0, 0.8), true);
    let (batch, counts) = (batch(false), Counts { targets: 12, labels: 12 });
    for (step, temperature, w) in [(0, 4.0, 0.0), (2, 3.0, 0.4), (4, 2.0, 0.8), (9, 2.0, 0.8)] {
        let mut objective = moving();
        objective.move_to(step);
        assert_eq!((objective.needs().temperature, objective.temperature()), (temperature, temperature));
        let mut fixed = Objective::distillation(Box::new(ForwardKl), temperature, w, true);
        assert_eq!(outcome(&mut objective, &batch, counts), outcome(&mut fixed, &batch, counts), "step {step}");
    }
}
