//! The training step against PyTorch: loss, every gradient by name, ten AdamW steps (tests/goldens/README.md, `step`).

mod common;

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::Device;
use common::golden_step::{Expected, close, goldens, json, stepper, steps, teacher, values};
use distill::corpus::{Batch, Row};
use distill::kernels::{Precision, overwrite};
use distill::loss::{HiddenKind, HiddenMatch, HiddenPair, StudentHead};
use distill::model::{Decoder, Keep, ModelConfig, Parameter};
use distill::signal::{Needs, TeacherSignal};
use distill::student::random_matrix;
use distill::teacher::Teacher;
use distill::train::{Decay, Schedule};

const STUDENTS: [&str; 6] =
    ["student", "student_qwen2", "student_smollm3", "student_gemma2", "student_gemma3", "student_gpt2"];

fn folder() -> PathBuf {
    goldens("step")
}

/// What PyTorch said of a student, with its gradients by name.
fn golden(student: &str) -> (Expected, HashMap<String, Vec<f32>>) {
    let file = folder().join(format!("expected_{student}.safetensors"));
    let gradients = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let gradients = gradients.into_iter().map(|(name, tensor)| (name, values(&tensor))).collect();
    (json(&format!("step/expected_{student}.json")), gradients)
}

fn micro(rows: &[Row], size: usize) -> Vec<Batch> {
    rows.chunks(size).map(Batch::new).collect()
}

fn gradients(student: &Decoder) -> Vec<(String, Vec<f32>)> {
    student.parameters().iter().map(|p| (p.name.clone(), values(p.grad.as_ref().unwrap().tensor()))).collect()
}

/// Without rotation a bias of the keys moves all scores of a query alike: no gradient but for rounding.
fn is_zero(student: &str, parameter: &str) -> bool {
    student == "student_gpt2" && parameter.ends_with("k_proj.bias")
}

/// The students that `device` has kernels for.
fn students(device: &Device) -> impl Iterator<Item = &'static str> {
    let runs = device.is_cpu();
    STUDENTS
        .into_iter()
        .filter(move |name| runs || ModelConfig::read(&folder().join(name)).unwrap().without_gpu_kernel().is_none())
}

fn bf16_is_close(device: &Device, name: &str, loss: f64, gradient: f64) {
    let (e, want) = golden(name);
    let student = Decoder::load(&folder().join(name), true, device).unwrap();
    let teacher = teacher(device);
    let mut stepper = stepper(&teacher, &student, &e);
    stepper.precision = Precision::Bf16;
    let report = stepper.accumulate(&micro(&steps()[0], 4)).unwrap();
    close(report.loss, e.loss[0], loss, &format!("{name}: loss"));
    // ‖g − g₃₂‖ / ‖g₃₂‖ over all parameters.
    let (mut off, mut all) = (0.0f64, 0.0f64);
    for (parameter, got) in gradients(&student) {
        let want = &want[&parameter];
        off += got.iter().zip(want).map(|(g, w)| ((g - w) as f64).powi(2)).sum::<f64>();
        all += want.iter().map(|w| (*w as f64).powi(2)).sum::<f64>();
    }
    assert!(off.sqrt() <= gradient * all.sqrt(), "{name}: the gradient is off by {}", (off / all).sqrt());
}

distill::on_every_device! {
fn loss_and_every_gradient_equal_pytorch(device) {
    let teacher = teacher(device);
    for name in students(device) {
        let (e, want) = golden(name);
        let student = Decoder::load(&folder().join(name), true, device).unwrap();
        let report = stepper(&teacher, &student, &e).accumulate(&micro(&steps()[0], 4)).unwrap();
        let n = report.sums.targets as f64;
        assert_eq!(report.sums.targets, e.targets[0]);
        close(report.loss, e.loss[0], 1e-6, "loss");
        close(report.sums.divergences[0] / n, e.divergence[0], 1e-6, "divergence");
        close(report.sums.cross_entropy.unwrap() / n, e.cross_entropy[0], 1e-6, "cross-entropy");
        close(report.grad_norm, e.grad_norm[0], 1e-5, "gradient norm");
        let got = gradients(&student);
        assert_eq!(got.len(), want.len());
        for (parameter, got) in got {
            let want = &want[&parameter];
            let largest = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            if is_zero(name, &parameter) {
                assert!(got.iter().chain(want).all(|g| g.abs() <= 1e-8), "{name} {parameter}: {got:?}");
                continue;
            }
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() <= 1e-5 * largest, "{name} {parameter}: {got} instead of {want}");
            }
        }
    }
}

fn ten_adamw_steps_follow_pytorch(device) {
    let teacher = teacher(device);
    for name in students(device) {
        let e: Expected = json(&format!("step/expected_{name}.json"));
        let student = Decoder::load(&folder().join(name), true, device).unwrap();
        let mut stepper = stepper(&teacher, &student, &e);
        let schedule = Schedule {
            learning_rate: e.peak_learning_rate,
            decay: Decay::Linear,
            warmup_steps: e.warmup_steps,
            total_steps: 10,
        };
        for (i, rows) in steps().iter().enumerate() {
            close(schedule.at(i as u64), e.learning_rate[i], 1e-9, "learning rate");
            let report = stepper.step(&micro(rows, 4), i as u64, schedule.at(i as u64)).unwrap();
            close(report.loss, e.loss[i], 2e-6, &format!("{name}: loss of step {i}"));
            close(report.grad_norm, e.grad_norm[i], 1e-5, &format!("{name}: gradient norm of step {i}"));
        }
    }
}

fn gradients_do_not_depend_on_micro_batches_or_chunks(device) {
    let teacher = teacher(device);
    let rows: Vec<Row> = steps().into_iter().take(2).flatten().collect();
    for student in students(device) {
        let e: Expected = json(&format!("step/expected_{student}.json"));
        let run = |size: usize, chunk: usize| {
            let student = Decoder::load(&folder().join(student), true, device).unwrap();
            let mut stepper = stepper(&teacher, &student, &e);
            stepper.objective = stepper.objective.with_rows_per_chunk(chunk);
            let report = stepper.accumulate(&micro(&rows, size)).unwrap();
            (report.loss, gradients(&student))
        };
        let (loss, want) = run(8, 1000);
        for (size, chunk) in [(1, 1000), (2, 3), (4, 1), (8, 3)] {
            let (other, got) = run(size, chunk);
            close(other, loss, 1e-6, "loss");
            for ((name, got), (_, want)) in got.iter().zip(&want).filter(|((name, _), _)| !is_zero(student, name)) {
                let largest = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst <= 1e-5 * largest, "{student} {name} differs by {worst} with micro-batches of {size}");
            }
        }
    }
}

fn running_blocks_again_instead_of_keeping_them_gives_the_same_bits(device) {
    let teacher = teacher(device);
    for student in students(device) {
        let e: Expected = json(&format!("step/expected_{student}.json"));
        let run = |keep: Keep| {
            let student = Decoder::load(&folder().join(student), true, device).unwrap();
            let mut stepper = stepper(&teacher, &student, &e);
            stepper.keep = keep;
            stepper.accumulate(&micro(&steps()[0], 4)).unwrap();
            gradients(&student)
        };
        assert!(run(Keep::Activations) == run(Keep::Inputs), "{student}");
    }
}

fn a_student_in_bf16_has_the_loss_within_2e4_and_its_gradient_within_a_percent(device) {
    STUDENTS[..2].iter().for_each(|name| bf16_is_close(device, name, 2e-4, 0.01));
}

fn narrower_students_of_other_families_in_bf16_are_within_5e4_and_two_percent(device) {
    // Sixteen wide: the roundings of a sum average out less.
    students(device).filter(|name| !STUDENTS[..2].contains(name)).for_each(|name| bf16_is_close(device, name, 5e-4, 0.02));
}

fn dense_logits_and_hidden_states_with_a_head_teach_the_same(device) {
    let teacher = teacher(device);
    let e: Expected = json("step/expected_student.json");
    let student = Decoder::load(&folder().join("student"), true, device).unwrap();
    let batch = Batch::new(&steps()[0]);
    let n = batch.valid_tokens();
    let hidden = teacher.signal(&batch, &Needs::default()).unwrap();
    let vocab_size = hidden.vocab_size();
    let mut logits = vec![0.0; n * vocab_size];
    hidden.logits(0, n, &mut logits).unwrap();
    let dense = TeacherSignal::Dense { logits, vocab_size };
    let run = |signal: &TeacherSignal| {
        student.parameters().clear_gradients().unwrap();
        let states = student.hidden(&batch).unwrap();
        let (weight, grad) = (student.head().unwrap().tensor().unwrap(), student.head().unwrap().grad.as_ref());
        let head = StudentHead { weight, grad, precision: Precision::F32, cap: student.logit_cap() };
        // Chunks of three: each has to find its own rows of the signal.
        let mut objective = stepper(&teacher, &student, &e).objective.with_rows_per_chunk(3);
        let out = objective.run(&states, &head, Some(signal), &batch, n).unwrap();
        (out.sums, gradients(&student))
    };
    let ((a, ga), (b, gb)) = (run(&hidden), run(&dense));
    close(a.divergences[0], b.divergences[0], 1e-6, "divergence");
    for ((name, a), (_, b)) in ga.iter().zip(&gb) {
        let largest = a.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * largest), "{name}");
    }
}

fn hidden_states_pull_on_every_block_before_them_and_the_whole_gradient_is_the_finite_difference(device) {
    // On a GPU hidden states are refused.
    if device.is_cuda() {
        return;
    }
    let teacher = teacher(device);
    let e: Expected = json("step/expected_student.json");
    let width = |model: &Decoder| model.config().hidden_size;
    for keep in [Keep::Activations, Keep::Inputs] {
        let student = Decoder::load(&folder().join("student"), true, device).unwrap();
        let last = student.config().layers - 1;
        let mut step = stepper(&teacher, &student, &e);
        step.keep = keep;
        let shape = (width(teacher.decoder()), width(&student));
        let pair = |layer: usize| {
            let weight = random_matrix(&format!("p{layer}"), shape, 0.3, 1).unwrap();
            let projection = Some(Parameter::new(format!("p{layer}"), weight, true).unwrap());
            HiddenPair { student: layer, teacher: layer, projection }
        };
        let pairs = if last == 0 { vec![pair(0)] } else { vec![pair(0), pair(last)] };
        step.hidden = Some(HiddenMatch { pairs, kind: HiddenKind::Mse, weight: 0.7 });
        let batches = micro(&steps()[0], 2);
        let with = step.accumulate(&batches).unwrap();
        assert!(with.hidden.unwrap() > 0.0);
        let learned = step.learned();
        let analytic: Vec<(String, Vec<f32>)> = learned
            .iter()
            .map(|p| (p.name.clone(), values(p.grad.as_ref().unwrap().tensor())))
            .collect();
        for (name, gradient) in analytic {
            // The steepest element: its difference stands out of the rounding of f32.
            let at = (0..gradient.len()).max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs())).unwrap();
            let tensor = learned.get(&name).unwrap().tensor().unwrap().clone();
            let mut loss = |by: f32| {
                overwrite(&tensor, |values| values[at] += by).unwrap();
                let loss = step.accumulate(&batches).unwrap().loss;
                overwrite(&tensor, |values| values[at] -= by).unwrap();
                loss
            };
            const H: f32 = 2e-3;
            let numeric = (loss(H) - loss(-H)) / (2.0 * H as f64);
            let off = (numeric - gradient[at] as f64).abs();
            assert!(off <= 0.02 * numeric.abs() + 2e-4, "{name}[{at}]: {numeric} and {}", gradient[at]);
        }
    }
}

fn a_batch_without_targets_gives_zeros(device) {
    let teacher = teacher(device);
    let e: Expected = json("step/expected_student.json");
    let student = Decoder::load(&folder().join("student"), true, device).unwrap();
    let mut row = steps()[0][0].clone();
    row.targets.fill(false);
    let report = stepper(&teacher, &student, &e).accumulate(&[Batch::new(std::slice::from_ref(&row))]).unwrap();
    assert_eq!((report.loss, report.grad_norm, report.sums.targets), (0.0, 0.0, 0));
    // Nor does the optimizer make anything else of it.
    stepper(&teacher, &student, &e).step(&[Batch::new(&[row])], 0, 0.1).unwrap();
    assert!(student.parameters().iter().all(|p| values(&p.weight.values().unwrap()).iter().all(|w| w.is_finite())));
}

fn a_step_that_is_not_finite_names_its_tensor_and_rows_and_touches_no_weight(device) {
    let teacher = teacher(device);
    let e: Expected = json("step/expected_student.json");
    let student = Decoder::load(&folder().join("student"), true, device).unwrap();
    let bits = || -> Vec<Vec<u32>> {
        let of = |p: &Parameter| values(&p.weight.values().unwrap()).iter().map(|w| w.to_bits()).collect();
        student.parameters().iter().map(of).collect()
    };
    let mut stepper = stepper(&teacher, &student, &e);
    stepper.step(&micro(&steps()[0], 4), 0, 1e-3).unwrap();
    // Within the numbers that are, and beyond them once multiplied.
    let broken = student.parameters().iter().find(|p| p.name.ends_with("up_proj.weight")).unwrap();
    let huge = candle_core::Tensor::full(3e38f32, broken.weight.values().unwrap().dims(), device).unwrap();
    broken.weight.values().unwrap().slice_set(&huge, 0, 0).unwrap();
    let before = bits();
    let said = stepper.step(&micro(&steps()[1], 4), 1, 1e-3).unwrap_err().to_string();
    assert!(said.starts_with("step 2: the loss is ") && said.contains("first in the gradient of "), "{said}");
    assert!(said.contains("its rows start at ") && said.contains("The weights are those of the step before"), "{said}");
    assert!(bits() == before);
}
}

#[test]
fn a_step_given_up_between_micro_batches_changes_nothing_and_can_be_done_again() {
    let device = &Device::Cpu;
    let (e, _) = golden("student");
    let teacher = teacher(device);
    let done = |give_up_after: &[usize]| {
        let student = Decoder::load(&folder().join("student"), true, device).unwrap();
        let mut stepper = stepper(&teacher, &student, &e);
        let micro = micro(&steps()[0], 1);
        assert!(micro.len() > 2);
        let before: Vec<Vec<f32>> = student.parameters().iter().map(|p| values(p.tensor().unwrap())).collect();
        for &after in give_up_after {
            let asked = std::cell::Cell::new(0);
            let stop = || asked.replace(asked.get() + 1) == after;
            assert!(stepper.gradients_unless(&micro, 0, &stop).unwrap().is_none());
            let now: Vec<Vec<f32>> = student.parameters().iter().map(|p| values(p.tensor().unwrap())).collect();
            assert_eq!(before, now, "given up after {after}");
        }
        let report = stepper.step(&micro, 0, 1e-2).unwrap();
        let weights: Vec<Vec<f32>> = student.parameters().iter().map(|p| values(p.tensor().unwrap())).collect();
        assert_ne!(before, weights);
        (weights, report.loss.to_bits(), report.grad_norm.to_bits())
    };
    assert_eq!(done(&[]), done(&[0, 1, 2]));
}
