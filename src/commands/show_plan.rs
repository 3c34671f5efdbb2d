//! The plan as text: what a run will do, its arithmetic, and the first rows as the model sees them.

use std::time::{Duration, Instant};

use super::build::{self, AnyTeacher};
use crate::cache::Reader;
use crate::config::plan::Plan;
use crate::config::{Dtype, LossKind, StudentSource, Word};
use crate::corpus::{Loader, Row, TextTokenizer};
use crate::error::Result;
use crate::kernels::Precision;
use crate::metrics::Screen;
use crate::model::ModelConfig;
use crate::signal::Tail;
use crate::units::{Bytes, Count, Rounded, Span};

/// The plan, a line each, without loading a model.
pub fn lines(plan: &Plan) -> Vec<String> {
    let config = &plan.config;
    let mut lines = vec![];
    let mut line = |name: &str, text: String| lines.push(format!("{name:<11}{text}"));
    match (&config.teacher, &plan.teacher) {
        (Some(teacher), Some(model)) => {
            line("teacher", format!("{}, {}, {}", teacher.path.display(), shape(model), teacher.dtype.word()));
        }
        (Some(teacher), None) if let Some(cache) = &plan.cache => {
            line("teacher", format!("{}: {}", teacher.path.display(), cached(cache)));
        }
        _ => line("teacher", "none: hard labels alone".into()),
    }
    let origin = match &config.student.source {
        StudentSource::Local { path } => format!("{}", path.display()),
        StudentSource::Fresh { config, .. } => format!("fresh from {}", config.display()),
        StudentSource::Pruned { from, layers } => format!("layers {layers:?} of {}", from.display()),
    };
    let dtype = match config.train.dtype {
        Dtype::Bf16 if Precision::Bf16.is_native() || plan.devices.student.device.is_cuda() => ", multiplied in bf16",
        Dtype::F32 | Dtype::Bf16 => "",
    };
    line("student", format!("{origin}, {}{dtype}", shape(&plan.student)));
    if let Some(devices) = plan.devices.describe() {
        line("devices", devices);
    }
    let (scan, about) = (&plan.scan, if plan.scan.exact { "" } else { "≈" });
    let count = |n: u64| format!("{about}{}", Count(n));
    line(
        "data",
        format!(
            "{} records → {} rows, {} tokens, {} of them targets; longest row {about}{}",
            Count(scan.records),
            count(scan.rows_used),
            count(scan.tokens),
            count(scan.target_tokens),
            Count(scan.longest as u64),
        ),
    );
    let rejected = plan.train.rejections().count + scan.records_rejected;
    let losses = [
        (scan.rows_truncated, format!("cut at {} tokens", config.data.max_length)),
        (scan.rows_dropped, "dropped for want of a target".into()),
        (rejected, "rejected (on_bad_record = \"skip\")".into()),
        (scan.records_split, "records split by the chat template".into()),
    ];
    for (n, what) in losses.into_iter().filter(|(n, _)| *n > 0) {
        line("", format!("{} rows {what}", count(n)));
    }
    if let Some(held_out) = &plan.held_out {
        let targets: usize = held_out.rows.iter().map(Row::target_count).sum();
        let rejected = match held_out.rejections.count {
            0 => String::new(),
            n => format!(", {} bad records passed over", Count(n)),
        };
        let rows = Count(held_out.rows.len() as u64);
        line("held out", format!("{rows} rows, {} targets{rejected}", Count(targets as u64)));
    }
    let loss = &config.loss;
    line(
        "loss",
        match loss.kind {
            LossKind::CrossEntropy => "cross_entropy".into(),
            kind => {
                let scale = if kind == LossKind::Tvd { " (× T)" } else { " (× T²)" };
                let mixture = match (loss.beta, loss.lambda) {
                    (Some(beta), _) if loss.normalize == Some(true) => format!(" with beta = {beta}, normalised,"),
                    (Some(beta), _) => format!(" with beta = {beta}"),
                    (None, Some(lambda)) => format!(" with lambda = {lambda}"),
                    (None, None) => String::new(),
                };
                let tail = match loss.tail() {
                    Tail::Bucket => "",
                    Tail::Renormalize => " over the stored tokens alone",
                };
                format!(
                    "{}{mixture}{tail} at T = {}{}, hard_label_weight = {}",
                    kind.word(),
                    loss.temperature,
                    if loss.scale_by_temperature_squared && loss.temperature != 1.0 { scale } else { "" },
                    loss.hard_label_weight
                )
            }
        },
    );
    let train = &config.train;
    let items = if config.data.packing { "packs" } else { "rows" };
    let per_step = match config.data.packing {
        true => train.batch_size as f64 * config.data.max_length as f64,
        false => train.batch_size as f64 * scan.tokens as f64 / scan.rows_used.max(1) as f64,
    };
    line(
        "steps",
        format!(
            "{} of {} {items} (≈{} tokens), in micro-batches of {}: {:.2} epochs",
            Count(plan.total_steps),
            train.batch_size,
            Count(per_step as u64),
            train.micro_batch_size,
            plan.total_steps as f64 / plan.steps_per_epoch.max(1) as f64,
        ),
    );
    line(
        "optimizer",
        format!(
            "AdamW, learning rate {}, {} after {} warm-up steps, weight decay {}, clip {}",
            train.learning_rate,
            train.schedule.word(),
            train.warmup_steps,
            train.weight_decay,
            train.max_grad_norm
        ),
    );
    let m = &plan.memory;
    line(
        "memory",
        format!(
            "≈{}: teacher {}, student with gradients and optimizer {}, activations {}",
            Bytes(m.total()),
            Bytes(m.teacher),
            Bytes(m.student),
            Bytes(m.activations)
        ),
    );
    line(
        "output",
        format!(
            "{}, {} a checkpoint, {} threads",
            config.output.dir.display(),
            Bytes(m.checkpoint),
            rayon::current_num_threads()
        ),
    );
    lines
}

/// What a cache holds, on one line.
pub fn cached(cache: &Reader) -> String {
    let header = cache.header();
    format!(
        "{} ({}) of a {} with {} parameters in {}, {} rows",
        header.codec,
        header.values,
        header.teacher.architecture,
        Rounded(header.teacher.parameters),
        header.teacher.dtype,
        Count(cache.len())
    )
}

fn shape(model: &ModelConfig) -> String {
    format!(
        "{} with {} layers, {} wide, vocabulary {}, {} parameters",
        model.family.name(),
        model.layers,
        model.hidden_size,
        Count(model.vocab_size as u64),
        Rounded(model.parameters() as u64)
    )
}

/// Rows shown and steps timed by a dry run.
const SHOWN_ROWS: usize = 2;
const TIMED_STEPS: u64 = 3;

/// The plan with the first rows and, from three timed steps on copies of the models, how long the run will take.
pub fn with_estimate(plan: &Plan, screen: &Screen) -> Result<String> {
    let mut out = lines(plan).join("\n") + "\n";
    plan.notices.iter().for_each(|n| out += &format!("{}\n", n.line()));
    let mut loader = Loader::new(plan.train.clone(), plan.encoder.clone(), plan.order());
    if let Some(step) = loader.next_step(SHOWN_ROWS, false)? {
        for row in step.items.iter().flatten() {
            out += &format!("\n{}\n", show_row(row, plan.encoder.tokenizer()));
        }
    }
    let per_step = time_steps(plan, screen)?;
    out += &format!(
        "\ntime       ≈{} for {} steps ({} a step, median of {TIMED_STEPS}), evaluations and saving not counted\n",
        Span(per_step.mul_f64(plan.total_steps as f64)),
        Count(plan.total_steps),
        Span(per_step)
    );
    Ok(out)
}

fn time_steps(plan: &Plan, screen: &Screen) -> Result<Duration> {
    let teacher = build::teacher(plan, screen)?;
    let student = build::student(plan, teacher.as_ref(), screen)?;
    let mut stepper = build::stepper(plan, teacher.as_ref().map(AnyTeacher::as_dyn), &student)?;
    let mut loader = Loader::new(plan.train.clone(), plan.encoder.clone(), plan.order());
    let progress = screen.progress("timing steps", Some(TIMED_STEPS));
    let mut times = vec![];
    for i in 0..TIMED_STEPS {
        let started = Instant::now();
        let Some(step) = loader.next_step(plan.config.train.batch_size, plan.config.data.packing)? else { break };
        stepper.step(&step.micro_batches(plan.config.train.micro_batch_size), i, plan.config.train.learning_rate)?;
        times.push(started.elapsed());
        progress.advance(1);
    }
    progress.finish();
    times.sort();
    Ok(times.get(times.len() / 2).copied().unwrap_or_default())
}

/// A row token by token, targets in «guillemets»; long rows are cut in the middle.
fn show_row(row: &Row, tokenizer: &TextTokenizer) -> String {
    const EDGE: usize = 60;
    let token = |i: usize| {
        let text = tokenizer.token(row.tokens[i]);
        if row.targets[i] { format!("«{text}»") } else { text }
    };
    let n = row.tokens.len();
    let shown: Vec<String> = match n > 2 * EDGE {
        false => (0..n).map(token).collect(),
        true => (0..EDGE)
            .map(token)
            .chain([format!("… {} tokens …", n - 2 * EDGE)])
            .chain((n - EDGE..n).map(token))
            .collect(),
    };
    format!(
        "{}:{}  {n} tokens, {} «targets»\n{}",
        row.source.file.display(),
        row.source.line,
        row.target_count(),
        shown.join("|")
    )
}
