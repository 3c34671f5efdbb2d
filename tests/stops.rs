//! Every kind of run, stopped where it hurts and resumed, ends as the unbroken one to the last byte.

mod common;

use common::runs::{self, KINDS, Kind, RESUME, assert_same_end, wait_for};
use distill::kernels::{Precision, Simd};

/// 23 rows, 4 a step: 6 steps an epoch, 12 in all.
const STEPS: u64 = 12;
const MORE: &str = "epochs = 2\nschedule = \"cosine\"\nwarmup_steps = 2\nweight_decay = 0.1";

/// One after the other, each a resumption of the one before.
const STOPS: [&[u64]; 5] = [&[1], &[4], &[6], &[STEPS - 1], &[3, 4]];

fn every_stop(kind: Kind) {
    // How long an answer gets is not known when packs are made: the config refuses the two together.
    for packing in [false, true].into_iter().filter(|packing| !packing || kind != Kind::Rollouts) {
        for threads in [1, 2] {
            let bench = runs::bench(kind, threads, MORE, &format!("packing = {packing}"));
            bench.expect(&["train", "--config", "run.toml", "--output", "whole"], 0);
            let steps = bench.json("whole/summary.json")["steps"].as_u64().unwrap();
            // A pack holds several rows, so that a packed run is shorter.
            assert!(if packing { steps < STEPS && steps > 2 } else { steps == STEPS });
            for (n, stops) in STOPS.iter().enumerate() {
                let run = format!("broken-{n}");
                let last = steps - 1;
                for &stop in *stops {
                    let stop = stop.min(last).to_string();
                    bench.expect(&[&RESUME[..], &["--output", &run, "--stop-after", &stop]].concat(), 75);
                }
                bench.expect(&[&RESUME[..], &["--output", &run]].concat(), 0);
                let what = format!("{kind:?}, packing = {packing}, {threads} threads, stopped at {stops:?}");
                assert_same_end(&bench, "whole", &run, &what);
            }
        }
    }
}

#[test]
fn a_run_from_a_local_teacher_stopped_anywhere_ends_like_the_unbroken_one() {
    every_stop(Kind::Local);
}

#[test]
fn a_run_from_a_gguf_teacher_stopped_anywhere_ends_like_the_unbroken_one() {
    every_stop(Kind::Gguf);
}

#[test]
fn a_run_from_a_cache_stopped_anywhere_ends_like_the_unbroken_one() {
    every_stop(Kind::Cache);
}

#[test]
fn a_run_on_the_students_own_words_stopped_anywhere_ends_like_the_unbroken_one() {
    every_stop(Kind::Rollouts);
}

#[test]
fn a_run_of_adapters_stopped_anywhere_ends_like_the_unbroken_one() {
    every_stop(Kind::Lora);
}

#[test]
fn threads_may_change_at_every_stop() {
    // Where our own product does not run, that may change the last bits, and is warned of.
    if !Precision::F32.is_native() {
        eprintln!("not run: {} products depend on the number of threads", Simd::level().name());
        return;
    }
    for kind in KINDS {
        let mut bench = runs::bench(kind, 2, MORE, "");
        bench.expect(&["train", "--config", "run.toml", "--output", "whole"], 0);
        for (threads, stop) in [(1, "2"), (2, "5"), (1, "8")] {
            bench.threads = threads;
            bench.expect(&[&RESUME[..], &["--output", "broken", "--stop-after", stop]].concat(), 75);
        }
        bench.threads = 2;
        bench.expect(&[&RESUME[..], &["--output", "broken"]].concat(), 0);
        assert_same_end(&bench, "whole", "broken", &format!("{kind:?}, threads 1, 2, 1, 2"));
    }
}

#[test]
fn a_signal_in_the_middle_of_a_step_gives_the_step_up_and_not_the_run() {
    // Sixteen micro-batches of one row each: a signal meets one of them, not the end of a step.
    for (signal, kind) in [(libc::SIGTERM, Kind::Local), (libc::SIGINT, Kind::Rollouts), (libc::SIGUSR1, Kind::Lora)] {
        let bench = runs::bench(kind, 2, "steps = 60", "");
        let text = String::from_utf8(bench.read("run.toml")).unwrap();
        let text = text.replace("batch_size = 4\nmicro_batch_size = 3", "batch_size = 16\nmicro_batch_size = 1");
        bench.write("run.toml", text);
        bench.expect(&["train", "--config", "run.toml", "--output", "whole"], 0);
        let args = [&RESUME[..], &["--output", "broken"]].concat();
        for step in [1, 9] {
            let mut child = bench.command(&args).spawn().unwrap();
            wait_for(&bench, "broken", step);
            // SAFETY: the child is ours and has not been waited for.
            unsafe { libc::kill(child.id() as i32, signal) };
            assert_eq!(child.wait().unwrap().code(), Some(75));
        }
        bench.expect(&args, 0);
        assert_same_end(&bench, "whole", "broken", &format!("signal {signal} and {kind:?}"));
    }
}
