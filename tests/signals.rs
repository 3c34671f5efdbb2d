//! A signal in any phase: a run keeps what it has and ends with 75, every other command ends at once and leaves no litter.

mod common;

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::Bench;
use common::runs::{self, Kind, RESUME, assert_same_end};

fn signal(child: &Child, signal: i32) {
    // SAFETY: the child is ours and has not been waited for.
    unsafe { libc::kill(child.id() as i32, signal) };
}

/// Sends the signal once `ready`, and returns the exit code and how long that took. None: it was over before.
fn interrupted(bench: &Bench, args: &[&str], number: i32, ready: impl Fn() -> bool) -> Option<(Option<i32>, Duration)> {
    let mut child = bench.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !catches(&child, number) || !ready() {
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    signal(&child, number);
    let at = Instant::now();
    let code = child.wait().unwrap().code();
    Some((code, at.elapsed()))
}

/// Whether the process has got as far as to handle the signal.
fn catches(child: &Child, number: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    mask >> (number - 1) & 1 == 1
}

/// A corpus that takes seconds to read.
fn long_corpus(bench: &Bench) {
    bench.write("train.jsonl", (0..200_000).map(common::pair).collect::<String>());
}

#[test]
fn while_it_loads_a_run_stops_at_once_and_leaves_nothing() {
    let bench = Bench { on_cpu: true, ..Bench::with_teacher() };
    bench.distil_config("steps = 5");
    long_corpus(&bench);
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1] {
        let (code, took) = interrupted(&bench, &["train", "--config", "run.toml"], number, || true).unwrap();
        assert_eq!(code, Some(75));
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert!(!bench.path("run").exists());
    }
}

#[test]
fn while_it_evaluates_before_the_first_step_a_run_stops_and_its_folder_counts_as_empty() {
    let bench = Bench { on_cpu: true, ..Bench::with_teacher() };
    bench.distil_config("steps = 5");
    // The held-out rows take long, the training rows do not.
    bench.write("held_out.jsonl", (1_000..9_000).map(common::pair).collect::<String>());
    let args = ["train", "--config", "run.toml", "--set", "eval.max_rows=8000"];
    let ready = || bench.path("run/checkpoints/latest").exists();
    let (code, _) = interrupted(&bench, &args, libc::SIGTERM, ready).unwrap();
    assert_eq!(code, Some(75));
    let left: Vec<_> = std::fs::read_dir(bench.path("run")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["run.lock"]);
    // Without --resume: nothing was lost, and nothing is in the way.
    bench.expect(&["train", "--config", "run.toml"], 0);
}

#[test]
fn a_run_resumed_at_its_first_step_and_stopped_again_keeps_all_it_has() {
    let bench = Bench { on_cpu: true, ..Bench::with_teacher() };
    bench.distil_config("steps = 4");
    bench.write("held_out.jsonl", (1_000..5_000).map(common::pair).collect::<String>());
    let text = String::from_utf8(bench.read("run.toml")).unwrap();
    bench.write(
        "run.toml",
        text.replace("[eval]\n", "[eval]\nmax_rows = 4000\n")
            .replace("[checkpoint]\n", "[checkpoint]\nkeep_last = 9\n"),
    );
    bench.expect(&["train", "--config", "run.toml"], 0);
    let back = ["train", "--config", "run.toml", "--resume", "run/checkpoints/step-00000000"];
    let gone_back = || std::fs::read_to_string(bench.path("run/checkpoints/latest")).unwrap().trim() == "step-00000000";
    let (code, _) = interrupted(&bench, &back, libc::SIGTERM, gone_back).unwrap();
    assert_eq!(code, Some(75));
    for step in [0, 3, 4] {
        assert!(bench.path(&format!("run/checkpoints/step-0000000{step}")).is_dir(), "step {step}");
    }
    bench.expect(&RESUME, 0);
}

#[test]
fn while_it_evaluates_in_the_middle_a_run_keeps_the_step_and_resumes_to_the_bit() {
    let bench = runs::bench(Kind::Local, 2, "steps = 9", "");
    bench.write("held_out.jsonl", (1_000..4_000).map(common::pair).collect::<String>());
    let text = String::from_utf8(bench.read("run.toml")).unwrap();
    bench.write("run.toml", text.replace("[eval]\n", "[eval]\nmax_rows = 3000\n"));
    bench.expect(&["train", "--config", "run.toml", "--output", "whole"], 0);
    let args = [&RESUME[..], &["--output", "broken"]].concat();
    // The fourth step is on record: the evaluation that is due runs.
    let fourth = || {
        std::fs::read_to_string(bench.path("broken/metrics.jsonl")).is_ok_and(|t| t.contains("\"train\",\"step\":4"))
    };
    assert_eq!(interrupted(&bench, &args, libc::SIGTERM, fourth).unwrap().0, Some(75));
    assert_eq!(std::fs::read_to_string(bench.path("broken/checkpoints/latest")).unwrap().trim(), "step-00000004");
    bench.expect(&args, 0);
    assert_same_end(&bench, "whole", "broken", "interrupted in an evaluation");
}

#[test]
fn while_the_teacher_writes_responses_a_run_stops_and_goes_on() {
    let bench = Bench { on_cpu: true, ..Bench::with_teacher() };
    bench.distil_config("steps = 3\n[rollout]\nfrom = \"teacher\"\nmax_new_tokens = 20");
    bench.write("train.jsonl", (0..3_000).map(common::pair).collect::<String>());
    let ready = || std::fs::metadata(bench.path("run/responses.jsonl")).is_ok_and(|file| file.len() > 0);
    let (code, _) = interrupted(&bench, &["train", "--config", "run.toml"], libc::SIGTERM, ready).unwrap();
    assert_eq!(code, Some(75));
    let lines = |bench: &Bench| String::from_utf8(bench.read("run/responses.jsonl")).unwrap();
    let kept = lines(&bench);
    assert!(kept.ends_with('\n') && kept.lines().count() < 3_000);
    bench.expect(&["train", "--config", "run.toml"], 0);
    assert!(lines(&bench).starts_with(&kept));
}

#[test]
fn while_a_cache_is_made_the_block_is_finished_and_the_rest_resumed() {
    let bench = Bench { on_cpu: true, ..Bench::with_teacher() };
    bench.distil_config("steps = 3");
    bench.write("train.jsonl", (0..6_000).map(common::pair).collect::<String>());
    let args = ["cache", "--config", "run.toml", "--output", "cache"];
    let ready = || std::fs::metadata(bench.path("cache/signal.bin")).is_ok_and(|file| file.len() > 0);
    let (code, _) = interrupted(&bench, &args, libc::SIGTERM, ready).unwrap();
    assert_eq!(code, Some(75));
    bench.expect(&[&args[..], &["--resume"]].concat(), 0);
}

#[test]
fn other_commands_end_with_130_or_143_and_leave_nothing_half_written() {
    let bench = Bench { on_cpu: true, ..Bench::with_teacher() };
    bench.distil_config("steps = 3");
    long_corpus(&bench);
    let eval = ["eval", "--teacher", "teacher/student", "--student", "teacher/student", "--data", "train.jsonl"];
    let eval = [&eval[..], &["--max-rows", "200000", "--chat-template", "none", "--json", "report.json"]].concat();
    for (number, want) in [(libc::SIGINT, 130), (libc::SIGTERM, 143)] {
        let (code, took) = interrupted(&bench, &eval, number, || true).unwrap();
        assert_eq!(code, Some(want));
        assert!(took < Duration::from_secs(5) && !bench.path("report.json").exists(), "{took:?}");
    }
    // A student large enough that writing it takes a while.
    let shape = common::model_config(4, 1024).replace("\"intermediate_size\": 48", "\"intermediate_size\": 3072");
    bench.write("student.json", shape);
    let half_written = || bench.path(".tmp-student").exists();
    let init = ["init", "--config", "run.toml", "--output", "student"];
    if let Some((code, _)) = interrupted(&bench, &init, libc::SIGTERM, half_written) {
        // Zero: it was renamed between the look and the signal.
        assert!(code == Some(143) || (code == Some(0) && bench.path("student").exists()), "{code:?}");
        assert!(!half_written());
    }
}
