//! A run that was stopped, signalled or killed ends as the unbroken one, byte for byte.

mod common;

use common::runs::{RESUME, assert_same_end, wait_for};
use common::{Bench, files};
use distill::kernels::{Precision, Simd};

/// Runs `interrupt` in its own output folder and compares the end with an unbroken run's.
fn ends_like_the_unbroken_run(more: &str, data: &str, interrupt: impl Fn(&Bench, &str)) {
    with_threads(2, more, data, interrupt);
}

fn with_threads(threads: usize, more: &str, data: &str, interrupt: impl Fn(&Bench, &str)) {
    let bench = Bench { threads, on_cpu: more.contains("hidden"), ..Bench::with_teacher() };
    bench.distil_config(more);
    let text = String::from_utf8(bench.read("run.toml")).unwrap().replace("[eval]", &format!("{data}\n[eval]"));
    bench.write("run.toml", text);
    bench.expect(&["train", "--config", "run.toml", "--output", "whole"], 0);
    interrupt(&bench, "broken");
    assert_same_end(&bench, "whole", "broken", data);
}

fn stop_at(bench: &Bench, run: &str, steps: &[u64]) {
    for step in steps {
        let step = step.to_string();
        bench.expect(&[&RESUME[..], &["--output", run, "--stop-after", &step]].concat(), 75);
    }
    bench.expect(&[&RESUME[..], &["--output", run]].concat(), 0);
}

#[test]
fn stopped_at_any_step_of_a_shuffled_run_and_resumed() {
    // 23 rows, 4 a step: 6 steps an epoch. First step, evaluation, mid-epoch, epoch end, checkpoint, last but one.
    for step in [1, 4, 5, 6, 9, 11] {
        ends_like_the_unbroken_run("epochs = 2", "", |bench, run| stop_at(bench, run, &[step]));
    }
}

#[test]
fn stopped_on_a_single_thread_and_resumed() {
    let more = "epochs = 2\nwarmup_steps = 3";
    with_threads(1, more, "shuffle = false", |bench, run| stop_at(bench, run, &[2, 11]));
}

#[test]
fn on_another_number_of_threads_it_is_the_same_or_warned_of() {
    let warning = "\"thread_count_changed\"";
    ends_like_the_unbroken_run("epochs = 2", "", |bench, run| {
        bench.expect(&[&RESUME[..], &["--output", run, "--stop-after", "5"]].concat(), 75);
        let mut command = bench.command(&[&RESUME[..], &["--output", run]].concat());
        // Where our own product does not run, the other number would only be allowed to differ.
        let ours = Precision::F32.is_native();
        let output = command.env("RAYON_NUM_THREADS", if ours { "1" } else { "2" }).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(!String::from_utf8(bench.read(&format!("{run}/metrics.jsonl"))).unwrap().contains(warning));
    });
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 3");
    let portable = |args: &[&str], threads: &str| {
        let mut command = bench.command(&[args, &["--device", "cpu"]].concat());
        assert!(
            command.env("DISTILL_SIMD", "portable").env("RAYON_NUM_THREADS", threads).status().unwrap().code()
                < Some(76)
        );
    };
    portable(&["train", "--config", "run.toml", "--stop-after", "1"], "2");
    portable(&RESUME, "1");
    assert!(String::from_utf8(bench.read("run/metrics.jsonl")).unwrap().contains(warning));
}

#[test]
fn other_instructions_are_warned_of() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 3");
    let cpu = ["--device", "cpu"];
    let mut command = bench.command(&[&["train", "--config", "run.toml", "--stop-after", "1"][..], &cpu].concat());
    command.env("DISTILL_SIMD", "portable");
    assert_eq!(command.status().unwrap().code(), Some(75));
    bench.expect(&[&RESUME[..], &cpu].concat(), 0);
    let metrics = String::from_utf8(bench.read("run/metrics.jsonl")).unwrap();
    // A machine that has nothing else goes on with the same.
    assert_eq!(metrics.contains("\"hardware_changed\""), Simd::level() != Simd::Portable, "{metrics}");
    assert!(metrics.contains("DISTILL_SIMD=portable") || Simd::level() == Simd::Portable);
}

#[test]
fn stopped_in_bf16_with_blocks_run_again_and_resumed() {
    let more = "epochs = 2\ndtype = \"bf16\"\ncheckpoint_activations = true";
    ends_like_the_unbroken_run(more, "", |bench, run| stop_at(bench, run, &[1, 7]));
}

#[test]
fn stopped_again_and_again_in_a_packed_run_with_a_decaying_rate() {
    let more = "epochs = 3\nschedule = \"cosine\"\nwarmup_steps = 2\nweight_decay = 0.1";
    ends_like_the_unbroken_run(more, "packing = true", |bench, run| stop_at(bench, run, &[1, 2, 3, 4]));
}

#[test]
fn stopped_while_the_student_writes_rows_of_its_own_and_resumed() {
    // With a buffer, half of the steps draw from what is kept; the draws and the buffer are part of the state.
    let rollout = "\n[rollout]\nfraction = 0.6\nmax_new_tokens = 9\nevery_steps = 2\nbuffer = 5\ntop_p = 0.9";
    let more = format!("epochs = 2{rollout}");
    ends_like_the_unbroken_run(&more, "", |bench, run| stop_at(bench, run, &[1, 2, 7, 11]));
}

#[test]
fn stopped_while_projections_of_hidden_states_learn_and_resumed() {
    // Hidden states are compared on the CPU alone.
    let more = "epochs = 2\n[loss]\nhidden = { layers = \"auto\", kind = \"cosine\", weight = 0.5 }";
    ends_like_the_unbroken_run(more, "", |bench, run| {
        stop_at(bench, run, &[2, 7]);
        let student = files(&bench.path(run).join("student"));
        let checkpoint = files(&bench.path(run).join("checkpoints/step-00000012"));
        assert!(checkpoint.contains_key("projections.safetensors") && !student.contains_key("projections.safetensors"));
    });
}

#[test]
fn terminated_by_a_signal_and_resumed() {
    ends_like_the_unbroken_run("steps = 400", "", |bench, run| {
        let args = [&RESUME[..], &["--output", run]].concat();
        let mut child = bench.command(&args).spawn().unwrap();
        wait_for(bench, run, 3);
        // SAFETY: the child is ours and has not been waited for.
        unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
        assert_eq!(child.wait().unwrap().code(), Some(75));
        bench.expect(&args, 0);
    });
}

#[test]
fn killed_again_and_again_and_resumed() {
    ends_like_the_unbroken_run("steps = 400", "", |bench, run| {
        let args = [&RESUME[..], &["--output", run]].concat();
        for kill in 0..4 {
            let mut child = bench.command(&args).spawn().unwrap();
            wait_for(bench, run, 5 + 20 * kill);
            child.kill().unwrap();
            child.wait().unwrap();
        }
        bench.expect(&args, 0);
    });
}

#[test]
fn a_finished_run_can_be_made_longer() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 5");
    bench.expect(&["train", "--config", "run.toml"], 0);
    bench.expect(&[&RESUME[..], &["--set", "train.steps=9"]].concat(), 0);
    assert_eq!(bench.json("run/summary.json")["steps"], 9);
}

#[test]
fn another_config_corpus_or_teacher_is_refused_by_name() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 5");
    bench.expect(&["train", "--config", "run.toml", "--stop-after", "2"], 75);
    let said = bench.refused(&[&RESUME[..], &["--set", "train.learning_rate=1"]].concat());
    assert!(said.contains("train.learning_rate"), "{said}");
    let corpus = bench.read("train.jsonl");
    bench.write("train.jsonl", [corpus.clone(), common::pair(50).into_bytes()].concat());
    let said = bench.refused(&RESUME);
    assert!(said.contains("the training data"), "{said}");
    bench.write("train.jsonl", corpus);
    let mut weights = bench.read("teacher/student/model.safetensors");
    let last = weights.len() - 3;
    weights[last] ^= 1;
    bench.write("teacher/student/model.safetensors", weights);
    let said = bench.refused(&RESUME);
    assert!(said.contains("the teacher"), "{said}");
}

#[test]
fn a_folder_in_use_is_refused_and_a_damaged_checkpoint_passed_over() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 8");
    bench.expect(&["train", "--config", "run.toml", "--stop-after", "7"], 75);
    assert!(bench.refused(&["train", "--config", "run.toml"]).contains("--resume"));
    let latest = String::from_utf8(bench.read("run/checkpoints/latest")).unwrap();
    let model = format!("run/checkpoints/{}/model.safetensors", latest.trim());
    let whole = bench.read(&model);
    bench.write(&model, &whole[..whole.len() / 2]);
    let output = bench.expect(&RESUME, 0);
    assert!(String::from_utf8_lossy(&output.stderr).contains("model.safetensors"));
}

#[test]
fn a_run_without_any_checkpoint_cannot_be_resumed() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 8");
    bench.write("run/config.toml", "");
    bench.expect(&RESUME, 1);
}

/// A run of 20 steps with checkpoints at 5, 10, 15 and 20, evaluated as often.
fn four_checkpoints() -> Bench {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 20");
    let text = String::from_utf8(bench.read("run.toml")).unwrap();
    let text = text.replace("[eval]\nevery_steps = 4", "[eval]\nevery_steps = 5");
    bench.write("run.toml", text.replace("every_steps = 3", "every_steps = 5\nkeep_last = 9"));
    bench.expect(&["train", "--config", "run.toml"], 0);
    bench
}

fn steps(bench: &Bench, run: &str, kind: &str) -> Vec<u64> {
    let text = String::from_utf8(bench.read(&format!("{run}/metrics.jsonl"))).unwrap();
    let events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    events.filter(|e| e["event"] == kind).map(|e| e["step"].as_u64().unwrap()).collect()
}

#[test]
fn going_back_to_an_older_checkpoint_ends_like_the_unbroken_run() {
    let bench = four_checkpoints();
    let (metrics, student) = (bench.timeless_metrics("run"), files(&bench.path("run/student")));
    bench.expect(&["train", "--config", "run.toml", "--resume", "run/checkpoints/step-00000010"], 0);
    assert_eq!(bench.timeless_metrics("run"), metrics);
    assert_eq!(files(&bench.path("run/student")), student);
    assert_eq!(steps(&bench, "run", "checkpoint"), [0, 5, 10, 15, 20]);
}

#[test]
fn a_refused_resume_changes_nothing() {
    let bench = four_checkpoints();
    let before = (bench.read("run/metrics.jsonl"), bench.read("run/config.toml"), bench.read("run/checkpoints/latest"));
    let corpus = bench.read("train.jsonl");
    bench.write("train.jsonl", [corpus, common::pair(50).into_bytes()].concat());
    bench.refused(&["train", "--config", "run.toml", "--resume", "run/checkpoints/step-00000010"]);
    let after = (bench.read("run/metrics.jsonl"), bench.read("run/config.toml"), bench.read("run/checkpoints/latest"));
    assert!(before == after);
}

#[test]
fn a_checkpoint_of_another_run_branches_into_an_empty_folder_only() {
    let bench = four_checkpoints();
    bench.expect(&["train", "--config", "run.toml", "--output", "other", "--set", "seed=7"], 0);
    let branch = ["train", "--config", "run.toml", "--resume", "run/checkpoints/step-00000010", "--output"];
    assert!(bench.refused(&[&branch[..], &["other"]].concat()).contains("belongs to another run"));
    bench.expect(&[&branch[..], &["branch"]].concat(), 0);
    assert_eq!(bench.timeless_metrics("branch"), bench.timeless_metrics("run"));
    assert_eq!(files(&bench.path("branch/student")), files(&bench.path("run/student")));
    assert!(bench.refused(&["train", "--config", "run.toml", "--resume", "run"]).contains("is a run"));
}

#[test]
fn best_names_what_the_state_says_after_going_back() {
    let bench = four_checkpoints();
    bench.expect(
        &[
            "train",
            "--config",
            "run.toml",
            "--resume",
            "run/checkpoints/step-00000005",
            "--set",
            "eval.every_steps=1000",
        ],
        0,
    );
    let best = String::from_utf8(bench.read("run/checkpoints/best")).unwrap();
    let step = bench.json("run/summary.json")["best"]["step"].as_u64().unwrap();
    assert_eq!(best.trim(), format!("step-{step:08}"));
    assert!(bench.path("run/checkpoints").join(best.trim()).is_dir());
}

#[test]
fn resuming_a_finished_run_adds_no_event_and_delivers_again() {
    let bench = four_checkpoints();
    let before = bench.read("run/metrics.jsonl");
    std::fs::remove_dir_all(bench.path("run/student")).unwrap();
    bench.expect(&RESUME, 0);
    assert_eq!(bench.read("run/metrics.jsonl"), before);
    assert!(bench.path("run/student/model.safetensors").is_file());
}

#[test]
fn an_edited_template_or_shape_is_refused_by_name() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 5");
    bench.write("chat.jinja", "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}");
    let text = String::from_utf8(bench.read("run.toml")).unwrap();
    bench.write("run.toml", text.replace("chat_template = \"none\"", "chat_template = \"chat.jinja\""));
    bench.expect(&["train", "--config", "run.toml", "--stop-after", "2"], 75);
    bench.write("chat.jinja", "{% for m in messages %} {{ m.content }}<|im_end|>{% endfor %}");
    bench.write("student.json", common::model_config(1, 16).replace("0.1", "0.2"));
    let said = bench.refused(&RESUME);
    assert!(said.contains("the chat template") && said.contains("student.config"), "{said}");
}

#[test]
fn a_step_that_fails_keeps_every_step_before_it() {
    let bench = Bench::with_teacher();
    bench.distil_config("steps = 50\nmax_grad_norm = 1e30\nwarmup_steps = 4");
    bench.expect(&["train", "--config", "run.toml", "--set", "train.learning_rate=1e12"], 1);
    let last = *steps(&bench, "run", "train").last().unwrap();
    let latest = String::from_utf8(bench.read("run/checkpoints/latest")).unwrap();
    assert_eq!(latest.trim(), format!("step-{last:08}"));
}

#[test]
fn a_start_killed_before_its_first_checkpoint_is_made_again_by_the_same_command() {
    let bench = Bench { on_cpu: true, ..Bench::with_teacher() };
    bench.distil_config("steps = 4");
    bench.expect(&["train", "--config", "run.toml", "--output", "whole"], 0);
    for resume in [true, false] {
        let run = format!("broken-{resume}");
        for (name, text) in
            [("run.starting", ""), ("config.toml", "seed = 4"), ("metrics.jsonl", "{\"event\":\"warning\"")]
        {
            bench.write(&format!("{run}/{name}"), text);
        }
        let args = ["train", "--config", "run.toml", "--output", &run, "--resume"];
        bench.expect(&args[..if resume { 6 } else { 5 }], 0);
        assert_same_end(&bench, "whole", &run, "started twice");
        assert!(!bench.path(&run).join("run.starting").exists());
    }
}

#[test]
fn a_branch_has_a_checkpoint_before_its_first_step() {
    let bench = four_checkpoints();
    let branch = ["train", "--config", "run.toml", "--resume", "run/checkpoints/step-00000010", "--output", "branch"];
    bench.expect(&[&branch[..], &["--set", "checkpoint.every_steps=100", "--stop-after", "11"]].concat(), 75);
    let names: Vec<String> = files_in(&bench, "branch/checkpoints");
    assert!(names.contains(&"step-00000010".to_owned()) && names.contains(&"step-00000011".to_owned()), "{names:?}");
}

fn files_in(bench: &Bench, folder: &str) -> Vec<String> {
    std::fs::read_dir(bench.path(folder)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_checkpoint_left_aside_by_a_kill_is_put_back_before_the_newest_is_looked_for() {
    let bench = four_checkpoints();
    let checkpoints = bench.path("run/checkpoints");
    std::fs::rename(checkpoints.join("step-00000020"), checkpoints.join(".old-step-00000020")).unwrap();
    let said = String::from_utf8(bench.expect(&RESUME, 0).stderr).unwrap();
    assert!(said.contains("resuming after step 20") && !said.contains("checkpoint_damaged"), "{said}");
}

#[test]
fn a_checkpoint_of_a_newer_version_is_no_damage_to_go_back_behind() {
    let bench = four_checkpoints();
    let manifest = "run/checkpoints/step-00000020/manifest.json";
    let text = String::from_utf8(bench.read(manifest)).unwrap();
    bench.write(manifest, text.replacen("\"format\": 2", "\"format\": 3", 1));
    let said = String::from_utf8(bench.expect(&RESUME, 1).stderr).unwrap();
    assert!(said.contains("has format 3") && said.contains("resume with that version"), "{said}");
    assert!(bench.path(manifest).is_file());
}
