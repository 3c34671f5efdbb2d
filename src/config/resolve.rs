//! The tree becomes a [`RunConfig`], section by section: defaults, ranges, and what the keys demand of each other.

use std::path::{Path, PathBuf};

use super::reader::{Numbers, Reader};
use super::types::*;
use crate::device::DeviceChoice;

/// Where the run's folder comes from.
#[derive(Debug, Clone, Copy)]
pub enum OutputFrom<'a> {
    /// `--output`, as an absolute path.
    CommandLine(&'a Path),
    /// `output.dir`, which must be there.
    Config,
    /// `output.dir` if it is there, else an empty path: for commands that write no run.
    Either,
}

/// `None` where a problem was noted.
pub fn run_config(r: &mut Reader<'_>, output: OutputFrom<'_>) -> Option<RunConfig> {
    let seed = r.integer("seed", 0).unwrap_or(42);
    let teacher = teacher(r);
    let student = student(r, teacher.as_ref());
    let cache = cache(r, teacher.as_ref());
    let data = data(r);
    let rollout = super::rollout::rollout(r, teacher.as_ref(), data.as_ref());
    let loss = super::loss::loss(r);
    let train = train(r);
    let eval = EvalConfig {
        every_steps: r.integer("eval.every_steps", 1).unwrap_or(100),
        max_rows: r.size("eval.max_rows", 1).unwrap_or(256),
        exact_match: r.flag("eval.exact_match", false),
    };
    let checkpoint = CheckpointConfig {
        every_steps: r.integer("checkpoint.every_steps", 1).unwrap_or(100),
        // One alone would leave nothing to go back to when it turns out damaged.
        keep_last: r.size("checkpoint.keep_last", 2).unwrap_or(2),
        keep_every: r.integer("checkpoint.keep_every", 1),
        keep_best: r.flag("checkpoint.keep_best", true),
    };
    if checkpoint.keep_every.is_some_and(|every| !every.is_multiple_of(checkpoint.every_steps)) {
        let steps = checkpoint.every_steps;
        r.outside("checkpoint.keep_every", format!("multiples of checkpoint.every_steps = {steps}"));
    }
    if eval.exact_match && data.as_ref().is_some_and(|data| data.loss_on == LossOn::All) {
        r.refuse("eval.exact_match", "needs data.loss_on = \"completion\": a prompt is no answer");
    }
    let writes = rollout.as_ref().is_some_and(|rollout| rollout.from == RolloutFrom::Teacher);
    let idle = !writes && loss.is_cross_entropy() && data.as_ref().is_some_and(|data| data.eval.is_none());
    if teacher.is_some() && idle {
        r.refuse(
            "teacher.path",
            "is never asked: cross_entropy does not need it, and there is no data.eval to compare on",
        );
    }
    if loss.is_cross_entropy() && cache.as_ref().is_some_and(|cache| cache.write_through) {
        r.refuse("cache.write_through", "has no effect with loss.kind = \"cross_entropy\", which asks no teacher");
    }
    let output = output_config(r, output);
    if !r.problems.is_empty() {
        return None;
    }
    Some(RunConfig {
        seed,
        teacher,
        student: student?,
        cache,
        data: data?,
        responses: None,
        rollout,
        loss,
        train,
        eval,
        checkpoint,
        output: output?,
    })
}

fn teacher(r: &mut Reader<'_>) -> Option<TeacherConfig> {
    r.section("teacher")?;
    let dtype = r.choice("teacher.dtype", Dtype::F32, &[Dtype::F32, Dtype::Bf16], &[]);
    let kind = r.choice("teacher.kind", TeacherKind::Local, TeacherKind::ALL, &["api"]);
    if !r.has("teacher.path") {
        r.missing(
            "teacher.path",
            "give a model folder, a Hugging Face id, or what teacher.kind = \"gguf\" or \"cache\" takes",
        );
    }
    let device = device(r, "teacher.device");
    if kind == TeacherKind::Gguf && device.is_some_and(|device| device != DeviceChoice::Cpu) {
        r.refuse("teacher.device", "is not for teacher.kind = \"gguf\": quantised weights are multiplied on the CPU");
    }
    if kind == TeacherKind::Cache {
        if device.is_some() {
            r.refuse("teacher.device", "is not for teacher.kind = \"cache\": nothing is computed there");
        }
        if dtype != Dtype::F32 {
            r.refuse("teacher.dtype", "is not for teacher.kind = \"cache\", which was computed in the dtype it names");
        }
    }
    let path = match kind {
        TeacherKind::Local => r.model("teacher.path"),
        TeacherKind::Gguf | TeacherKind::Cache => r.path("teacher.path"),
    };
    let tokenizer = r.model("teacher.tokenizer");
    if kind != TeacherKind::Gguf && r.has("teacher.tokenizer") {
        let kind = kind.word();
        r.refuse(
            "teacher.tokenizer",
            format!("is for teacher.kind = \"gguf\" alone: a teacher of kind \"{kind}\" has its own; leave it out"),
        );
    }
    Some(TeacherConfig { kind, path: path?, tokenizer, dtype, device })
}

fn cache(r: &mut Reader<'_>, teacher: Option<&TeacherConfig>) -> Option<CacheConfig> {
    r.section("cache")?;
    let codec = r.choice("cache.codec", CacheCodec::TopK, CacheCodec::ALL, &[]);
    let (k, draws) = (r.size("cache.k", 1), r.size("cache.draws", 1));
    for (key, full, owner) in [("k", "cache.k", CacheCodec::TopK), ("draws", "cache.draws", CacheCodec::Sampled)] {
        if r.has(full) && codec != owner {
            let (codec, owner) = (codec.word(), owner.word());
            r.refuse(full, format!("is not used by cache.codec = {codec:?}: {key} is for {owner:?}"));
        }
    }
    if draws.is_some_and(|draws| draws > u16::MAX as usize) {
        r.outside("cache.draws", format!("an integer from 1 to {}", u16::MAX));
    }
    let write_through = r.flag("cache.write_through", false);
    if write_through && (teacher.is_some_and(|t| t.kind == TeacherKind::Cache) || r.section("teacher").is_none()) {
        r.refuse("cache.write_through", "wants a live teacher, whose word is not stored yet");
    }
    Some(CacheConfig {
        codec,
        k: (codec == CacheCodec::TopK).then(|| k.unwrap_or(64)),
        draws: (codec == CacheCodec::Sampled).then(|| draws.unwrap_or(32)),
        values: r.choice("cache.values", CacheValues::F16, CacheValues::ALL, &[]),
        write_through,
    })
}

fn device(r: &mut Reader<'_>, key: &str) -> Option<DeviceChoice> {
    let text = r.has(key).then(|| r.text(key)).flatten()?;
    text.parse().map_err(|_| r.outside(key, DeviceChoice::ALLOWED)).ok()
}

fn student(r: &mut Reader<'_>, teacher: Option<&TeacherConfig>) -> Option<StudentConfig> {
    let device = device(r, "student.device");
    Some(StudentConfig { source: student_source(r, teacher)?, device })
}

fn student_source(r: &mut Reader<'_>, teacher: Option<&TeacherConfig>) -> Option<StudentSource> {
    const KINDS: [&str; 4] = ["local", "fresh", "pruned", "lora"];
    if !r.has("student.kind") {
        r.missing("student.kind", "give one of local (path) | fresh (config) | pruned (layers) | lora (from)");
    }
    let kind = r.word("student.kind", &KINDS, &[])?;
    let used: &[&str] = match kind {
        "local" => &["path"],
        "fresh" => &["config", "tokenizer"],
        "pruned" => &["layers", "count", "rows", "from"],
        _ => &["from", "rank", "alpha", "targets"],
    };
    // A key that does nothing would look as if it did something.
    for (key, full) in [
        ("path", "student.path"),
        ("config", "student.config"),
        ("tokenizer", "student.tokenizer"),
        ("layers", "student.layers"),
        ("count", "student.count"),
        ("rows", "student.rows"),
        ("from", "student.from"),
        ("rank", "student.rank"),
        ("alpha", "student.alpha"),
        ("targets", "student.targets"),
    ] {
        if r.has(full) && !used.contains(&key) {
            r.refuse(full, format!("is not used by student.kind = {kind:?}, which takes {}", used.join(", ")));
        }
    }
    match kind {
        "local" => {
            if !r.has("student.path") {
                r.missing("student.path", "give a model folder or a Hugging Face id");
            }
            Some(StudentSource::Local { path: r.model("student.path")? })
        }
        "fresh" => {
            if !r.has("student.config") {
                r.missing("student.config", "give a Hugging Face config.json");
            }
            let config = r.model("student.config");
            let tokenizer = model_or_teacher(r, "student.tokenizer", teacher, "the folder of a tokenizer");
            Some(StudentSource::Fresh { config: config?, tokenizer: tokenizer? })
        }
        "pruned" => {
            let layers = layers(r);
            let from = model_or_teacher(r, "student.from", teacher, "the folder of the model to cut");
            if let (Some(Layers::Auto { .. }), Some(from)) = (&layers, &from)
                && !teacher.is_some_and(|t| t.kind == TeacherKind::Local && t.path == *from)
            {
                r.refuse(
                    "student.layers",
                    "measures the cuts by what the whole model says, so the [teacher] has to be the model that is cut: \
                     teacher.kind = \"local\" with the path of student.from. Otherwise list the layers",
                );
            }
            Some(StudentSource::Pruned { from: from?, layers: layers? })
        }
        _ => {
            let rank = r.size("student.rank", 1).unwrap_or(16);
            let alpha = r.float("student.alpha", 32.0, Numbers::Positive);
            let targets = r.names("student.targets");
            let from = model_or_teacher(r, "student.from", teacher, "the folder of the model to adapt");
            Some(StudentSource::Lora { from: from?, rank, alpha, targets })
        }
    }
}

/// The layers that a cut keeps: a list, or "auto" with their number.
fn layers(r: &mut Reader<'_>) -> Option<Layers> {
    if !r.has("student.layers") {
        r.missing(
            "student.layers",
            "list the layers to keep, for example [0, 2, 4], or give \"auto\" with student.count",
        );
    }
    let (count, rows) = (r.size("student.count", 1), r.size("student.rows", 1));
    if !r.is_text("student.layers") {
        for key in ["student.count", "student.rows"] {
            if r.has(key) {
                r.refuse(key, "is for student.layers = \"auto\" alone: leave it out");
            }
        }
        return r.ascending("student.layers").map(Layers::These);
    }
    if r.text("student.layers")? != Layers::AUTO {
        r.outside("student.layers", "a list of layers, or \"auto\" with student.count");
        return None;
    }
    if !r.has("student.count") {
        r.missing("student.count", "say how many layers student.layers = \"auto\" is to keep");
    }
    Some(Layers::Auto { count: count?, rows: rows.unwrap_or(64) })
}

/// The model at `key`, by default the teacher's.
fn model_or_teacher(r: &mut Reader<'_>, key: &str, teacher: Option<&TeacherConfig>, what: &str) -> Option<PathBuf> {
    if r.has(key) {
        return r.model(key);
    }
    // A teacher with a problem of its own would be the default: that problem is reported already.
    if teacher.is_none() && r.section("teacher").is_none() {
        r.missing(key, &format!("without a local [teacher], give {what}"));
    }
    let teacher = teacher?;
    match (teacher.kind, key) {
        (TeacherKind::Local, _) => Some(teacher.path.clone()),
        (TeacherKind::Gguf, "student.tokenizer") => Some(teacher.tokenizer.as_ref().unwrap_or(&teacher.path).clone()),
        (TeacherKind::Cache, _) => {
            r.missing(key, &format!("a cached teacher has none to lend: give {what}"));
            None
        }
        (TeacherKind::Gguf, _) => {
            r.missing(
                key,
                &format!(
                    "a GGUF teacher's quantised weights cannot learn: give {what}, for example what \
                     `distill export FILE.gguf --dequantize --output DIR` makes of it"
                ),
            );
            None
        }
    }
}

fn data(r: &mut Reader<'_>) -> Option<DataConfig> {
    if !r.has("data.train") {
        r.missing("data.train", "give at least one JSONL file");
    }
    let train = r.paths("data.train");
    let chat_template = match r.text("data.chat_template") {
        None | Some("auto") => Some(ChatTemplate::Auto),
        Some("none") => Some(ChatTemplate::None),
        Some(_) => r.path("data.chat_template").map(ChatTemplate::File),
    };
    let on_bad_record = r.choice("data.on_bad_record", OnBadRecord::Fail, OnBadRecord::ALL, &[]);
    if r.has("data.max_bad") && on_bad_record == OnBadRecord::Fail {
        r.refuse("data.max_bad", "needs data.on_bad_record = \"skip\": with \"fail\" one bad row is too many");
    }
    let rest = DataConfig {
        train: vec![],
        eval: r.path("data.eval"),
        max_length: r.size("data.max_length", 2).unwrap_or(512),
        loss_on: r.choice("data.loss_on", LossOn::Completion, LossOn::ALL, &[]),
        chat_template: chat_template?,
        packing: r.flag("data.packing", false),
        shuffle: r.flag("data.shuffle", true),
        on_bad_record,
        max_bad: r.integer("data.max_bad", 0),
    };
    Some(DataConfig { train: train?, ..rest })
}

fn train(r: &mut Reader<'_>) -> TrainConfig {
    let (steps, epochs) = (r.integer("train.steps", 1), r.integer("train.epochs", 1));
    // Planning counts the steps of each epoch.
    const MOST_EPOCHS: u64 = 100_000;
    if epochs.is_some_and(|n| n > MOST_EPOCHS) {
        r.outside("train.epochs", format!("an integer from 1 to {MOST_EPOCHS}"));
    }
    if r.has("train.steps") && r.has("train.epochs") {
        r.refuse("train.epochs", "excludes train.steps: give one of them");
    }
    let max_time = r.text("train.max_time").and_then(|text| {
        let time = MaxTime::parse(text);
        if time.is_none() {
            r.outside("train.max_time", "a whole number > 0 and a unit, \"90s\" | \"30m\" | \"2h\"");
        }
        time
    });
    let schedule = r.choice("train.schedule", Schedule::Constant, Schedule::ALL, &[]);
    let alone = r.has("train.max_time") && !r.has("train.steps") && !r.has("train.epochs");
    if alone && schedule != Schedule::Constant {
        r.refuse(
            "train.schedule",
            "spans train.steps or train.epochs: give one of them beside max_time, or use \"constant\"",
        );
    }
    let given = r.size("train.batch_size", 1);
    let batch_size = given.unwrap_or(16);
    let micro_batch_size = r.size("train.micro_batch_size", 1).unwrap_or(batch_size);
    // Against a batch size that was refused the comparison would say nothing.
    let refused = r.has("train.batch_size") && given.is_none();
    if micro_batch_size > batch_size && !refused {
        r.outside("train.micro_batch_size", format!("at most train.batch_size = {batch_size}"));
    }
    TrainConfig {
        steps,
        epochs,
        max_time,
        batch_size,
        micro_batch_size,
        learning_rate: r.float("train.learning_rate", 1e-4, Numbers::Positive),
        schedule,
        warmup_steps: r.integer("train.warmup_steps", 0).unwrap_or(0),
        beta1: r.float("train.beta1", 0.9, Numbers::Decay),
        beta2: r.float("train.beta2", 0.999, Numbers::Decay),
        epsilon: r.float("train.epsilon", 1e-8, Numbers::Epsilon),
        weight_decay: r.float("train.weight_decay", 0.0, Numbers::NonNegative),
        max_grad_norm: r.float("train.max_grad_norm", 1.0, Numbers::Positive),
        dtype: r.choice("train.dtype", Dtype::F32, &[Dtype::F32, Dtype::Bf16], &[]),
        checkpoint_activations: r.flag("train.checkpoint_activations", false),
        tf32: r.flag("train.tf32", false),
    }
}

fn output_config(r: &mut Reader<'_>, from: OutputFrom<'_>) -> Option<OutputConfig> {
    let written = r.path("output.dir");
    let dtype = r.choice("output.dtype", Dtype::F32, Dtype::ALL, &[]);
    let dir = match from {
        OutputFrom::CommandLine(dir) => Some(dir.to_path_buf()),
        OutputFrom::Config => {
            if !r.has("output.dir") {
                r.missing("output.dir", "give --output DIR, or set output.dir in the config");
            }
            written
        }
        OutputFrom::Either => Some(written.unwrap_or_default()),
    };
    Some(OutputConfig { dir: dir?, dtype })
}
