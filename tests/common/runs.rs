//! Runs of every kind, and what two of them that ended have to share.

use super::{Bench, files};

pub const RESUME: [&str; 4] = ["train", "--config", "run.toml", "--resume"];

/// What teaches and what learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Local,
    Gguf,
    Cache,
    Rollouts,
    Lora,
}

pub const KINDS: [Kind; 5] = [Kind::Local, Kind::Gguf, Kind::Cache, Kind::Rollouts, Kind::Lora];

/// A folder whose run.toml is a run of this kind; `more` is added to `[train]`, `data` to `[data]`. On the CPU: what is kept and
/// lost does not depend on the device, and tests/resume.rs runs on any.
pub fn bench(kind: Kind, threads: usize, more: &str, data: &str) -> Bench {
    let bench = Bench { threads, on_cpu: true, ..Bench::with_teacher() };
    bench.distil_config(more);
    let edit = |from: &str, to: &str| {
        let text = String::from_utf8(bench.read("run.toml")).unwrap();
        assert!(text.contains(from), "{text}");
        bench.write("run.toml", text.replacen(from, to, 1));
    };
    edit("[eval]", &format!("{data}\n[eval]"));
    let tokenizer = format!("config = \"student.json\"\ntokenizer = '{}'", super::tokenizer().display());
    let local = "kind = \"local\"\npath = \"teacher/student\"";
    match kind {
        Kind::Local => {}
        Kind::Gguf => {
            bench.gguf_teacher();
            edit(local, "kind = \"gguf\"\npath = \"teacher.gguf\"");
            edit("config = \"student.json\"", &tokenizer);
        }
        Kind::Cache => {
            edit("config = \"student.json\"", &tokenizer);
            bench.expect(&["cache", "--config", "run.toml", "--output", "cache", "--set", "cache.codec=top_k"], 0);
            edit(local, "kind = \"cache\"\npath = \"cache\"");
        }
        Kind::Rollouts => {
            let rollout =
                "[rollout]\nfraction = 0.6\nmax_new_tokens = 7\nevery_steps = 2\nbuffer = 5\ntop_p = 0.9\n[eval]";
            edit("[eval]", rollout);
        }
        Kind::Lora => {
            let base = String::from_utf8(bench.read("teacher.toml")).unwrap();
            let base = base.replace("steps = 20", "steps = 2").replace("dir = \"teacher\"", "dir = \"base\"");
            bench.write("base.toml", base);
            bench.expect(&["train", "--config", "base.toml"], 0);
            edit("kind = \"fresh\"\nconfig = \"student.json\"", "kind = \"lora\"\nfrom = \"base/student\"\nrank = 2");
        }
    }
    bench
}

/// Two runs ended alike: the last checkpoint, with model, optimizer and state, the student, the metrics, and the summary,
/// byte for byte but for what tells the time.
pub fn assert_same_end(bench: &Bench, one: &str, other: &str, what: &str) {
    let last = String::from_utf8(bench.read(&format!("{one}/checkpoints/latest"))).unwrap();
    let folder = |run: &str| files(&bench.path(run).join("checkpoints").join(last.trim()));
    let (a, b) = (folder(one), folder(other));
    assert!(a.contains_key("state.json") && a.contains_key("optimizer.safetensors"));
    let differ = |(a, b): (&super::Files, &super::Files)| -> Vec<String> {
        a.keys().chain(b.keys()).filter(|name| a.get(*name) != b.get(*name)).cloned().collect()
    };
    assert_eq!(differ((&a, &b)), [""; 0], "{what}: the last checkpoints differ");
    let student = |run: &str| files(&bench.path(run).join("student"));
    assert_eq!(differ((&student(one), &student(other))), [""; 0], "{what}: the students differ");
    assert_eq!(bench.timeless_metrics(one), bench.timeless_metrics(other), "{what}: the metrics differ");
    for field in ["steps", "tokens", "rows_used", "best", "initial_eval", "final_eval"] {
        let of = |run: &str| bench.json(&format!("{run}/summary.json"))[field].clone();
        assert_eq!(of(one), of(other), "{what}: {field}");
    }
}

/// Waits until the run has a checkpoint and `step` train lines.
pub fn wait_for(bench: &Bench, run: &str, step: usize) {
    // A minute and more: an emulated GPU takes its time.
    for _ in 0..20_000 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        let lines = std::fs::read_to_string(bench.path(run).join("metrics.jsonl")).unwrap_or_default();
        let trained = lines.lines().filter(|l| l.contains("\"train\"")).count();
        if trained >= step && bench.path(run).join("checkpoints/latest").exists() {
            return;
        }
    }
    panic!("the run never reached step {step}");
}
