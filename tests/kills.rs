//! Killed at random times, again and again: the run ends as the unbroken one, and never starts over.
//!
//! `cargo test` kills twenty times; `KILLS=200 cargo test --test kills -- --nocapture` kills two hundred times.

mod common;

use std::time::{Duration, Instant};

use common::Bench;
use common::runs::{self, KINDS, RESUME, assert_same_end};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The steps of the train lines of a run, in order.
fn trained(bench: &Bench, run: &str) -> Vec<u64> {
    let text = String::from_utf8(bench.read(&format!("{run}/metrics.jsonl"))).unwrap();
    let events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    events.filter(|e| e["event"] == "train").map(|e| e["step"].as_u64().unwrap()).collect()
}

/// The step of the newest checkpoint that is valid, as a resumption finds it.
fn reached(bench: &Bench, run: &str) -> Option<u64> {
    distill::checkpoint::latest_valid(&bench.path(run)).unwrap().checkpoint.map(|checkpoint| checkpoint.step())
}

#[test]
fn a_run_killed_anywhere_ends_like_the_unbroken_one_and_never_starts_over() {
    let kills: usize = std::env::var("KILLS").map_or(20, |text| text.parse().unwrap());
    // Seeded: the same kills at the same times after the start, if not at the same instructions.
    let mut dice = ChaCha8Rng::seed_from_u64(200);
    let (mut before, mut between, mut done) = (0, 0, 0);
    for (n, kind) in KINDS.into_iter().enumerate() {
        let bench = runs::bench(kind, 2, "steps = 60", "");
        // A save after every other step.
        let text = String::from_utf8(bench.read("run.toml")).unwrap();
        bench.write("run.toml", text.replace("[checkpoint]\nevery_steps = 3", "[checkpoint]\nevery_steps = 2"));
        let started = Instant::now();
        bench.expect(&["train", "--config", "run.toml", "--output", "whole"], 0);
        let whole = started.elapsed();
        let args = [&RESUME[..], &["--output", "broken"]].concat();
        let share = kills / KINDS.len() + (n < kills % KINDS.len()) as usize;
        let mut furthest = None;
        for kill in 0..share {
            let mut child = bench.command(&args).stderr(std::process::Stdio::null()).spawn().unwrap();
            // What is left to do shrinks as the run goes on: the delays with it, so that kills find something to hit.
            let left = 1.0 - furthest.unwrap_or(0) as f64 / 60.0;
            std::thread::sleep(whole.mul_f64(dice.random::<f64>() * left.max(0.05)).max(Duration::from_millis(1)));
            let finished = child.try_wait().unwrap();
            assert!(finished.is_none_or(|status| status.success()), "{kind:?}, kill {kill}: {finished:?}");
            let finished = finished.is_some();
            let _ = child.kill();
            child.wait().unwrap();
            let now = if bench.path("broken/checkpoints").is_dir() { reached(&bench, "broken") } else { None };
            assert!(now >= furthest, "{kind:?}, kill {kill}: from step {furthest:?} back to {now:?}");
            match (now, finished) {
                (None, _) => before += 1,
                (_, true) => done += 1,
                _ => between += 1,
            }
            furthest = now;
            // A finished run would only deliver again: the next kills meet a run that begins.
            if finished {
                assert_same_end(&bench, "whole", "broken", &format!("{kind:?} after {kill} kills"));
                std::fs::remove_dir_all(bench.path("broken")).unwrap();
                furthest = None;
            }
        }
        bench.expect(&args, 0);
        assert_same_end(&bench, "whole", "broken", &format!("{kind:?}"));
        let steps = trained(&bench, "broken");
        assert_eq!(steps, (1..=60).collect::<Vec<u64>>(), "{kind:?}: every step once, in order");
        let litter: Vec<String> =
            names(&bench, "broken").into_iter().chain(names(&bench, "broken/checkpoints")).collect();
        assert!(!litter.iter().any(|name| name.starts_with('.')), "{litter:?}");
    }
    println!("{kills} kills: {before} before the first checkpoint, {between} between two, {done} after the end");
    assert!(between > 0, "every kill missed the run");
}

fn names(bench: &Bench, folder: &str) -> Vec<String> {
    std::fs::read_dir(bench.path(folder)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}
