//! The commands as a user types them.

mod common;

use candle_core::{Device, Tensor};
use common::Bench;

fn trained(more: &str) -> Bench {
    let bench = Bench::with_teacher();
    bench.distil_config(more);
    bench.expect(&["train", "--config", "run.toml"], 0);
    bench
}

fn stdout(output: std::process::Output) -> String {
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_run_leaves_what_the_contract_says() {
    let bench = trained("steps = 9");
    let metrics = bench.timeless_metrics("run");
    let steps = |kind: &str| -> Vec<u64> {
        metrics.iter().filter(|e| e["event"] == kind).map(|e| e["step"].as_u64().unwrap()).collect()
    };
    assert_eq!(steps("train"), (1..=9).collect::<Vec<_>>());
    assert_eq!(steps("eval"), [0, 4, 8, 9]);
    let summary = bench.json("run/summary.json");
    assert_eq!((&summary["status"], &summary["steps"]), (&"complete".into(), &9.into()));
    let kl = |eval: &str| summary[eval]["kl_mean"].as_f64().unwrap();
    assert!(kl("final_eval") < kl("initial_eval"));
    for file in
        ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    {
        assert!(bench.path("run/student").join(file).is_file(), "student/{file}");
        assert!(bench.path("run/checkpoints/step-00000009").join(file).is_file(), "checkpoint {file}");
    }
    let curves = String::from_utf8(bench.read("run/curves.svg")).unwrap();
    assert!(curves.starts_with("<svg") && curves.contains("polyline"));
}

#[test]
fn eval_of_the_saved_folder_equals_the_evaluation_in_memory() {
    let bench = trained("steps = 9");
    bench.expect(&["eval", "--config", "run.toml", "--student", "run/student", "--json", "eval.json"], 0);
    let (eval, summary) = (bench.json("eval.json"), bench.json("run/summary.json"));
    let memory = bench.timeless_metrics("run").into_iter().rfind(|e| e["event"] == "eval").unwrap();
    for name in
        ["kl_mean", "kl_median", "kl_p99", "top1_agreement", "student_perplexity", "teacher_perplexity", "tokens"]
    {
        assert_eq!(eval[name], summary["final_eval"][name], "{name}");
        assert_eq!(eval[name], memory[name], "{name}");
    }
}

#[test]
fn the_teacher_is_its_own_perfect_student() {
    let bench = trained("steps = 2");
    let teacher = "teacher/student";
    let args =
        ["eval", "--teacher", teacher, "--student", teacher, "--data", "held_out.jsonl", "--chat-template", "none"];
    bench.expect(&[&args[..], &["--json", "same.json"]].concat(), 0);
    let same = bench.json("same.json");
    assert_eq!(
        (&same["kl_mean"], &same["top1_agreement"], &same["top5_overlap"]),
        (&0.0.into(), &1.0.into(), &1.0.into())
    );
    assert!((same["acceptance"].as_f64().unwrap() - 1.0).abs() < 1e-6);
}

#[test]
fn gates_write_the_json_first_and_exit_3() {
    let bench = trained("steps = 9");
    let eval = ["eval", "--config", "run.toml", "--student", "run/student", "--json"];
    bench.expect(&[&eval[..], &["a.json", "--fail-above-kl", "100", "--fail-below-agreement", "0"]].concat(), 0);
    bench.expect(&[&eval[..], &["b.json", "--fail-above-kl", "1e-9"]].concat(), 3);
    bench.expect(&[&eval[..], &["c.json", "--fail-below-agreement", "1"]].concat(), 3);
    assert_eq!(bench.json("a.json"), bench.json("c.json"));
}

#[test]
fn a_baseline_gives_the_gap_closed() {
    let bench = trained("steps = 9");
    let output = bench.expect(
        &[
            "eval",
            "--config",
            "run.toml",
            "--student",
            "teacher/student",
            "--baseline",
            "run/student",
            "--json",
            "e.json",
        ],
        0,
    );
    assert_eq!(bench.json("e.json")["gap_closed"], 1.0);
    assert!(stdout(output).contains("gap closed"));
}

#[test]
fn dumped_logits_are_those_of_every_position() {
    let bench = trained("steps = 2");
    bench.expect(&["eval", "--config", "run.toml", "--student", "run/student", "--dump-logits", "l.safetensors"], 0);
    let file = candle_core::safetensors::load(bench.path("l.safetensors"), &Device::Cpu).unwrap();
    let (_, t) = file["input_ids"].dims2().unwrap();
    assert_eq!(file["logits"].dims3().unwrap(), (1, t, 400));
    assert!(file["logits"].sum_all().unwrap().to_scalar::<f32>().unwrap().is_finite());
}

#[test]
fn generation_is_greedy_by_default_and_reproducible_with_a_seed() {
    let bench = trained("steps = 2");
    let run = |more: &[&str]| {
        let args = ["generate", "--model", "teacher/student", "--prompt", "red 1?", "--raw", "--max-tokens", "12"];
        stdout(bench.expect(&[&args[..], more].concat(), 0))
    };
    assert_eq!(run(&[]), run(&["--seed", "9"]));
    let warm = |seed| run(&["--temperature", "1.5", "--seed", seed]);
    assert_eq!(warm("1"), warm("1"));
    assert_ne!(warm("1"), warm("2"));
}

#[test]
fn inspect_tells_models_checkpoints_runs_and_configs_apart() {
    let bench = trained("steps = 9");
    let inspect = |path: &str| stdout(bench.expect(&["inspect", path], 0));
    assert!(inspect("run/student").contains("architecture"));
    assert!(inspect("run/checkpoints/step-00000009").contains("every file matches its digest"));
    assert!(inspect("run").contains("step-00000009"));
    assert!(inspect("run.toml").contains("a step, median of"));
    bench.refused(&["inspect", "nowhere"]);
    bench.refused(&["inspect", "train.jsonl"]);
}

#[test]
fn a_dry_run_shows_the_rows_with_their_targets_and_writes_nothing() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 5");
    let plan = stdout(bench.expect(&["train", "--config", "run.toml", "--dry-run"], 0));
    for part in ["teacher", "23 records", "5 of 4 rows", "train.jsonl:", "«", "memory", "time"] {
        assert!(plan.contains(part), "{part:?} is not in:\n{plan}");
    }
    assert!(!bench.path("run").exists());
}

#[test]
fn results_go_to_stdout_and_everything_else_to_stderr() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 3");
    let output = bench.expect(&["train", "--config", "run.toml"], 0);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(out.contains("KL(teacher‖student)") && !out.contains("step 1/3"), "{out}");
    assert!(err.contains("step 1/3") && !err.contains('\u{1b}'), "{err}");
}

#[test]
fn rows_in_train_and_eval_alike_are_warned_of() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 2");
    bench.write("held_out.jsonl", common::pair(3) + &common::pair(100));
    let output = bench.expect(&["train", "--config", "run.toml"], 0);
    assert!(String::from_utf8_lossy(&output.stderr).contains("train_eval_overlap"));
    assert!(String::from_utf8(bench.read("run/metrics.jsonl")).unwrap().contains("train_eval_overlap"));
}

#[test]
fn packing_changes_the_steps_but_not_the_loss_of_a_row() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 1");
    // One step over the whole corpus, packed or not: the same targets, so the same loss and gradient.
    let whole = ["train", "--config", "run.toml", "--set", "train.micro_batch_size=2", "--set", "train.batch_size=23"];
    bench.expect(&[&whole[..], &["--output", "rows"]].concat(), 0);
    bench.expect(&[&whole[..], &["--output", "packs", "--set", "data.packing=true"]].concat(), 0);
    let first = |run: &str| bench.timeless_metrics(run).into_iter().find(|e| e["event"] == "train").unwrap();
    let (rows, packs) = (first("rows"), first("packs"));
    assert_eq!(rows["tokens"], packs["tokens"]);
    for name in ["loss", "grad_norm"] {
        let (a, b) = (rows[name].as_f64().unwrap(), packs[name].as_f64().unwrap());
        assert!((a - b).abs() <= 1e-5 * a.abs(), "{name}: {a} and {b}");
    }
}

#[test]
fn a_pruned_student_starts_as_the_layers_it_was_cut_from() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 1");
    let text = String::from_utf8(bench.read("run.toml")).unwrap();
    bench.write(
        "run.toml",
        text.replace("kind = \"fresh\"\nconfig = \"student.json\"", "kind = \"pruned\"\nlayers = [0, 1]"),
    );
    bench.expect(&["train", "--config", "run.toml"], 0);
    // Nothing was cut, so the student begins as its teacher.
    let before = &bench.json("run/summary.json")["initial_eval"];
    assert_eq!((&before["kl_mean"], &before["top1_agreement"]), (&0.0.into(), &1.0.into()));
}

#[test]
fn an_output_in_bf16_halves_the_folder_and_is_evaluated_as_it_was_saved() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 4");
    bench.expect(&["train", "--config", "run.toml", "--set", "output.dtype=bf16"], 0);
    let size = |path: &str| bench.read(path).len();
    assert!(size("run/student/model.safetensors") < size("run/checkpoints/step-00000004/model.safetensors") * 6 / 10);
    let config = bench.json("run/student/config.json");
    assert_eq!(config["torch_dtype"], "bfloat16");
    bench.expect(&["eval", "--config", "run.toml", "--student", "run/student", "--json", "e.json"], 0);
    assert_eq!(bench.json("e.json")["kl_mean"], bench.json("run/summary.json")["final_eval"]["kl_mean"]);
}

#[test]
fn max_time_ends_a_run_early_and_whole() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 1000000\nmax_time = \"1s\"");
    bench.expect(&["train", "--config", "run.toml", "--set", "eval.every_steps=100000"], 0);
    let summary = bench.json("run/summary.json");
    assert_eq!(summary["status"], "time_up");
    assert!(summary["final_eval"]["kl_mean"].is_number());
}

#[test]
fn hidden_weights_all_move_in_a_step() {
    let bench = trained("steps = 1");
    let load = |path: &str| candle_core::safetensors::load(bench.path(path), &Device::Cpu).unwrap();
    bench.expect(&["train", "--config", "run.toml", "--output", "two", "--set", "train.steps=2"], 0);
    let (one, two) = (load("run/student/model.safetensors"), load("two/student/model.safetensors"));
    let moved =
        |a: &Tensor, b: &Tensor| (a - b).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap() > 0.0;
    for (name, tensor) in &one {
        assert!(moved(tensor, &two[name]), "{name} did not move");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_corpus() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 3");
    let row = format!("{{\"prompt\": \"red?\", \"response\": \"{}\"}}\n", "stone ".repeat(80));
    let peak = |name: &str, rows: usize| {
        bench.write(name, row.repeat(rows));
        let data = format!("data.train={name}");
        bench.expect(&["train", "--config", "run.toml", "--output", &format!("run-{name}"), "--set", &data], 0);
        bench.json(&format!("run-{name}/summary.json"))["peak_rss_bytes"].as_u64().unwrap()
    };
    // 2 MB and 60 MB.
    let (small, large) = (peak("small.jsonl", 4_000), peak("large.jsonl", 120_000));
    assert!(large < small + (32 << 20), "{small} and {large} bytes");
}

#[test]
fn a_closed_pipe_costs_no_result() {
    let bench = trained("steps = 2");
    let mut child = bench
        .command(&["eval", "--config", "run.toml", "--student", "run/student", "--json", "piped.json"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(bench.json("piped.json")["kl_mean"].is_number());
}

#[test]
fn a_file_that_could_not_be_written_is_refused_before_the_work() {
    let bench = trained("steps = 2");
    let said =
        bench.refused(&["eval", "--config", "run.toml", "--student", "run/student", "--json", "no/folder/e.json"]);
    assert!(said.contains("no/folder/e.json"), "{said}");
}

#[test]
fn a_run_stopped_before_its_first_step_leaves_an_empty_folder() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 2");
    let rows: String = (0..60_000).map(common::pair).collect();
    bench.write("held_out.jsonl", rows);
    let args = ["train", "--config", "run.toml", "--set", "eval.max_rows=60000", "--resume"];
    let mut child = bench.command(&args).stderr(std::process::Stdio::null()).spawn().unwrap();
    for _ in 0..4000 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        if bench.path("run/metrics.jsonl").exists() {
            break;
        }
    }
    // SAFETY: the child is ours and has not been waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    assert_eq!(child.wait().unwrap().code(), Some(75));
    bench.distil_config("steps = 2");
    bench.expect(&["train", "--config", "run.toml", "--resume", "--set", "eval.max_rows=5"], 0);
}

#[test]
fn models_in_bf16_teach_and_learn_the_same_within_their_rounding() {
    let bench = trained("steps = 6");
    let losses = |run: &str| -> Vec<f64> {
        let metrics = bench.timeless_metrics(run);
        metrics.iter().filter(|e| e["event"] == "train").map(|e| e["loss"].as_f64().unwrap()).collect()
    };
    for (run, set) in [("half-teacher", "teacher.dtype=bf16"), ("half-student", "train.dtype=bf16")] {
        bench.expect(&["train", "--config", "run.toml", "--output", run, "--set", set], 0);
        for (half, full) in losses(run).iter().zip(losses("run")) {
            assert!((half - full).abs() <= 0.02 * full, "{set}: {half} and {full}");
        }
    }
}

#[test]
fn bench_times_a_run_and_random_models() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 6");
    for args in [
        &["bench", "--config", "run.toml", "--steps", "2"][..],
        &["bench", "--teacher", "teacher.json", "--student", "student.json", "--length", "16", "--steps", "2"],
        &["bench", "--top-k", "8", "--student", "student.json", "--dtype", "bf16", "--length", "16", "--steps", "2"],
    ] {
        let table = stdout(bench.expect(args, 0));
        for part in ["teacher", "heads and loss", "backward", "tokens/s", "GF/s"] {
            assert!(table.contains(part), "{part:?} is not in:\n{table}");
        }
    }
    for (args, part) in [
        (&["--teacher", "teacher.json"][..], "--student"),
        (&[], "--config <FILE>|--teacher <PATH>|--top-k <K>"),
        (&["--top-k", "401", "--student", "student.json"], "vocabulary of 400"),
        (&["--top-k", "4", "--student", "student.json", "--teacher-dtype", "bf16"], "--teacher-dtype"),
        (&["--teacher", "teacher.json", "--student", "student.json", "--steps", "0"], "≥ 1"),
    ] {
        let said = bench.refused(&[&["bench"], args].concat());
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

#[test]
fn bf16_without_the_instructions_is_said_by_every_command_that_multiplies() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 1\ndtype = \"bf16\"");
    let text = String::from_utf8(bench.read("run.toml")).unwrap();
    bench.write("run.toml", text.replace("path = \"teacher/student\"", "path = \"teacher/student\"\ndtype = \"bf16\""));
    let shapes = ["bench", "--teacher", "teacher.json", "--student", "student.json", "--steps", "1", "--dtype", "bf16"];
    for (args, student) in [
        (&["train", "--config", "run.toml"][..], true),
        (&["eval", "--config", "run.toml", "--student", "run/student"], false),
        (&["bench", "--config", "run.toml", "--steps", "1"], true),
        (&shapes, true),
    ] {
        let args = [args, &["--device", "cpu"]].concat();
        let output = bench.command(&args).env("DISTILL_SIMD", "portable").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert_eq!(said.matches("bf16_not_native").count(), 1, "{args:?}: {said}");
        assert_eq!(said.contains("bf16 student"), student, "{args:?}: {said}");
        assert!(!said.contains("multiplied in bf16"), "{args:?}: {said}");
    }
}

#[test]
fn the_shipped_configs_run_from_any_folder() {
    let bench = Bench { dir: tempfile::tempdir().unwrap(), threads: 2, on_cpu: false };
    for name in ["quickstart", "quickstart-hard-labels", "smoke"] {
        let config = format!("{}/configs/{name}.toml", env!("CARGO_MANIFEST_DIR"));
        bench.expect(&["train", "--config", &config, "--output", "never", "--dry-run"], 0);
    }
}

#[test]
fn eval_holds_the_teacher_as_the_run_did() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 2");
    let text = String::from_utf8(bench.read("run.toml")).unwrap();
    bench.write("run.toml", text.replace("path = \"teacher/student\"", "path = \"teacher/student\"\ndtype = \"bf16\""));
    bench.expect(&["train", "--config", "run.toml"], 0);
    bench.expect(&["eval", "--config", "run.toml", "--student", "run/student", "--json", "e.json"], 0);
    assert_eq!(bench.json("e.json")["kl_mean"], bench.json("run/summary.json")["final_eval"]["kl_mean"]);
}

#[test]
fn every_loss_trains_and_what_a_loss_cannot_be_told_is_refused_in_the_plan() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 40");
    let tokenizer = format!("student.tokenizer={}", common::tokenizer().display());
    let of = |kind: &str, more: &[&str]| {
        let kind = format!("loss.kind={kind}");
        let args = ["train", "--config", "run.toml", "--device", "cpu", "--set", &kind, "--set", "loss.temperature=2"];
        [&args[..], more].concat().iter().map(ToString::to_string).collect::<Vec<String>>()
    };
    let run = |args: Vec<String>, code| bench.expect(&args.iter().map(String::as_str).collect::<Vec<_>>(), code);
    for codec in ["top_k", "sampled"] {
        let codec = format!("cache.codec={codec}");
        let args =
            ["cache", "--config", "run.toml", "--device", "cpu", "--set", "loss.temperature=2", "--output", &codec];
        bench.expect(&[&args[..], &["--set", &codec]].concat(), 0);
    }
    for kind in ["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd"] {
        run(of(kind, &["--output", kind]), 0);
        let loss = |run: &str| -> Vec<f64> {
            bench.timeless_metrics(run).iter().filter_map(|event| event["divergence"].as_f64()).collect()
        };
        let losses = loss(kind);
        assert!(losses.iter().rev().take(5).sum::<f64>() < 0.9 * losses[..5].iter().sum::<f64>(), "{kind}: {losses:?}");
        for codec in ["top_k", "sampled"] {
            let (path, output) = (format!("teacher.path=cache.codec={codec}"), format!("{kind}-{codec}"));
            let more = ["--set", "teacher.kind=cache", "--set", &path, "--set", &tokenizer, "--output", &output];
            if codec == "top_k" || ["forward_kl", "skew_kl", "tvd"].contains(&kind) {
                run(of(kind, &more), 0);
                let stored = loss(&output);
                // One bucket instead of 336 tokens is less, by the data processing inequality.
                let share = stored[0] / losses[0];
                assert!(codec == "sampled" || (0.3..=1.0).contains(&share), "{kind}: {share}");
                continue;
            }
            let said = String::from_utf8(run(of(kind, &more), 2).stderr).unwrap();
            assert!(said.contains("draws do not estimate it") && said.contains("live teacher"), "{said}");
        }
    }
}

#[test]
fn the_device_flag_of_eval_wins_over_the_devices_that_a_run_had() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 2");
    bench.expect(&["train", "--config", "run.toml", "--device", "cpu"], 0);
    let config = String::from_utf8(bench.read("run.toml")).unwrap();
    bench.write("gpu.toml", config.replace("[student]\n", "[student]\ndevice = \"cuda:99\"\n"));
    let eval = ["eval", "--config", "gpu.toml", "--student", "run/student"];
    let said = bench.refused(&eval);
    assert!(said.contains("cuda:99") && said.contains("student.device"), "{said}");
    bench.expect(&[&eval[..], &["--device", "cpu"]].concat(), 0);
}

#[test]
fn rollouts_without_a_prompt_to_answer_are_refused() {
    let bench = Bench::with_teacher();
    bench.write("train.jsonl", "{\"text\": \"red stone\"}\n{\"text\": \"the old river runs\"}\n");
    for rollout in ["fraction = 0.5", "from = \"teacher\""] {
        bench.distil_config(&format!("steps = 4\n[rollout]\n{rollout}\nmax_new_tokens = 5"));
        let refused = bench.refused(&["train", "--config", "run.toml"]);
        assert!(refused.contains("no row of data.train has one (texts have none)"), "{refused}");
    }
}

#[test]
fn a_student_learns_from_its_own_answers_to_prompts_without_responses() {
    let bench = Bench::with_teacher();
    let prompts: String = (0..9).map(|i| format!("{{\"prompt\": \"{} {i}?\"}}\n", common::WORDS[i % 8])).collect();
    bench.write("prompts.jsonl", prompts);
    let rollout = "steps = 6\n[rollout]\nfraction = 0\nmax_new_tokens = 7\n[loss]\nhard_label_weight = 0.5";
    bench.distil_config(rollout);
    let train = ["train", "--config", "run.toml", "--set", "data.train=[\"prompts.jsonl\"]"];
    // Without rollouts there is nothing to learn.
    let refused = bench.refused(&train);
    assert!(refused.contains("prompts.jsonl:1") && refused.contains("[rollout]"), "{refused}");
    let said = bench.expect(&[&train[..], &["--set", "rollout.fraction=0.1"]].concat(), 0).stdout;
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("rollouts 18 rows, "), "{said}");
    let events = bench.timeless_metrics("run");
    let of = |kind: &str| events.iter().filter(|e| e["event"] == kind).cloned().collect::<Vec<_>>();
    for event in of("train") {
        assert_eq!(event["cross_entropy"], serde_json::Value::Null, "an answer of the student's own is no label");
        assert_eq!(event["rollout"]["rows"], if event["step"] == 3 || event["step"] == 6 { 1 } else { 4 });
        assert!(event["divergence"].as_f64().unwrap() > 0.0);
    }
    let samples = of("sample");
    assert_eq!(samples.iter().map(|s| s["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 5]);
    assert!(samples.iter().all(|s| s["prompt"].as_str().unwrap().ends_with('?')));
    let summary = bench.json("run/summary.json");
    assert_eq!(summary["rollouts"]["rows"], 18);
    let share = summary["rollouts"]["share"].as_f64().unwrap();
    assert!(share > 0.0 && share < 1.0, "{share}");
}

#[test]
fn a_teacher_writes_the_responses_once_and_the_student_learns_them_with_any_loss() {
    let bench = Bench::with_teacher();
    let prompts: String = (0..40).map(|i| format!("{{\"prompt\": \"{} {i}?\"}}\n", common::WORDS[i % 8])).collect();
    bench.write("prompts.jsonl", prompts + "{\"text\": \"a text stays\"}\n");
    bench.distil_config("steps = 4\n[rollout]\nfrom = \"teacher\"\nmax_new_tokens = 5");
    let train = |output: &str, more: &[&str], code: i32| {
        let args = ["train", "--config", "run.toml", "--set", "data.train=[\"prompts.jsonl\"]", "--output", output];
        String::from_utf8(bench.expect(&[&args[..], more].concat(), code).stderr).unwrap()
    };
    assert!(train("dry", &["--dry-run"], 0).is_empty() && !bench.path("dry").exists());
    let said = train("whole", &[], 0);
    assert!(said.contains("rows with the teacher's answers"), "{said}");
    let lines = |run: &str| String::from_utf8(bench.read(&format!("{run}/responses.jsonl"))).unwrap();
    assert!(lines("whole").lines().count() > 30 && lines("whole").contains("{\"text\":\"a text stays\"}"));
    assert!(lines("whole").contains("\"unfinished\":true"));
    // The student's config names the prompts; its rows are the teacher's.
    assert!(String::from_utf8(bench.read("whole/config.toml")).unwrap().contains("prompts.jsonl"));
    let info = bench.json("whole/responses.json");
    assert_eq!((&info["complete"], &info["records"]), (&true.into(), &41.into()));
    assert!(!train("whole", &["--resume", "--set", "train.steps=6"], 0).contains("the teacher answers"));
    // Cut off after a batch, with a line that nobody counted, it is gone on with to the same bytes.
    std::fs::create_dir(bench.path("cut")).unwrap();
    let first: String = lines("whole").lines().take(20).map(|line| format!("{line}\n")).collect();
    let mut cut = info.clone();
    let skipped = 0;
    (cut["complete"], cut["records"], cut["skipped"]) = (false.into(), 20.into(), skipped.into());
    bench.write("cut/responses.jsonl", first + "{\"prompt\": \"torn");
    bench.write("cut/responses.json", cut.to_string());
    train("cut", &["--set", "loss.kind=\"cross_entropy\""], 0);
    assert_eq!(lines("cut"), lines("whole"));
    // Other settings are another file.
    let refused = train("cut2", &["--set", "rollout.max_new_tokens=3"], 0);
    assert!(refused.contains("rows with the teacher's answers"));
    bench.write("cut3/responses.json", bench.read("whole/responses.json"));
    bench.write("cut3/responses.jsonl", bench.read("whole/responses.jsonl"));
    let refused = train("cut3", &["--set", "rollout.max_new_tokens=3"], 2);
    assert!(refused.contains("rollout.max_new_tokens changed"), "{refused}");
    let refused = train("cut3", &["--set", "teacher.dtype=bf16"], 2);
    assert!(refused.contains("teacher.dtype changed"), "{refused}");
    // A file that was changed, or that is somebody else's, is never taken for the teacher's and never overwritten.
    bench.write("cut3/responses.jsonl", lines("whole").replacen("response", "Response", 1));
    assert!(train("cut3", &[], 2).contains("is not what the teacher wrote any more"));
    bench.write("cut4/responses.jsonl", "{\"text\": \"mine\"}\n");
    assert!(train("cut4", &[], 2).contains("bring both along"));
    assert_eq!(lines("cut4"), "{\"text\": \"mine\"}\n");
    // A branch of a run takes its rows along instead of having them written again.
    let branch = train("branch", &["--resume", "whole/checkpoints/step-00000004", "--set", "train.steps=6"], 0);
    assert!(!branch.contains("the teacher answers") && lines("branch") == lines("whole"), "{branch}");
}

#[test]
fn a_fraction_of_zero_is_the_fixed_corpus_and_one_leaves_none_of_it() {
    let bench = Bench::with_teacher();
    bench.distil_config("epochs = 1");
    bench.expect(&["train", "--config", "run.toml", "--output", "plain"], 0);
    for (fraction, rows) in [("0", None), ("1", Some(23)), ("0.5", Some(11))] {
        let set = format!("rollout.fraction={fraction}");
        let output = format!("f{fraction}");
        bench.expect(&["train", "--config", "run.toml", "--output", &output, "--set", &set], 0);
        let plain = bench.timeless_metrics("plain") == bench.timeless_metrics(&output);
        assert_eq!(plain, rows.is_none(), "fraction {fraction}");
        let written = bench.json(&format!("{output}/summary.json"))["rollouts"]["rows"].as_u64();
        match rows {
            None => assert_eq!(written, None),
            // Of 23 draws at ½, more than one in a thousand runs lies outside of 4 to 19; the seed is fixed.
            Some(rows) => assert!(written.unwrap().abs_diff(rows) <= if rows == 23 { 0 } else { 7 }, "{written:?}"),
        }
    }
}

#[test]
fn a_machine_is_tested_in_seconds_and_a_gpu_that_is_not_there_is_a_usage_error() {
    let bench = Bench::new();
    let said = stdout(bench.expect(&["selftest", "--device", "cpu"], 0));
    assert!(said.starts_with("device cpu, instructions of the CPU ") && !said.contains("FAIL"), "{said}");
    assert!(said.lines().filter(|line| line.ends_with("pass")).count() > 40, "{said}");
    assert!(bench.refused(&["selftest", "--device", "cuda:77"]).contains("the device cuda:77"));
}
