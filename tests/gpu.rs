//! Whole runs on a GPU against the same on the CPU. Skipped where there is none, unless REQUIRE_CUDA is set.

mod common;

use common::Bench;
use distill::device;

/// Each step's loss and gradient norm of a run with these lines in `[train]`, and whatever `args` add.
fn losses(bench: &Bench, run: &str, args: &[&str]) -> Vec<(f64, f64)> {
    bench.expect(&[&["train", "--config", "run.toml", "--output", run][..], args].concat(), 0);
    let events = bench.timeless_metrics(run);
    let trained = events.iter().filter(|e| e["event"] == "train");
    trained.map(|e| (e["loss"].as_f64().unwrap(), e["grad_norm"].as_f64().unwrap())).collect()
}

fn assert_close(got: &[(f64, f64)], want: &[(f64, f64)], relative: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (step, (got, want)) in got.iter().zip(want).enumerate() {
        let near = |a: f64, b: f64| (a - b).abs() <= relative * b.abs();
        assert!(near(got.0, want.0) && near(got.1, want.1), "{what}, step {step}: {got:?} instead of {want:?}");
    }
}

fn bench(more: &str) -> Option<Bench> {
    device::for_tests()?;
    let bench = Bench::with_teacher();
    bench.distil_config(more);
    Some(bench)
}

#[test]
fn a_run_has_the_losses_of_the_cpu_wherever_teacher_and_student_are() {
    let Some(bench) = bench("steps = 8\nweight_decay = 0.1") else { return };
    let want = losses(&bench, "cpu", &["--device", "cpu"]);
    assert_close(&losses(&bench, "gpu", &["--device", "cuda"]), &want, 1e-5, "both on a GPU");
    let apart = losses(&bench, "teacher-apart", &["--device", "cpu", "--set", "teacher.device=cuda:0"]);
    assert_close(&apart, &want, 1e-5, "the teacher on a GPU");
    let apart = losses(&bench, "student", &["--device", "cuda", "--set", "teacher.device=cpu"]);
    assert_close(&apart, &want, 1e-5, "the student on a GPU");
    let saved = String::from_utf8(bench.read("student/config.toml")).unwrap();
    assert!(saved.contains("device = \"cpu\""), "{saved}");
}

#[test]
fn bf16_hard_labels_packing_and_blocks_run_again_follow_the_cpu() {
    let more = "steps = 4\ncheckpoint_activations = true\ndtype = \"bf16\"";
    let Some(bench) = bench(more) else { return };
    let mixed = ["--set", "loss.hard_label_weight=0.3", "--set", "loss.temperature=2", "--set", "data.packing=true"];
    let on = |device, run: &str| losses(&bench, run, &[&mixed[..], &["--device", device]].concat());
    // Both round the same operands; where they add up in another order, a bf16 may round the other way.
    assert_close(&on("cuda", "gpu"), &on("cpu", "cpu"), 5e-3, "bf16");
    let alone = ["--set", "loss.kind=cross_entropy", "--set", "train.dtype=f32"];
    let on = |device, run: &str| losses(&bench, run, &[&alone[..], &["--device", device]].concat());
    assert_close(&on("cuda", "gpu2"), &on("cpu", "cpu2"), 1e-5, "hard labels alone");
}

#[test]
fn a_run_on_a_gpu_goes_on_on_the_cpu_with_a_warning() {
    let Some(bench) = bench("steps = 4") else { return };
    let on = |device, more: &[&str], code| {
        bench.expect(&[&["train", "--config", "run.toml", "--device", device], more].concat(), code);
    };
    on("cuda", &["--stop-after", "2"], 75);
    on("cpu", &["--resume"], 0);
    let metrics = String::from_utf8(bench.read("run/metrics.jsonl")).unwrap();
    assert!(metrics.contains("\"hardware_changed\""), "{metrics}");
}

#[test]
fn a_model_is_evaluated_and_speaks_on_a_gpu_as_on_the_cpu() {
    let Some(bench) = bench("steps = 4") else { return };
    bench.expect(&["train", "--config", "run.toml", "--device", "cpu"], 0);
    let eval = |device, file: &str| {
        let args = ["eval", "--config", "run.toml", "--student", "run/student", "--json", file, "--device", device];
        bench.expect(&args, 0);
        bench.json(file)
    };
    let (cpu, gpu) = (eval("cpu", "cpu.json"), eval("cuda", "gpu.json"));
    for figure in ["kl_mean", "student_perplexity", "teacher_perplexity", "acceptance"] {
        let (a, b) = (cpu[figure].as_f64().unwrap(), gpu[figure].as_f64().unwrap());
        assert!((a - b).abs() <= 1e-5 * a.abs(), "{figure}: {b} instead of {a}");
    }
    let say = |device| {
        let args = ["generate", "--model", "teacher/student", "--prompt", "the old", "--raw", "--max-tokens", "8"];
        bench.expect(&[&args[..], &["--device", device]].concat(), 0).stdout
    };
    assert_eq!(say("cpu"), say("cuda"));
}
