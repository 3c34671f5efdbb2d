//! A disk that is full, that has a quota or that refuses: said at once and plainly, nothing lost, nothing left lying around.

mod common;

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use common::Bench;
use common::runs::{self, Kind, RESUME, assert_same_end};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Everything below the folder but its lock, folders with a slash.
fn listing(bench: &Bench, folder: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(bench.path(folder)) else { return vec![] };
    let mut names = vec![];
    for entry in entries.map(|entry| entry.unwrap()) {
        let name = entry.file_name().into_string().unwrap();
        match entry.path().is_dir() {
            true => {
                names.extend(listing(bench, &format!("{folder}/{name}")).into_iter().map(|n| format!("{name}/{n}")))
            }
            false if name != "run.lock" => names.push(name),
            false => {}
        }
    }
    names.sort();
    names
}

/// The command with files limited to `bytes`, as a quota does.
fn limited(bench: &Bench, args: &[&str], bytes: u64) -> Output {
    let mut command = bench.command(args);
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: setrlimit may be called between fork and exec.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    command.output().unwrap()
}

#[test]
fn a_run_that_does_not_fit_on_the_disk_is_refused_before_it_begins() {
    let bench = Bench { on_cpu: true, ..Bench::with_teacher() };
    bench.distil_config("steps = 2_000_000_000_000_000");
    let text = String::from_utf8(bench.read("run.toml")).unwrap();
    let many = "every_steps = 1\nkeep_last = 1_000_000_000_000_000";
    bench.write("run.toml", text.replace("[checkpoint]\nevery_steps = 3", &format!("[checkpoint]\n{many}")));
    let said = bench.refused(&["train", "--config", "run.toml"]);
    for part in ["the run writes about", "are free", "1000000000000002 checkpoints", "checkpoint.keep_last"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!bench.path("run").exists());
    let plan = String::from_utf8(bench.expect(&["train", "--config", "run.toml", "--dry-run"], 0).stdout).unwrap();
    assert!(plan.contains("up to 1000000000000002 checkpoints of") && plan.contains(" free, "), "{plan}");
}

#[test]
fn a_path_that_takes_no_checkpoint_is_found_out_before_the_first_step_and_given_back_empty() {
    let bench = Bench { on_cpu: true, ..Bench::with_teacher() };
    bench.distil_config("steps = 5");
    let output = limited(&bench, &["train", "--config", "run.toml"], 9_000);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("cannot save the checkpoint of step 0"), "{}", said(&output));
    assert!(said(&output).contains("File too large"), "{}", said(&output));
    assert_eq!(listing(&bench, "run"), [""; 0]);
    // The same command, with room.
    bench.expect(&["train", "--config", "run.toml"], 0);
}

#[test]
fn a_quota_met_in_the_middle_of_a_run_costs_no_step_and_no_checkpoint() {
    let bench = runs::bench(Kind::Local, 2, "steps = 500", "");
    bench.expect(&["train", "--config", "run.toml", "--output", "whole"], 0);
    let largest = bench.read("whole/student/model.safetensors").len() as u64;
    // The log outgrows what a checkpoint still fits in.
    let optimizer = "whole/checkpoints/step-00000500/optimizer.safetensors";
    let limit = bench.read(optimizer).len() as u64 * 11 / 10;
    assert!(limit > largest && limit < bench.read("whole/metrics.jsonl").len() as u64 * 3 / 4);
    // It ends within one line and another: of a step, of an evaluation, of a checkpoint.
    for (n, limit) in (0..4).map(|n| (n, limit + 101 * n)) {
        let run = format!("broken-{n}");
        let output = limited(&bench, &["train", "--config", "run.toml", "--output", &run], limit);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("metrics.jsonl"), "{}", said(&output));
        assert!(!listing(&bench, &run).iter().any(|name| name.contains(".tmp-") || name.contains(".old-")));
        bench.expect(&[&RESUME[..], &["--output", &run]].concat(), 0);
        assert_same_end(&bench, "whole", &run, "after a quota");
        bench.expect(&["verify", &run], 0);
    }
}

/// `script` as root of a user namespace of its own, where it may mount. None: this system has no such thing to lend.
fn mounting(bench: &Bench, script: &str) -> Option<Output> {
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-ec", script]).current_dir(bench.dir.path());
        command.env("DISTILL", env!("CARGO_BIN_EXE_distill")).env("RAYON_NUM_THREADS", "2").output()
    };
    let probe = unshare("mkdir -p probe && mount -t tmpfs -o size=64k tmpfs probe");
    if !probe.is_ok_and(|output| output.status.success()) {
        eprintln!("not run: this system lets nobody mount a disk of its own");
        return None;
    }
    Some(unshare(script).unwrap())
}

#[test]
fn a_disk_that_fills_up_keeps_the_last_checkpoint_whole_and_the_run_goes_on_with_more_room() {
    let bench = runs::bench(Kind::Local, 2, "steps = 200", "");
    let text = String::from_utf8(bench.read("run.toml")).unwrap();
    bench.write(
        "run.toml",
        text.replace("[checkpoint]\nevery_steps = 3", "[checkpoint]\nevery_steps = 20\nkeep_last = 99"),
    );
    // There is room when the run begins; another file takes it once the checkpoint of step 40 stands.
    bench.expect(&["train", "--config", "run.toml", "--output", "whole"], 0);
    let script = "mkdir small && mount -t tmpfs -o size=4m tmpfs small
        $DISTILL train --device cpu --config run.toml --output small/run & run=$!
        while [ ! -e small/run/checkpoints/step-00000040 ] && kill -0 $run; do sleep 0.001; done
        head -c 4m /dev/zero > small/others || true
        code=0; wait $run || code=$?
        rm small/others; ls -A small/run small/run/checkpoints; cp -r small/run broken; exit $code";
    let Some(output) = mounting(&bench, script) else { return };
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("No space left on device"), "{}", said(&output));
    assert!(!String::from_utf8_lossy(&output.stdout).contains(".tmp-"), "{}", String::from_utf8_lossy(&output.stdout));
    bench.expect(&[&RESUME[..], &["--output", "broken"]].concat(), 0);
    assert_same_end(&bench, "whole", "broken", "after a full disk");
}

#[test]
fn a_disk_that_is_read_only_is_refused_and_named() {
    let bench = Bench { on_cpu: true, ..Bench::with_teacher() };
    bench.distil_config("steps = 5");
    let script = "mkdir fixed && mount -t tmpfs -o size=700k,ro tmpfs fixed
        $DISTILL train --device cpu --config run.toml --output fixed/run";
    let Some(output) = mounting(&bench, script) else { return };
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("fixed/run") && said(&output).contains("Read-only"), "{}", said(&output));
}

#[test]
fn memory_is_flat_over_fifty_saves() {
    let bench = Bench { on_cpu: true, ..Bench::with_teacher() };
    let shape = common::model_config(2, 256).replace("\"intermediate_size\": 48", "\"intermediate_size\": 768");
    bench.write("student.json", shape);
    bench.distil_config("steps = 50");
    let text = String::from_utf8(bench.read("run.toml")).unwrap();
    let peak = |every: &str, run: &str| {
        bench.write("run.toml", text.replace("[checkpoint]\nevery_steps = 3", &format!("[checkpoint]\n{every}")));
        bench.expect(&["train", "--config", "run.toml", "--output", run, "--set", "checkpoint.keep_best=false"], 0);
        bench.json(&format!("{run}/summary.json"))["peak_rss_bytes"].as_u64().unwrap()
    };
    let (once, always) = (peak("every_steps = 50", "once"), peak("every_steps = 1", "always"));
    let checkpoint: usize = ["model", "optimizer"]
        .iter()
        .map(|name| bench.read(&format!("always/checkpoints/step-00000050/{name}.safetensors")).len())
        .sum();
    assert!(checkpoint > 10 << 20);
    // A copy of the model that stayed behind at every save would be fifty of them.
    assert!(
        always < once + 2 * checkpoint as u64,
        "{once} bytes with two saves, {always} with fifty-one of {checkpoint}"
    );
    assert_eq!(std::fs::read_dir(bench.path("always/checkpoints")).unwrap().count(), 3, "two checkpoints and latest");
}
