//! A teacher cache: made, broken off, sharded, merged, trained from and evaluated against, as a user would.

mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use candle_core::{Device, Tensor};
use common::{Bench, files, model_files};
use distill::cache::{Codec, DataId, Header, TeacherId, Values, encode_batch};
use distill::corpus::{Batch, Row, RowRef};
use distill::kernels::Precision;
use distill::loss::{ForwardKl, Objective, StudentHead};
use distill::signal::{Needs, TeacherSignal};

/// Values without a pattern, from −`spread` to `spread`.
fn noise(n: usize, spread: f32, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..n).map(|_| spread * (2.0 * next() - 1.0)).collect()
}

const VOCAB: usize = 80;
const WIDTH: usize = 6;

/// Targets of two rows, what a teacher says of them, and a student's states and head.
struct Case {
    batch: Batch,
    logits: Vec<f32>,
    hidden: Tensor,
    weight: Tensor,
}

impl Case {
    fn new() -> Self {
        let row = |n: u32, length: u32| Row {
            tokens: (0..length).map(|t| (7 * t + n) % VOCAB as u32).collect(),
            targets: (0..length).map(|t| t > 2).collect(),
            source: RowRef { digest: [n as u8; 32], file: Arc::new(PathBuf::from("rows.jsonl")), line: n as u64 },
        };
        let batch = Batch::new(&[row(1, 9), row(2, 12)]);
        let n = batch.valid_tokens();
        let tensor = |values, shape: (usize, usize)| Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        Self {
            logits: noise(n * VOCAB, 5.0, 1),
            hidden: tensor(noise(n * WIDTH, 1.0, 2), (n, WIDTH)),
            weight: tensor(noise(VOCAB * WIDTH, 1.5, 3), (VOCAB, WIDTH)),
            batch,
        }
    }

    fn live(&self) -> TeacherSignal {
        TeacherSignal::Dense { logits: self.logits.clone(), vocab_size: VOCAB }
    }

    /// What comes back of the teacher's word.
    fn stored(&self, codec: Codec, values: Values, temperature: f64) -> TeacherSignal {
        let teacher = TeacherId {
            architecture: "llama".into(),
            parameters: 1,
            dtype: "f32".into(),
            weights: String::new(),
            tokenizer: String::new(),
        };
        let data = DataId { chat_template: "none".into(), max_length: 64, loss_on: "completion".into() };
        let header = Header::new(codec, values, VOCAB, &[temperature], teacher, data);
        let mut all = distill::cache::Targets::default();
        for row in encode_batch(&header, &self.live(), &self.batch).unwrap() {
            all.append(&header.decode(&row.bytes).unwrap().said);
        }
        all.signal(&header, &Needs { temperature, ..Needs::default() }).unwrap()
    }

    /// Loss per target and its gradient by the student's states.
    fn loss(&self, signal: &TeacherSignal, temperature: f64) -> (f64, Vec<f32>) {
        let head = StudentHead { weight: &self.weight, grad: None, precision: Precision::F32, cap: None };
        let mut objective = Objective::distillation(Box::new(ForwardKl), temperature, 0.0, true);
        let n = self.batch.valid_tokens();
        let out = objective.run(&self.hidden, &head, Some(signal), &self.batch, n).unwrap();
        (objective.loss(&out.sums), out.d_hidden.flatten_all().unwrap().to_vec1().unwrap())
    }
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2) as f64).sum::<f64>().sqrt()
}

fn norm(a: &[f32]) -> f64 {
    a.iter().map(|a| a.powi(2) as f64).sum::<f64>().sqrt()
}

#[test]
fn top_k_of_all_tokens_and_dense_give_the_live_teachers_loss_and_gradient() {
    let case = Case::new();
    for temperature in [1.0, 2.0, 0.7] {
        let (loss, gradient) = case.loss(&case.live(), temperature);
        for codec in [Codec::TopK { k: VOCAB }, Codec::Dense] {
            let (stored, theirs) = case.loss(&case.stored(codec, Values::F32, temperature), temperature);
            assert!((stored - loss).abs() < 1e-6 * loss, "{codec}: {stored} instead of {loss}");
            assert!(distance(&theirs, &gradient) < 1e-6 * norm(&gradient).max(1.0), "{codec} at {temperature}");
            let (half, theirs) = case.loss(&case.stored(codec, Values::F16, temperature), temperature);
            assert!((half - loss).abs() < 1e-3 * loss && distance(&theirs, &gradient) < 2e-3 * norm(&gradient));
        }
    }
}

#[test]
fn the_bucket_of_all_other_tokens_never_costs_more_than_they_do() {
    let case = Case::new();
    for temperature in [1.0, 3.0] {
        let (loss, gradient) = case.loss(&case.live(), temperature);
        let of = |k| case.loss(&case.stored(Codec::TopK { k }, Values::F32, temperature), temperature);
        let all: Vec<(f64, Vec<f32>)> = [1, 2, 5, 20, 60, VOCAB].map(of).to_vec();
        assert!(all.iter().all(|(stored, _)| *stored > 0.0 && *stored <= loss * (1.0 + 1e-6)));
        assert!(all.is_sorted_by(|a, b| a.0 <= b.0 * (1.0 + 1e-6)), "more tokens, more of the loss");
        let errors: Vec<f64> = all.iter().map(|(_, theirs)| distance(theirs, &gradient)).collect();
        assert!(errors.is_sorted_by(|a, b| a >= b), "{errors:?}");
    }
}

#[test]
fn draws_are_unbiased_and_their_error_falls_with_the_root_of_their_number() {
    let case = Case::new();
    // Draws from the distribution that the loss is about, and from another one.
    for (temperature, drawn_at) in [(1.0, 1.0), (2.0, 2.0), (2.0, 1.0)] {
        let (loss, gradient) = case.loss(&case.live(), temperature);
        let mut errors = vec![];
        for draws in [8, 32, 128] {
            const SEEDS: u64 = 300;
            let (mut mean_loss, mut mean_gradient, mut squares) = (0.0, vec![0.0f32; gradient.len()], 0.0);
            let mut losses = vec![];
            for seed in 0..SEEDS {
                let codec = Codec::Sampled { draws, temperature: drawn_at, seed };
                let (stored, theirs) = case.loss(&case.stored(codec, Values::F32, temperature), temperature);
                losses.push(stored);
                mean_loss += stored / SEEDS as f64;
                squares += distance(&theirs, &gradient).powi(2) / SEEDS as f64;
                mean_gradient.iter_mut().zip(&theirs).for_each(|(mean, g)| *mean += g / SEEDS as f32);
            }
            let variance = losses.iter().map(|l| (l - mean_loss).powi(2)).sum::<f64>() / (SEEDS - 1) as f64;
            let standard_error = (variance / SEEDS as f64).sqrt();
            assert!((mean_loss - loss).abs() < 4.0 * standard_error, "{mean_loss} ± {standard_error}, not {loss}");
            // The mean of 300 has the error of one over √300.
            let error = squares.sqrt();
            assert!(distance(&mean_gradient, &gradient) < 1.5 * error / (SEEDS as f64).sqrt());
            errors.push(error);
        }
        for pair in errors.windows(2) {
            let ratio = pair[0] / pair[1];
            assert!((1.75..2.3).contains(&ratio), "four times the draws leave {ratio:.2} times less: {errors:?}");
        }
    }
}

/// A folder with a trained teacher, 300 rows and a config that distils from it at T = 2.
fn bench(more: &str) -> Bench {
    let bench = Bench::with_teacher();
    bench.write("train.jsonl", (0..300).map(common::pair).collect::<String>());
    bench.distil_config("steps = 12");
    let text = String::from_utf8(bench.read("run.toml")).unwrap();
    // A cache has no tokenizer to lend.
    let student = format!("config = \"student.json\"\ntokenizer = '{}'", common::tokenizer().display());
    let text = text.replace("config = \"student.json\"", &student);
    bench.write("run.toml", format!("{text}[loss]\ntemperature = 2\n{more}"));
    bench
}

fn cache(bench: &Bench, output: &str, more: &[&str], code: i32) -> String {
    let args = [&["cache", "--config", "run.toml", "--output", output, "--device", "cpu"], more].concat();
    String::from_utf8(bench.expect(&args, code).stderr).unwrap()
}

const FILES: [&str; 3] = ["header.json", "signal.bin", "index.bin"];

fn same(bench: &Bench, a: &str, b: &str) -> bool {
    FILES.iter().all(|name| bench.read(&format!("{a}/{name}")) == bench.read(&format!("{b}/{name}")))
}

const FROM_CACHE: [&str; 4] = ["--set", "teacher.kind=cache", "--set", "teacher.path=cache"];

fn train(bench: &Bench, output: &str, more: &[&str], code: i32) {
    bench.expect(&[&["train", "--config", "run.toml", "--output", output, "--device", "cpu"], more].concat(), code);
}

fn losses(bench: &Bench, run: &str) -> Vec<f64> {
    bench.timeless_metrics(run).iter().filter(|e| e["event"] == "train").map(|e| e["loss"].as_f64().unwrap()).collect()
}

#[test]
fn a_run_from_a_dense_cache_is_the_run_from_its_teacher() {
    let bench = bench("[cache]\ncodec = \"dense\"\nvalues = \"f32\"\n");
    cache(&bench, "cache", &[], 0);
    train(&bench, "live", &[], 0);
    train(&bench, "cached", &FROM_CACHE, 0);
    let (live, cached) = (losses(&bench, "live"), losses(&bench, "cached"));
    assert_eq!(live.len(), 12);
    assert!(live.iter().zip(&cached).all(|(a, b)| (a - b).abs() < 1e-5 * a), "{live:?} {cached:?}");
    let of = |run: &str| bench.json(&format!("{run}/summary.json"))["final_eval"]["kl_mean"].as_f64().unwrap();
    assert!((of("live") - of("cached")).abs() < 1e-4 * of("live"));
    let eval = |teacher: &str, json: &str| {
        let args = ["eval", "--teacher", teacher, "--student", "live/student", "--data", "held_out.jsonl"];
        bench.expect(&[&args[..], &["--chat-template", "none", "--max-length", "48", "--json", json]].concat(), 0);
        bench.json(json)
    };
    let (live, cached) = (eval("teacher/student", "a.json"), eval("cache", "b.json"));
    assert_eq!((&live["signal"], &cached["signal"]), (&"dense".into(), &"dense".into()));
    for (name, a) in live.as_object().unwrap().iter().filter(|(_, value)| value.is_f64()) {
        let (a, b) = (a.as_f64().unwrap(), cached[name].as_f64().unwrap());
        assert!((a - b).abs() < 1e-5 * a.abs().max(1e-3), "{name}: {a} and {b}");
    }
}

#[test]
fn stored_parts_of_a_teacher_train_and_evaluate_and_say_what_they_are() {
    for (codec, name) in [("codec = \"top_k\"\nk = 20", "top_k"), ("codec = \"sampled\"\ndraws = 64", "sampled")] {
        let bench = bench(&format!("[cache]\n{codec}\n"));
        cache(&bench, "cache", &[], 0);
        train(&bench, "live", &[], 0);
        train(&bench, "cached", &FROM_CACHE, 0);
        train(&bench, "broken", &[&FROM_CACHE[..], &["--stop-after", "5"]].concat(), 75);
        train(&bench, "broken", &[&FROM_CACHE[..], &["--resume"]].concat(), 0);
        assert_eq!(files(&bench.path("cached/student")), files(&bench.path("broken/student")));
        let eval = |teacher: &str| {
            let args = ["eval", "--config", "run.toml", "--teacher", teacher, "--student", "cached/student"];
            bench.expect(&[&args[..], &["--json", "eval.json"]].concat(), 0);
            bench.json("eval.json")
        };
        let (whole, stored) = (eval("teacher/student"), eval("cache"));
        assert_eq!(stored["signal"], name);
        let near = |field: &str, tolerance: f64| {
            let (a, b) = (whole[field].as_f64().unwrap(), stored[field].as_f64().unwrap());
            assert!((a - b).abs() <= tolerance * a.abs(), "{field}: {a} and {b}");
        };
        near("teacher_perplexity", 1e-4);
        near("student_perplexity", 1e-9);
        near("rms_delta_p", 1e-3);
        for field in ["kl_median", "kl_p99", "kl_max", "reverse_kl_mean"] {
            assert!(stored[field].is_null(), "{field}");
        }
        match name {
            "top_k" => {
                assert!(stored["kl_mean"].is_null() && stored["acceptance"].is_null());
                near("top1_agreement", 1e-12);
                near("top5_overlap", 1e-12);
                let (bucket, kl) = (stored["bucket_kl_mean"].as_f64().unwrap(), whole["kl_mean"].as_f64().unwrap());
                assert!(bucket > 0.0 && bucket < kl * 1.001, "{bucket} {kl}");
                let gate = ["eval", "--config", "run.toml", "--teacher", "cache", "--student", "cached/student"];
                assert!(bench.refused(&[&gate[..], &["--fail-above-kl", "1000"]].concat()).contains("a live teacher"));
                bench.expect(&[&gate[..], &["--fail-below-agreement", "1"]].concat(), 3);
            }
            _ => {
                assert!(stored["top1_agreement"].is_null() && stored["top5_overlap"].is_null());
                near("kl_mean", 0.5);
                near("acceptance", 0.2);
            }
        }
        let best = bench.json("cached/summary.json")["best"]["score"].as_f64().unwrap();
        assert!(best.is_finite());
        let stats = ["cache", "stats", "cache", "--teacher", "teacher/student", "--student", "live/student"];
        let said = String::from_utf8(bench.expect(&stats, 0).stdout).unwrap();
        assert!(said.contains("cosine") && said.contains("bytes a target"), "{said}");
    }
}

#[test]
fn a_gpu_trains_on_what_was_stored_and_stores_what_the_cpu_does() {
    if distill::device::for_tests().is_none() {
        return;
    }
    for codec in ["codec = \"top_k\"\nk = 20", "codec = \"sampled\"\ndraws = 64", "codec = \"dense\""] {
        let bench = bench(&format!("[cache]\nvalues = \"f32\"\n{codec}\n"));
        cache(&bench, "cache", &[], 0);
        train(&bench, "cpu", &FROM_CACHE, 0);
        let from = |teacher: &str, run: &str| {
            let path = format!("teacher.path={teacher}");
            let args =
                ["train", "--config", "run.toml", "--device", "cuda", "--set", "teacher.kind=cache", "--set", &path];
            bench.expect(&[&args[..], &["--output", run]].concat(), 0);
            losses(&bench, run)
        };
        bench.expect(&["cache", "--config", "run.toml", "--output", "gpu-cache", "--device", "cuda"], 0);
        let (cpu, gpu, of_gpu) = (losses(&bench, "cpu"), from("cache", "gpu"), from("gpu-cache", "of-gpu"));
        let near = |a: &[f64], b: &[f64]| a.len() == 12 && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4 * a.abs());
        assert!(near(&cpu, &gpu), "{codec}: {cpu:?} {gpu:?}");
        // A draw may fall to the neighbour where two sums differ in their last bits.
        assert!(near(&cpu, &of_gpu) || codec.contains("sampled"), "{codec}: {cpu:?} {of_gpu:?}");
    }
}

#[test]
fn eight_shards_merged_are_the_cache_of_one_job() {
    let bench = bench("");
    cache(&bench, "whole", &[], 0);
    for shard in 0..8 {
        cache(&bench, &format!("part-{shard}"), &["--shard", &format!("{shard}/8")], 0);
    }
    let merge = ["cache", "merge"].into_iter();
    let parts: Vec<String> = (0..8).map(|shard| format!("part-{shard}")).collect();
    let args: Vec<&str> = merge.chain(parts.iter().map(String::as_str)).chain(["--output", "merged"]).collect();
    bench.expect(&args, 0);
    assert!(same(&bench, "whole", "merged"));
    let missing: Vec<&str> = args.iter().filter(|arg| **arg != "part-3").copied().collect();
    assert!(bench.refused(&[&missing[..missing.len() - 1], &["other"]].concat()).contains("shard 3 of 8 is missing"));
}

#[test]
fn a_cache_that_is_killed_again_and_again_ends_like_the_unbroken_one() {
    let bench = bench("");
    cache(&bench, "whole", &[], 0);
    let begun = std::time::Instant::now();
    cache(&bench, "timed", &[], 0);
    let whole = begun.elapsed();
    let mut cut = 0;
    for kill in 0..20u32 {
        let args = ["cache", "--config", "run.toml", "--output", "cache", "--device", "cpu", "--resume"];
        let mut child = bench
            .command(&args)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // At all times of a run, from its start to beyond its end.
        std::thread::sleep(whole.mul_f64(f64::from(kill) / 18.0).max(Duration::from_millis(1)));
        cut += child.try_wait().unwrap().is_none() as usize;
        child.kill().unwrap();
        child.wait().unwrap();
        // Every other time from the beginning, so that early blocks are torn too.
        if kill % 4 == 3 {
            let _ = std::fs::remove_dir_all(bench.path("cache"));
        }
    }
    cache(&bench, "cache", &["--resume"], 0);
    assert!(same(&bench, "whole", "cache"));
    assert!(cut >= 5, "{cut} of 20 came before the end");
    // Complete: nothing is left to do, nothing changes.
    cache(&bench, "cache", &["--resume"], 0);
    assert!(same(&bench, "whole", "cache"));
    assert!(cache(&bench, "cache", &[], 2).contains("--resume"));
}

#[test]
fn rows_that_came_to_the_corpus_are_computed_alone() {
    let bench = bench("");
    cache(&bench, "cache", &[], 0);
    let before = bench.read("cache/signal.bin");
    bench.write("train.jsonl", (0..310).map(common::pair).chain((0..5).map(common::pair)).collect::<String>());
    let said = bench.refused(&[&["train", "--config", "run.toml", "--output", "run"], &FROM_CACHE[..]].concat());
    assert!(said.contains("10 rows are not cached") && said.contains("train.jsonl:301"), "{said}");
    let said = cache(&bench, "cache", &["--resume"], 0);
    assert!(said.contains("10 rows"), "{said}");
    assert_eq!(bench.read("cache/signal.bin")[..before.len()], before);
    train(&bench, "run", &FROM_CACHE, 0);
}

#[test]
fn a_run_goes_on_while_its_cache_grows_for_others() {
    let bench = bench("");
    cache(&bench, "cache", &[], 0);
    train(&bench, "whole", &FROM_CACHE, 0);
    train(&bench, "broken", &[&FROM_CACHE[..], &["--stop-after", "5"]].concat(), 75);
    bench.write("more.jsonl", (300..340).map(common::pair).collect::<String>());
    cache(&bench, "cache", &["--resume", "--set", "data.train=more.jsonl"], 0);
    train(&bench, "broken", &[&FROM_CACHE[..], &["--resume"]].concat(), 0);
    assert_eq!(files(&bench.path("whole/student")), files(&bench.path("broken/student")));
}

#[test]
fn a_cache_that_broke_off_while_rows_were_added_keeps_what_it_has_whatever_comes_next() {
    let bench = bench("");
    cache(&bench, "cache", &[], 0);
    let rows = |n: usize| bench.write("train.jsonl", (0..n).map(common::pair).collect::<String>());
    rows(450);
    cache(&bench, "cache", &["--resume"], 0);
    let whole: Vec<Vec<u8>> = FILES.iter().map(|name| bench.read(&format!("cache/{name}"))).collect();
    // The addition breaks off in its third block.
    std::fs::remove_file(bench.path("cache/index.bin")).unwrap();
    bench.write("cache/signal.bin", &whole[1][..whole[1].len() * 8 / 10]);
    for (n, as_before) in [(450, true), (460, false), (300, false)] {
        let saved: Vec<Vec<u8>> =
            ["header.json", "signal.bin"].map(|name| bench.read(&format!("cache/{name}"))).to_vec();
        rows(n);
        cache(&bench, "cache", &["--resume"], 0);
        assert_eq!(
            FILES.iter().zip(&whole).all(|(name, whole)| bench.read(&format!("cache/{name}")) == *whole),
            as_before
        );
        train(&bench, &format!("run-{n}"), &FROM_CACHE, 0);
        std::fs::remove_file(bench.path("cache/index.bin")).unwrap();
        bench.write("cache/header.json", &saved[0]);
        bench.write("cache/signal.bin", &saved[1]);
    }
}

#[test]
fn a_cache_of_top_k_renormalised_takes_any_temperature_and_nothing_else_takes_the_key() {
    let bench = bench("[cache]\nk = 20\n");
    let alone = ["--set", "loss.tail=renormalize"];
    cache(&bench, "cache", &[], 0);
    train(&bench, "at-2", &[&FROM_CACHE[..], &alone].concat(), 0);
    train(&bench, "at-3", &[&FROM_CACHE[..], &alone, &["--set", "loss.temperature=3"]].concat(), 0);
    train(&bench, "bucket", &[&FROM_CACHE[..], &["--set", "loss.tail=bucket"]].concat(), 0);
    train(&bench, "default", &FROM_CACHE, 0);
    assert_eq!(losses(&bench, "bucket"), losses(&bench, "default"));
    let through = ["--set", "cache.write_through=true"];
    train(&bench, "through", &[&through[..], &alone].concat(), 0);
    for run in ["at-2", "at-3", "through"] {
        let losses = losses(&bench, run);
        assert!(losses.last() < losses.first() && losses[0].is_finite(), "{run}: {losses:?}");
    }
    assert_ne!(losses(&bench, "at-2")[0], losses(&bench, "default")[0]);
    let refused = |more: &[&str]| {
        bench.refused(&[&["train", "--config", "run.toml", "--output", "run"], &alone[..], more].concat())
    };
    let said = refused(&[]);
    assert!(said.contains("loss.tail = \"renormalize\" has no effect with a live teacher"), "{said}");
    let said = refused(&["--set", "loss.kind=cross_entropy", "--set", "loss.temperature=1"]);
    assert!(said.contains("loss.tail"), "{said}");
    let said = bench.refused(
        &[&["train", "--config", "run.toml", "--output", "run", "--set", "loss.temperature=3"], &FROM_CACHE[..]]
            .concat(),
    );
    assert!(said.contains("or loss.tail = \"renormalize\""), "{said}");
}

#[test]
fn what_the_cache_was_not_made_with_is_refused_by_name() {
    let bench = bench("");
    cache(&bench, "cache", &[], 0);
    let refused = |more: &[&str]| {
        bench.refused(&[&["train", "--config", "run.toml", "--output", "run"], &FROM_CACHE[..], more].concat())
    };
    for (set, says) in [
        ("data.max_length=40", "data.max_length is 48 in the teacher's cache and 40 here"),
        ("data.loss_on=all", "data.loss_on is completion in the teacher's cache and all here"),
        ("loss.temperature=3", "loss.temperature = 3, but the teacher's cache knows what it left out at [1.0, 2.0]"),
        ("teacher.dtype=bf16", "teacher.dtype"),
        ("teacher.device=cpu", "teacher.device"),
        ("cache.write_through=true", "cache.write_through"),
        ("student.tokenizer=nowhere", "the student's tokenizer"),
        ("cache.k=20", "cache.k = 20, but the teacher's cache has 64"),
        ("cache.codec=dense", "cache.codec = \"dense\", but the teacher's cache has \"top_k\""),
        ("cache.values=f32", "cache.values = \"f32\", but the teacher's cache has \"f16\""),
    ] {
        let said = refused(&["--set", set]);
        assert!(said.contains(says), "{said}");
    }
    let resume = |more: &[&str]| {
        let args = ["cache", "--config", "run.toml", "--output", "cache", "--device", "cpu", "--resume"];
        bench.refused(&[&args[..], more].concat())
    };
    for (set, says) in [
        ("cache.k=5", "codec: top_k, k = 64 and top_k, k = 5"),
        ("cache.values=f32", "values: f16 and f32"),
        ("loss.temperature=3", "temperatures: [1.0, 2.0] and [1.0, 3.0]"),
        ("teacher.dtype=bf16", "teacher.dtype: f32 and bf16"),
        ("data.max_length=40", "data.max_length: 48 and 40"),
        ("cache.k=401", "cache.k = 401, but the teacher's vocabulary has 400 tokens"),
        ("cache.draws=4", "cache.draws"),
        ("cache.codec=sampeld", "did you mean \"sampled\"?"),
    ] {
        let said = resume(&["--set", set]);
        assert!(said.contains(says), "{said}");
    }
    let mut weights = bench.read("teacher/student/model.safetensors");
    let last = weights.len() - 3;
    weights[last] ^= 1;
    bench.write("teacher/student/model.safetensors", weights);
    assert!(resume(&[]).contains("teacher.weights"));
    let stats = ["cache", "stats", "cache", "--teacher", "teacher/student", "--student", "teacher/student"];
    assert!(bench.refused(&stats).contains("is not the cache's teacher: teacher.weights"));
}

#[test]
fn a_damaged_row_ends_the_run_by_file_and_line_and_a_folder_that_is_no_cache_before_it() {
    let bench = bench("");
    cache(&bench, "cache", &[], 0);
    let mut signal = bench.read("cache/signal.bin");
    // In the records of every block.
    (2000..signal.len()).step_by(997).for_each(|at| signal[at] ^= 0x10);
    bench.write("cache/signal.bin", signal);
    let refused =
        |output| bench.refused(&[&["train", "--config", "run.toml", "--output", output], &FROM_CACHE[..]].concat());
    let said = refused("a");
    assert!(said.contains("damaged") && said.contains("jsonl:"), "{said}");
    std::fs::remove_file(bench.path("cache/index.bin")).unwrap();
    assert!(refused("b").contains("not complete"));
    std::fs::remove_file(bench.path("cache/header.json")).unwrap();
    assert!(refused("c").contains("no teacher cache"));
}

#[test]
fn a_run_that_writes_through_asks_once_and_trains_on_what_it_stored() {
    let bench = bench("[cache]\nk = 20\nwrite_through = true\n");
    let short = ["--set", "data.train=short.jsonl", "--set", "train.steps=30"];
    bench.write("short.jsonl", (0..23).map(common::pair).collect::<String>());
    train(&bench, "whole", &short, 0);
    train(&bench, "broken", &[&short[..], &["--stop-after", "3"]].concat(), 75);
    train(&bench, "broken", &[&short[..], &["--resume", "--stop-after", "17"]].concat(), 75);
    train(&bench, "broken", &[&short[..], &["--resume"]].concat(), 0);
    assert_eq!(bench.timeless_metrics("whole"), bench.timeless_metrics("broken"));
    assert_eq!(files(&bench.path("whole/student")), files(&bench.path("broken/student")));
    // The objective is the cache's in the first epoch too: a run from what was stored is the same run.
    let from =
        ["--set", "teacher.kind=cache", "--set", "teacher.path=whole/cache", "--set", "cache.write_through=false"];
    let alone = ["--set", "eval.every_steps=1000"];
    let text = String::from_utf8(bench.read("run.toml")).unwrap();
    bench.write(
        "run.toml",
        text.replace("eval = \"held_out.jsonl\"\n", "").replace("[eval]\nevery_steps = 4\n", "[eval]\n"),
    );
    train(&bench, "again", &[&short[..], &from, &alone].concat(), 0);
    assert_eq!(losses(&bench, "whole"), losses(&bench, "again"));
    assert_eq!(model_files(&bench.path("whole/student")), model_files(&bench.path("again/student")));
    let much = ["--set", "cache.k=401", "--output", "much"];
    let said = bench.refused(&[&["train", "--config", "run.toml"], &short[..], &much].concat());
    assert!(said.contains("cache.k = 401") && !bench.path("much").exists(), "{said}");
    for model in ["generate --prompt a --model", "eval --teacher teacher/student --data held_out.jsonl --student"] {
        let args: Vec<&str> = model.split(' ').chain(["whole/cache"]).collect();
        assert!(bench.refused(&args).contains("is a teacher cache and no model"));
    }
    let stats = String::from_utf8(bench.expect(&["cache", "stats", "whole/cache"], 0).stdout).unwrap();
    assert!(stats.contains("rows     23"), "{stats}");
}

#[test]
fn a_write_through_run_that_was_killed_leaves_a_cache_to_go_on_with() {
    let bench = bench("[cache]\nk = 20\nwrite_through = true\n");
    let mut child = bench.command(&["train", "--config", "run.toml", "--output", "run", "--set", "train.steps=100000"]);
    let mut child = child.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let size = || std::fs::metadata(bench.path("run/cache/signal.bin")).map_or(0, |file| file.len());
    let begun = std::time::Instant::now();
    while size() < 20_000 && begun.elapsed() < Duration::from_secs(100) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let whole = ["--set", "cache.write_through=false"];
    let args = ["cache", "--config", "run.toml", "--output", "run/cache", "--resume"];
    bench.expect(&[&args[..], &whole].concat(), 0);
    let from = ["--set", "teacher.kind=cache", "--set", "teacher.path=run/cache"];
    train(&bench, "cached", &[&from[..], &whole].concat(), 0);
}

#[test]
fn a_write_through_run_that_was_stopped_before_its_first_step_starts_anew() {
    let bench = bench("[cache]\nk = 20\nwrite_through = true\n");
    for wait in (0..60).step_by(3) {
        let mut child = bench.command(&["train", "--config", "run.toml", "--output", "run"]);
        let mut child = child.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
        let code = child.wait().unwrap().code();
        // What the stop before this one left would be "not empty".
        assert_ne!(code, Some(2));
        if bench.path("run/checkpoints").exists() || code.is_none() && bench.path("run").exists() {
            break;
        }
    }
}

#[test]
fn a_longer_teachers_padding_is_cut_for_the_student_at_hand() {
    let bench = bench("");
    // A teacher with 40 rows more than the tokenizer has tokens.
    bench.write("long.json", common::model_config(1, 16).replace("\"vocab_size\": 400", "\"vocab_size\": 440"));
    let config = String::from_utf8(bench.read("teacher.toml")).unwrap().replace("teacher.json", "long.json");
    bench.write("long.toml", config.replace("dir = \"teacher\"", "dir = \"long\""));
    bench.expect(&["train", "--config", "long.toml"], 0);
    let long = ["--set", "teacher.path=long/student"];
    let dense = ["--set", "cache.codec=dense", "--set", "cache.values=f32"];
    cache(&bench, "cache", &[&long[..], &dense].concat(), 0);
    train(&bench, "live", &long, 0);
    train(&bench, "cached", &[&FROM_CACHE[..], &dense].concat(), 0);
    let (live, cached) = (losses(&bench, "live"), losses(&bench, "cached"));
    assert!(live.iter().zip(&cached).all(|(a, b)| (a - b).abs() < 1e-5 * a), "{live:?} {cached:?}");
    // A cache that another student made has more tokens than this one.
    cache(&bench, "wide", &[&long[..], &["--set", "student.config=long.json", "--set", "cache.k=20"]].concat(), 0);
    let wide = ["--set", "teacher.kind=cache", "--set", "teacher.path=wide"];
    let said = bench.refused(&[&["train", "--config", "run.toml", "--output", "no"], &wide[..]].concat());
    assert!(said.contains("the teacher's cache is of 440 tokens, the student's vocabulary has 400"), "{said}");
}

#[test]
fn a_dry_run_says_how_large_the_cache_will_be_and_writes_nothing() {
    let bench = bench("");
    let args = ["cache", "--config", "run.toml", "--output", "cache", "--dry-run"];
    let said = String::from_utf8(bench.expect(&args, 0).stdout).unwrap();
    assert!(said.contains("bytes a target") && said.contains("300 rows"), "{said}");
    assert!(!bench.path("cache").exists());
}
