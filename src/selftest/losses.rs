//! Every divergence: reference vectors, seeded rows against the definitions, and the properties that they share.

use candle_core::Device;

use super::Check;
use super::numbers::{distance, wide};
use super::reference::Formula;
use super::rows::{Asked, Rows, Word};
use crate::error::Result;
use crate::loss::{Divergence, ForwardKl, Jsd, ReverseKl, SkewKl, SkewReverseKl, Terms, Tvd};

/// A divergence of the program, and what it has to be.
pub struct Subject {
    pub name: &'static str,
    pub formula: Formula,
    pub make: fn() -> Box<dyn Divergence>,
}

/// A λ that is nearly none: a skewed divergence is then a few hundred λ from its KL.
const NEARLY_NONE: f32 = 1e-5;

pub fn subjects() -> Vec<Subject> {
    let subject = |name, formula, make| Subject { name, formula, make };
    vec![
        subject("forward_kl", Formula::ForwardKl, || Box::new(ForwardKl)),
        subject("reverse_kl", Formula::ReverseKl, || Box::new(Terms(ReverseKl))),
        subject("jsd beta 0.1", Formula::Jsd { beta: 0.1, factor: 1.0 }, || Box::new(Terms(Jsd::new(0.1, false)))),
        subject("jsd beta 0.5", Formula::Jsd { beta: 0.5, factor: 1.0 }, || Box::new(Terms(Jsd::new(0.5, false)))),
        subject("jsd beta 0.9", Formula::Jsd { beta: 0.9, factor: 1.0 }, || Box::new(Terms(Jsd::new(0.9, false)))),
        subject("jsd normalised", Formula::Jsd { beta: 0.1, factor: 1.0 / 0.09 }, || {
            Box::new(Terms(Jsd::new(0.1, true)))
        }),
        subject("skew_kl", Formula::SkewKl(0.1), || Box::new(Terms(SkewKl { lambda: 0.1 }))),
        subject("skew_reverse_kl", Formula::SkewReverseKl(0.1), || Box::new(Terms(SkewReverseKl { lambda: 0.1 }))),
        subject("tvd", Formula::Tvd, || Box::new(Terms(Tvd))),
    ]
}

/// Losses are f32 of logits of size 4: their log-sums round to 5e-7.
const ROUNDING: f64 = 5e-6;

pub fn checks(device: &Device, subjects: &[Subject]) -> Result<Vec<Check>> {
    let mut checks = vec![vectors(device, subjects)?];
    for subject in subjects {
        checks.extend(definitions(device, subject)?);
    }
    checks.extend(properties(device, subjects)?);
    checks.push(relations(device, subjects)?);
    Ok(checks)
}

/// LOSSES.md's: means over two targets of four tokens, from PyTorch in float64.
fn vectors(device: &Device, subjects: &[Subject]) -> Result<Check> {
    let rows = Rows {
        n: 2,
        teacher: vec![2.0, 1.0, 0.0, -1.0, 0.5, -0.5, 3.0, 0.0],
        student: vec![1.0, 1.0, 0.5, -0.5, 0.0, 0.0, 1.0, 2.0],
    };
    let mut check = Check::new("reference vectors", 1e-6);
    for (name, word, temperature, want) in [
        ("forward_kl", Word::Whole, 1.0, 0.592797692),
        ("forward_kl", Word::Whole, 2.0, 0.180251409),
        ("reverse_kl", Word::Whole, 1.0, 0.810592984),
        ("reverse_kl", Word::Whole, 2.0, 0.194209807),
        ("jsd beta 0.1", Word::Whole, 1.0, 0.052741696),
        ("jsd beta 0.5", Word::Whole, 1.0, 0.150464957),
        ("jsd beta 0.9", Word::Whole, 1.0, 0.064852385),
        ("jsd beta 0.5", Word::Whole, 2.0, 0.045129015),
        ("skew_kl", Word::Whole, 1.0, 0.471189277),
        ("skew_reverse_kl", Word::Whole, 1.0, 0.532688314),
        ("tvd", Word::Whole, 1.0, 0.463266772),
        ("forward_kl", Word::Bucket(2), 1.0, 0.585255305),
        ("forward_kl", Word::Alone(2), 1.0, 0.115764377),
    ] {
        for subject in subjects.iter().filter(|subject| subject.name == name) {
            let ours = rows.ours((subject.make)(), word, Asked::at(temperature, 2), device)?;
            check.met((ours.value - want).abs());
        }
    }
    for (name, temperature, want) in [
        // ∂ T² KL(p‖q), T² = 4.
        ("forward_kl", 2.0, [-0.147472404 / 4.0, 0.031577486 / 4.0, 0.072139873 / 4.0, 0.043755045 / 4.0]),
        ("reverse_kl", 1.0, [-0.140158407, 0.036541216, 0.075750237, 0.027866955]),
    ] {
        for subject in subjects.iter().filter(|subject| subject.name == name) {
            let ours = rows.ours((subject.make)(), Word::Whole, Asked::at(temperature, 2), device)?;
            check.met(distance(&ours.gradient[..4], &want));
        }
    }
    Ok(check)
}

/// Values and gradients of seeded rows against the definitions in f64, whole and stored.
fn definitions(device: &Device, subject: &Subject) -> Result<Vec<Check>> {
    // Of the vocabularies the first is the teacher's.
    let square = [(40, 40), (131, 131)];
    type Kind<'a> = (&'a str, &'a [(usize, usize)], fn(usize) -> Word);
    let kinds: [Kind; 4] = [
        ("whole", &[(1, 1), (5, 5), (40, 40), (131, 131), (36, 40), (40, 37)], |_| Word::Whole),
        ("top_k, bucket", &square, |v| Word::Bucket(v / 5)),
        ("top_k, renormalised", &square, |v| Word::Alone(v / 5)),
        ("sampled", &square, |_| Word::Drawn(9)),
    ];
    let mut checks = vec![];
    for (what, vocabularies, word) in kinds {
        if what == "sampled" && !(subject.make)().takes_draws() {
            continue;
        }
        let mut check = Check::new(format!("{}, {what}", subject.name), ROUNDING);
        for (seed, &(teacher, student)) in vocabularies.iter().enumerate() {
            let rows = Rows::new(2, teacher, student, 10 * seed as u32 + 1);
            for (temperature, hard_label_weight) in [(1.0, 0.0), (2.5, 0.0), (2.0, 0.3)] {
                let asked = Asked { hard_label_weight, ..Asked::at(temperature, 2) };
                let ours = rows.ours((subject.make)(), word(teacher), asked, device)?;
                let (value, gradient) = rows.reference(subject.formula, word(teacher), asked);
                check.met((ours.value - value).abs() / value.abs().max(1.0));
                check.met(distance(&ours.gradient, &gradient));
            }
        }
        checks.push(check);
    }
    Ok(checks)
}

/// What holds of each divergence by itself.
fn properties(device: &Device, subjects: &[Subject]) -> Result<Vec<Check>> {
    let mut positive = Check::new("no divergence is negative", 0.0);
    let mut nothing = Check::new("nothing to learn where p = q", 1e-6);
    let mut bounded = Check::new("jsd within H(beta), tvd within 1", 1e-5);
    let mut shifted = Check::new("a constant on the logits changes nothing", ROUNDING);
    let mut every = Check::new("top_k of every token is the whole", ROUNDING);
    let mut chunks = Check::new("chunks of 1, 3 and all rows agree", 1e-6);
    let mut split = Check::new("micro-batches agree with the batch", 1e-6);
    for subject in subjects {
        let rows = Rows::new(7, 60, 60, 71);
        let asked = Asked::at(2.0, rows.n);
        let ask = |rows: &Rows, word, asked| rows.ours((subject.make)(), word, asked, device);
        let whole = ask(&rows, Word::Whole, asked)?;
        let gradient = wide(&whole.gradient);
        positive.met((-whole.value).max(0.0) + f64::from(u8::from(whole.value == 0.0)));

        let same = ask(&Rows { student: rows.teacher.clone(), ..rows.clone() }, Word::Whole, asked)?;
        nothing.met(same.value.abs().max(distance(&same.gradient, &vec![0.0; same.gradient.len()])));

        if subject.formula.bound().is_finite() {
            // Two that have nothing in common.
            let apart = |sign: f32| (0..10).map(|i| if i < 5 { 90.0 * sign } else { -90.0 * sign }).collect();
            let rows = Rows { n: 1, teacher: apart(1.0), student: apart(-1.0) };
            let most = ask(&rows, Word::Whole, Asked::at(1.0, 1))?;
            bounded.met((most.value / subject.formula.bound() - 1.0).abs());
            bounded.met((whole.value - subject.formula.bound()).max(0.0));
        }

        let moved = Rows { student: rows.student.iter().map(|z| z + 8.0).collect(), ..rows.clone() };
        let moved = ask(&moved, Word::Whole, asked)?;
        shifted.met((moved.value - whole.value).abs().max(distance(&moved.gradient, &gradient)));

        for word in [Word::Bucket(60), Word::Alone(60)] {
            let stored = ask(&rows, word, asked)?;
            every.met((stored.value - whole.value).abs().max(distance(&stored.gradient, &gradient)));
        }
        for size in [1, 3, rows.n] {
            let chunked = ask(&rows, Word::Whole, Asked { rows_per_chunk: Some(size), ..asked })?;
            chunks.met((chunked.value - whole.value).abs().max(distance(&chunked.gradient, &gradient)));
        }
        let (first, second) = (rows.part(0, 2), rows.part(2, 7));
        let (first, second) = (ask(&first, Word::Whole, asked)?, ask(&second, Word::Whole, asked)?);
        let together = [first.gradient, second.gradient].concat();
        split.met((first.value + second.value - whole.value).abs().max(distance(&together, &gradient)));
    }
    Ok(vec![positive, nothing, bounded, shifted, every, chunks, split])
}

/// What holds between them: KL(p‖q) is the reverse of KL(q‖p), and a vanishing skew leaves the KL that it skews.
fn relations(device: &Device, subjects: &[Subject]) -> Result<Check> {
    let mut check = Check::new("reverse_kl and the limits of skews are KLs", 5e-3);
    let rows = Rows::new(4, 60, 60, 91);
    let turned = Rows { teacher: rows.student.clone(), student: rows.teacher.clone(), ..rows };
    let value = |rows: &Rows, divergence: Box<dyn Divergence>| -> Result<f64> {
        Ok(rows.ours(divergence, Word::Whole, Asked::at(1.0, rows.n), device)?.value)
    };
    let of = |name: &str| subjects.iter().find(|subject| subject.name == name).map(|subject| (subject.make)());
    let (Some(forward), Some(backward), Some(reverse)) = (of("forward_kl"), of("forward_kl"), of("reverse_kl")) else {
        return Ok(check);
    };
    let (forward, backward) = (value(&rows, forward)?, value(&turned, backward)?);
    let skewed = value(&rows, Box::new(Terms(SkewKl { lambda: NEARLY_NONE })))?;
    let skewed_reverse = value(&rows, Box::new(Terms(SkewReverseKl { lambda: NEARLY_NONE })))?;
    check.met((value(&rows, reverse)? / backward - 1.0).abs());
    check.met((skewed / forward - 1.0).abs());
    check.met((skewed_reverse / backward - 1.0).abs());
    Ok(check)
}
