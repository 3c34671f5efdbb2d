//! `distill bench`: where a step's time goes, against what this machine's matrix product can do.

mod products;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use products::{Products, Size, block_operations};

use super::build::AnyTeacher;
use super::{Outcome, build, out};
use crate::cli::BenchArgs;
use crate::config::plan::{Notice, Plan};
use crate::config::{self, TeacherConfig, TeacherKind};
use crate::corpus::{Batch, Loader, Row, RowRef};
use crate::device::{Devices, Opened, allow_tf32, gpu_peak};
use crate::error::{Error, Result};
use crate::kernels::{Precision, Weight};
use crate::loss::{ForwardKl, Objective};
use crate::metrics::Screen;
use crate::model::{Decoder, Keep, ModelConfig};
use crate::signal::{Capabilities, Needs, TeacherSignal};
use crate::student::fresh_weights;
use crate::teacher::{LocalTeacher, Teacher};
use crate::train::{AdamW, AdamWConfig, Phases, StepReport, Stepper};
use crate::units::{Bytes, Count, peak_rss_bytes};

pub fn run(args: &BenchArgs) -> Result<Outcome> {
    let screen = Screen::stderr();
    let reports = match (&args.config, &args.student) {
        (Some(file), _) => of_config(file, args, &screen)?,
        (None, Some(student)) => of_shapes(student, args, &screen)?,
        (None, None) => return Err(Error::input("bench needs --config, or --student with --teacher or --top-k")),
    };
    if args.json {
        out::exactly(&json_line(&reports))?
    } else {
        out::write(&table(&reports))?
    }
    Ok(Outcome::Done)
}

/// The steps that were timed and the floating-point operations of one.
struct Timed {
    reports: Vec<StepReport>,
    flops: Operations,
    /// Seconds of a step's products alone; None on a GPU.
    products: Option<f64>,
    /// Of the steps: timing the products alone takes memory too.
    peak_memory: Option<u64>,
    peak_gpu_memory: Option<u64>,
    /// Where the student is.
    device: Opened,
    /// Its best f32 product, in operations per second.
    peak: f64,
}

/// Floating-point operations of each phase that multiplies matrices.
struct Operations {
    teacher: f64,
    forward: f64,
    head: f64,
    backward: f64,
}

/// A run's own first steps.
fn of_config(file: &Path, args: &BenchArgs, screen: &Screen) -> Result<Timed> {
    let mut config = config::load_to_read(file, &[])?;
    let rollouts = config.rollout.take().is_some();
    if rollouts {
        screen.line(
            "the steps are timed on the corpus's own responses, without [rollout]: a run reports what that takes",
        );
    }
    let devices = config.devices(args.device.choice)?;
    let plan = Plan::new(config, devices, screen);
    let mut plan =
        plan.map_err(|e| if rollouts { e.context("without [rollout], which bench leaves out") } else { e })?;
    plan.stand_in()?;
    plan.notices.iter().for_each(|notice| screen.line(&notice.line()));
    let teacher = build::teacher(&plan, screen)?;
    let student = build::student(&plan, teacher.as_ref(), screen)?;
    let mut stepper = build::stepper(&plan, teacher.as_ref().map(AnyTeacher::as_dyn), &student)?;
    stepper.exact_phases = true;
    let mut loader = Loader::new(plan.train.clone(), plan.encoder.clone(), plan.order());
    let train = &plan.config.train;
    let next = || -> Result<Vec<Batch>> {
        let step = loader.next_step(train.batch_size, plan.config.data.packing)?;
        step.map(|s| s.micro_batches(train.micro_batch_size))
            .ok_or_else(|| Error::input("the corpus has fewer steps than --steps"))
    };
    let live = teacher.as_ref().and_then(AnyTeacher::live);
    time(&mut stepper, live, args.steps, train.learning_rate, next, &plan.devices, screen)
}

/// Random tokens through models of the given shapes, every token a target.
fn of_shapes(student: &Path, args: &BenchArgs, screen: &Screen) -> Result<Timed> {
    let choice = args.device.choice;
    let teacher = args.teacher.as_deref().map_or(choice, |path| TeacherKind::of(path).device(choice));
    let devices = Devices::open(teacher, choice)?;
    let device = &devices.student.device;
    let student = if student.is_dir() {
        build::load_model(student, true, device, screen)?
    } else {
        let config = ModelConfig::read(student)?;
        let weights = fresh_weights(&config, 0)?;
        Decoder::new(config, weights, true, device)?
    };
    let vocab = student.config().vocab_size;
    if let Some(k) = args.top_k.filter(|&k| k > vocab) {
        return Err(Error::input(format!("--top-k {k} is more than the student's vocabulary of {vocab}")));
    }
    if let Some(notice) = Notice::of_bf16((args.teacher_dtype, args.dtype), &devices) {
        screen.line(&notice.line());
    }
    let local = args.teacher.as_deref().map(|teacher| local_teacher(teacher, args, &devices, screen)).transpose()?;
    let stored = args.top_k.map(|k| StoredTokens { k, vocab_size: vocab });
    let teacher = local.as_ref().map(|t| t as &dyn Teacher).or(stored.as_ref().map(|t| t as &dyn Teacher));
    let vocab = teacher.map_or(vocab, |t| t.vocab_size().min(vocab)) as u32;
    let config = AdamWConfig { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };
    let mut stepper = Stepper {
        teacher,
        student: &student,
        objective: Objective::distillation(Box::new(ForwardKl), 2.0, 0.0, true),
        hidden: None,
        optimizer: AdamW::new(config, student.parameters())?,
        max_grad_norm: 1.0,
        keep: Keep::Activations,
        precision: build::precision(args.dtype),
        exact_phases: true,
    };
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let source = RowRef { digest: [0; 32], file: Arc::new(PathBuf::from("random")), line: 1 };
    let next = || -> Result<Vec<Batch>> {
        let row = |rng: &mut ChaCha8Rng| Row {
            // One token more than goes in, so that each of `length` tokens has a successor to predict.
            tokens: (0..args.length + 1).map(|_| rng.random_range(0..vocab)).collect(),
            targets: (0..args.length + 1).map(|t| t > 0).collect(),
            source: source.clone(),
        };
        let rows: Vec<Row> = (0..args.batch).map(|_| row(&mut rng)).collect();
        Ok(vec![Batch::new(&rows)])
    };
    time(&mut stepper, local.as_ref(), args.steps, 1e-4, next, &devices, screen)
}

/// A model folder, or random weights in the shape of a config.json.
fn local_teacher(path: &Path, args: &BenchArgs, devices: &Devices, screen: &Screen) -> Result<LocalTeacher> {
    let kind = TeacherKind::of(path);
    if kind == TeacherKind::Cache {
        return Err(Error::input(
            "--teacher is a cache, which knows its own rows alone: bench --config with it, or --top-k",
        ));
    }
    if path.is_dir() || kind == TeacherKind::Gguf {
        let teacher =
            TeacherConfig { kind, path: path.to_owned(), tokenizer: None, dtype: args.teacher_dtype, device: None };
        return build::load_teacher(&teacher, devices, screen);
    }
    let config = ModelConfig::read(path)?;
    let weights = fresh_weights(&config, 0)?;
    let device = &devices.teacher.device;
    let model = Decoder::frozen(config, weights, build::precision(args.teacher_dtype), device)?;
    LocalTeacher::new(Arc::new(model), &devices.student.device)
}

/// Stands in for a cache: k distinct tokens from a random one on, of equal probability, and nothing in the tail.
struct StoredTokens {
    k: usize,
    vocab_size: usize,
}

impl StoredTokens {
    fn tokens_from(&self, first: usize) -> impl Iterator<Item = u32> + use<> {
        let (step, vocab) = (self.vocab_size / self.k, self.vocab_size);
        (0..self.k).map(move |i| ((first + i * step) % vocab) as u32)
    }
}

impl Teacher for StoredTokens {
    fn capabilities(&self) -> Capabilities {
        Capabilities { full_distribution: false }
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn signal(&self, batch: &Batch, _: &Needs) -> Result<TeacherSignal> {
        let n = batch.valid_tokens();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        Ok(TeacherSignal::TopK {
            k: self.k,
            ids: (0..n).flat_map(|_| self.tokens_from(rng.random_range(0..self.vocab_size))).collect(),
            log_probabilities: vec![-(self.k as f32).ln(); n * self.k],
            log_tails: Some(vec![f32::NEG_INFINITY; n]),
            labels: vec![],
            vocab_size: self.vocab_size,
        })
    }
}

fn time(
    stepper: &mut Stepper,
    teacher: Option<&LocalTeacher>,
    steps: u64,
    learning_rate: f64,
    mut next: impl FnMut() -> Result<Vec<Batch>>,
    devices: &Devices,
    screen: &Screen,
) -> Result<Timed> {
    let device = devices.student.clone();
    let peak = gemm_peak(&device.device)?;
    let progress = screen.progress("timing steps", Some(steps + 1));
    let mut reports = vec![];
    let (mut batches, mut rows) = (0, 0);
    // The first step warms caches and buffers up and does not count.
    for step in 0..=steps {
        let micro = next()?;
        let report = stepper.step(&micro, step, learning_rate)?;
        progress.advance(1);
        if step > 0 {
            batches += micro.len();
            rows += micro.iter().map(|batch| batch.rows.len()).sum::<usize>();
            reports.push(report);
        }
    }
    progress.finish();
    let student = stepper.student.config();
    let teacher = teacher.filter(|_| stepper.objective.uses_teacher());
    let teacher_precision = teacher.map_or(Precision::F32, LocalTeacher::precision);
    let teacher = teacher.map(|t| t.decoder().config());
    let mean = |f: fn(&StepReport) -> usize| reports.iter().map(f).sum::<usize>() as f64 / reports.len().max(1) as f64;
    let (tokens, targets) = (mean(|r| r.input_tokens), mean(|r| r.sums.targets));
    let micro_batches = (batches / reports.len().max(1)).max(1);
    let each = |mean: f64| (mean / micro_batches as f64).round() as usize;
    let length = (tokens / rows.max(1) as f64 * reports.len() as f64).round().max(1.0) as usize;
    let size = Size { tokens: each(tokens), length, targets: each(targets), micro_batches };
    let mut products = Products::default();
    if let Some(config) = teacher {
        products.add_teacher(config, size, teacher_precision);
    }
    let frozen = stepper.student.head()?.grad.is_none();
    products.add_student(student, size, stepper.precision, frozen);
    let on_cpu = !device.device.is_cuda() && !devices.teacher.device.is_cuda();
    let head = |c: &ModelConfig| 2.0 * targets * (c.vocab_size * c.hidden_size) as f64;
    let flops = Operations {
        teacher: teacher.map_or(0.0, |t| block_operations(t, size)),
        forward: block_operations(student, size),
        head: teacher.map_or(0.0, head) + if frozen { 2.0 } else { 3.0 } * head(student),
        backward: if frozen { 1.0 } else { 2.0 } * block_operations(student, size),
    };
    let (peak_memory, peak_gpu_memory) = (peak_rss_bytes(), gpu_peak(&device.device));
    let products = on_cpu.then(|| products.seconds());
    Ok(Timed { reports, flops, peak_memory, peak_gpu_memory, products, device, peak })
}

/// The best of a few large f32 products on all threads, or on the GPU, in operations per second.
fn gemm_peak(device: &Device) -> Result<f64> {
    let allowed = allow_tf32(false);
    let n = if device.is_cuda() { 4096 } else { 1024 };
    let ones = |device| Ok::<_, Error>(Tensor::ones((n, n), DType::F32, device)?);
    let (a, b) = (ones(device)?, Weight::Dense(ones(device)?));
    let mut best = Duration::MAX;
    for _ in 0..8 {
        let started = Instant::now();
        b.logits(&a)?;
        device.synchronize()?;
        best = best.min(started.elapsed());
    }
    allow_tf32(allowed);
    Ok(2.0 * (n * n * n) as f64 / best.as_secs_f64())
}

type Phase = fn(&Phases) -> Duration;

/// The median over the timed steps.
fn median(reports: &[StepReport], f: impl Fn(&StepReport) -> f64) -> f64 {
    let mut values: Vec<f64> = reports.iter().map(f).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn seconds(report: &StepReport) -> f64 {
    (report.phases.teacher + report.phases.student()).as_secs_f64()
}

/// For scripts: median seconds of each phase, seconds of the products alone, tokens per second, peak memory.
fn json_line(timed: &Timed) -> String {
    let phase = |f: Phase| median(&timed.reports, |r| f(&r.phases).as_secs_f64());
    let line = json!({
        "teacher": phase(|p| p.teacher),
        "forward": phase(|p| p.forward),
        "head": phase(|p| p.head),
        "backward": phase(|p| p.backward),
        "optimizer": phase(|p| p.optimizer),
        "products_alone": timed.products,
        "tokens_per_second": median(&timed.reports, |r| r.input_tokens as f64 / seconds(r)),
        "peak_rss_bytes": timed.peak_memory,
        "peak_gpu_bytes": timed.peak_gpu_memory,
    });
    format!("{line}\n")
}

fn table(timed: &Timed) -> String {
    let peak = timed.peak;
    let reports = &timed.reports;
    let step = median(reports, seconds);
    let rows: [(&str, Phase, f64); 5] = [
        ("teacher", |p| p.teacher, timed.flops.teacher),
        ("student forward", |p| p.forward, timed.flops.forward),
        ("heads and loss", |p| p.head, timed.flops.head),
        ("backward", |p| p.backward, timed.flops.backward),
        ("optimizer", |p| p.optimizer, 0.0),
    ];
    let mut out = format!("{:<18}{:>10}{:>8}{:>9}{:>12}\n", "phase", "ms", "share", "GF/s", "of f32 peak");
    let mut line = |name: &str, seconds: f64, flops: f64| {
        let speed = match flops > 0.0 && seconds > 0.0 {
            true => format!("{:>9.0}{:>10.0} %", flops / seconds / 1e9, 100.0 * flops / seconds / peak),
            false => String::new(),
        };
        out += &format!("{name:<18}{:>10.1}{:>6.0} %{speed}\n", 1e3 * seconds, 100.0 * seconds / step);
    };
    for (name, phase, flops) in rows {
        line(name, median(reports, |r| phase(&r.phases).as_secs_f64()), flops);
    }
    let f = &timed.flops;
    line("step", step, f.teacher + f.forward + f.head + f.backward);
    let tokens = median(reports, |r| r.input_tokens as f64 / seconds(r));
    let memory = timed.peak_memory.map_or("unknown".into(), |b| Bytes(b).to_string());
    if let Some(alone) = timed.products {
        out += &format!("its products alone: {:.1} ms, {:.0} % of the step\n", 1e3 * alone, 100.0 * alone / step);
    }
    let place = match timed.peak_gpu_memory {
        Some(bytes) => format!("{}, of which tensors took {}", timed.device.description, Bytes(bytes)),
        None if timed.device.device.is_cuda() => timed.device.description.clone(),
        None => format!("{} threads", rayon::current_num_threads()),
    };
    out += &format!(
        "{} tokens/s (median of {} steps), peak memory {memory}, f32 product at its best {:.0} GF/s, {place}\n",
        Count(tokens as u64),
        reports.len(),
        peak / 1e9,
    );
    out
}
