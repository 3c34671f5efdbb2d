//! The plan as text: what a run will do, its arithmetic, and the first rows as the model sees them.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::build::{self, AnyTeacher};
use super::{preflight, responses};
use crate::cache::Reader;
use crate::config::plan::Plan;
use crate::config::{
    DivergenceConfig, Dtype, HiddenLayers, Layers, LossConfig, LossKind, Scheduled, StudentSource, Word,
};
use crate::corpus::{Loader, Row, TextTokenizer};
use crate::error::Result;
use crate::kernels::Precision;
use crate::metrics::Screen;
use crate::model::{Adaptation, ModelConfig};
use crate::signal::Tail;
use crate::train::RolloutState;
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
        StudentSource::Pruned { from, layers: Layers::These(layers) } => {
            format!("layers {layers:?} of {}", from.display())
        }
        StudentSource::Pruned { from, layers: Layers::Auto { count, rows } } => {
            format!("{count} layers of {}, to be chosen on {rows} rows when training starts", from.display())
        }
        StudentSource::Lora { from, .. } => format!("adapters on {}", from.display()),
    };
    let dtype = match config.train.dtype {
        Dtype::Bf16 if Precision::Bf16.is_native() || plan.devices.student.device.is_cuda() => ", multiplied in bf16",
        Dtype::F32 | Dtype::Bf16 => "",
    };
    line("student", format!("{origin}, {}{dtype}", shape(&plan.student)));
    if let Some(Adaptation { rank, alpha, targets }) = config.student.source.adaptation() {
        let targets = targets.map_or("every matrix of the blocks".into(), |targets| targets.join(", "));
        let (learn, all) = (plan.memory.trainable, plan.student.parameters() as f64);
        let share = 100.0 * learn as f64 / all;
        line(
            "adapters",
            format!("rank {rank}, alpha {alpha} on {targets}: {} parameters learn, {share:.1} %", Rounded(learn)),
        );
    }
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
    line("loss", loss_line(&config.loss));
    if let Some(hidden) = &config.loss.hidden {
        let pairs = match (&hidden.layers, config.student.search()) {
            (HiddenLayers::Auto, Some(_)) => "that are chosen".to_owned(),
            _ => {
                let pairs = plan.hidden_layers().unwrap_or_default();
                pairs.iter().map(|[s, t]| format!("{s}-{t}")).collect::<Vec<_>>().join(", ")
            }
        };
        line("hidden", format!("+ {} · {} of the layers {pairs}", hidden.weight, hidden.kind.word()));
    }
    if let Some(rollout) = config.rollout.as_ref().filter(|rollout| rollout.on_policy()) {
        let again = match (rollout.every_steps, rollout.buffer) {
            (Some(n), Some(buffer)) => {
                format!(", in every {n}th step, in between from the last {}", Count(buffer as u64))
            }
            _ => String::new(),
        };
        line(
            "rollouts",
            format!(
                "the student answers {:.0} % of the rows with a prompt, up to {} tokens at temperature {}, top_p {}{again}",
                100.0 * rollout.fraction.unwrap_or(0.0),
                Count(rollout.max_new_tokens as u64),
                rollout.temperature,
                rollout.top_p
            ),
        );
    }
    if let Some(rollout) = responses::wanted(config) {
        let state = if config.responses.is_some() { "the teacher's" } else { "to be written by the teacher first" };
        let max = Count(rollout.max_new_tokens as u64);
        line(
            "responses",
            format!("{state}: up to {max} tokens at temperature {}, top_p {}", rollout.temperature, rollout.top_p),
        );
    }
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
            "≈{}: teacher {}, student with gradients and optimizer {} (optimizer alone {}), activations {}",
            Bytes(m.total()),
            Bytes(m.teacher),
            Bytes(m.student),
            Bytes(m.optimizer),
            Bytes(m.activations)
        ),
    );
    let free = preflight::free(&config.output.dir).map_or(String::new(), |free| format!(", {} free", Bytes(free)));
    line(
        "output",
        format!(
            "{}, up to {} checkpoints of {}{free}, {} threads",
            config.output.dir.display(),
            plan.disk().checkpoints,
            Bytes(m.checkpoint),
            rayon::current_num_threads()
        ),
    );
    lines
}

fn loss_line(loss: &LossConfig) -> String {
    let parts: Vec<String> = loss.divergences().map(|(part, weight)| divergence(part, weight)).collect();
    if parts.is_empty() {
        return "cross_entropy".into();
    }
    let warm = loss.temperature != Scheduled::Constant(1.0) && loss.scale_by_temperature_squared;
    let is_tvd = |part: &DivergenceConfig| part.kind == LossKind::Tvd;
    let scale = match loss.divergences().filter(|(part, _)| is_tvd(part)).count() {
        _ if !warm => "",
        0 => " (× T²)",
        n if n == parts.len() => " (× T)",
        _ => " (× T², of tvd × T)",
    };
    let tail = match loss.tail() {
        Tail::Bucket => "",
        Tail::Renormalize => " over the stored tokens alone",
    };
    format!(
        "{}{tail} at T = {}{scale}, hard_label_weight = {}",
        parts.join(" + "),
        loss.temperature,
        loss.hard_label_weight
    )
}

fn divergence(part: &DivergenceConfig, weight: f64) -> String {
    let times = if weight == 1.0 { String::new() } else { format!("{weight} ") };
    let mixture = match (part.beta, part.lambda) {
        (Some(beta), _) if part.normalize == Some(true) => format!(" (beta = {beta}, normalised)"),
        (Some(beta), _) => format!(" (beta = {beta})"),
        (None, Some(lambda)) => format!(" (lambda = {lambda})"),
        (None, None) => String::new(),
    };
    format!("{times}{}{mixture}", part.kind.word())
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
///
/// A search for layers is left out: the steps are timed on the first ones, and the time is without it.
pub fn with_estimate(mut plan: Plan, screen: &Screen) -> Result<String> {
    let mut out = lines(&plan).join("\n") + "\n";
    let search =
        if plan.config.student.search().is_some() { ", saving and the search for layers" } else { " and saving" };
    plan.stand_in()?;
    let plan = &plan;
    plan.notices.iter().for_each(|n| out += &format!("{}\n", n.line()));
    let mut loader = Loader::new(plan.train.clone(), plan.encoder.clone(), plan.order());
    if let Some(step) = loader.next_step(SHOWN_ROWS, false)? {
        for row in step.items.iter().flatten() {
            out += &format!("\n{}\n", show_row(row, plan.encoder.tokenizer()));
        }
    }
    if plan.config.responses.is_none() && responses::wanted(&plan.config).is_some() {
        return Ok(out + "\ntime       not known: the teacher has not written the responses yet\n");
    }
    let per_step = time_steps(plan, screen)?;
    out += &format!(
        "\ntime       ≈{} for {} steps ({} a step, median of {TIMED_STEPS}), evaluations{search} not counted\n",
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
    let text = |tokens: &[u32]| plan.encoder.tokenizer().decode(tokens, false);
    let interrupted = AtomicBool::new(false);
    let rollouts = build::rollouts(plan, &text, &interrupted);
    let mut written = RolloutState::default();
    let mut times = vec![];
    for i in 0..TIMED_STEPS {
        let started = Instant::now();
        let Some(step) = loader.next_step(plan.config.train.batch_size, plan.config.data.packing)? else { break };
        let size = plan.config.train.micro_batch_size;
        let micro = match &rollouts {
            None => step.micro_batches(size),
            Some(rollouts) => {
                let mixed = rollouts.mix(step, i, &student, &written)?;
                written = mixed.as_ref().map_or(written, |mixed| mixed.state.clone());
                mixed.map(|mixed| mixed.micro_batches(size)).unwrap_or_default()
            }
        };
        stepper.step(&micro, i, plan.config.train.learning_rate)?;
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
