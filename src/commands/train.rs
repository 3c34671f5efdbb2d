//! `distill train`: plan, build, run, report.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::build::AnyTeacher;
use super::cache::{self, write_through};
use super::signals::Watch;
use super::start::{Origin, Start};
use super::{Outcome, build, choose, fingerprints, out, preflight, provenance, responses, show_plan};
use crate::checkpoint::{Dtype, Retention, Store, Unsynced, atomic, layout};
use crate::cli::TrainArgs;
use crate::config::plan::Plan;
use crate::config::{self, Dtype as OutputDtype};
use crate::corpus::{Loader, ReadAhead, Rejections, StepShape};
use crate::device::gpu_peak;
use crate::error::{Error, Result};
use crate::eval::{Cuts, EvalReport};
use crate::metrics::{self, Console, Event, Jsonl, Screen, Sink, Sinks};
use crate::model::Decoder;
use crate::report::{Column, Status, Summary, Written, eval_table, recorded};
use crate::student::{Companions, write_adapters, write_model};
use crate::teacher::{RememberingTeacher, Spill, Teacher, WriteThrough};
use crate::train::{Ending, Evaluated, Pace, Run, Saver, TrainState, Writer};
use crate::units::{Bytes, Count, Rounded, Span};

const CONFIG: &str = "config.toml";
const REJECTED: &str = "rejected.jsonl";
const CURVES: &str = "curves.svg";

/// Hidden states of held-out rows that are kept between evaluations, in memory and, beyond that, in the run's folder: what
/// /tmp holds may be memory too.
const HELD_OUT_MEMORY: usize = 256 << 20;
const HELD_OUT_DISK: u64 = 1 << 30;

pub fn run(args: &TrainArgs) -> Result<Outcome> {
    let screen = Screen::stderr();
    let mut config = config::load(&args.config, &args.set, args.output.as_deref())?;
    let devices = config.devices(args.device.choice)?;
    if args.dry_run {
        config.responses = responses::complete(&config).then(|| responses::file(&config));
        let plan = Plan::new(config, devices, &screen)?;
        out::write(&show_plan::with_estimate(plan, &screen)?)?;
        return Ok(Outcome::Done);
    }
    let writes = responses::wanted(&config).is_some() && !responses::complete(&config);
    let signals = Watch::new(if writes { "batch of answers" } else { "micro-batch" }, &screen)?;
    signals.quit_at_once(Some(NOTHING_TRAINED));
    let dir = config.output.dir.clone();
    let start = Start::find(args.resume.as_ref(), &dir, &mut config, &screen)?;
    if responses::wanted(&config).is_some() {
        if let Start::From(origin) = &start
            && !origin.same_run
        {
            responses::bring_along(&origin.run_dir, &dir)?;
        }
        if !responses::write(&config, devices.clone(), &screen, &signals)? || signals.flag().load(Ordering::Relaxed) {
            return Ok(Outcome::Stopped);
        }
        signals.quit_at_once(Some(NOTHING_TRAINED));
        config.responses = Some(responses::file(&config));
    }
    let mut plan = Plan::new(config, devices, &screen)?;
    show_plan::lines(&plan).iter().for_each(|line| screen.line(line));
    let memory = plan.memory.total();
    let short = |error: Error| match error.is_out_of_memory() {
        true => error.context(format!("the plan's estimate was {}", Bytes(memory))),
        false => error,
    };
    preflight::disk(&plan, &start)?;
    let searched = match plan.config.student.search() {
        Some(_) => Some(choose_layers(&mut plan, &screen).map_err(short)?),
        None => None,
    };
    let session = Session::open(&plan, &start, &screen, args.stop_after, signals.flag(), searched).map_err(short)?;
    // What comes now writes to the run's folder.
    signals.quit_at_once(None);
    if session.interrupted.load(Ordering::Relaxed) {
        screen.line(NOTHING_TRAINED);
        return Ok(Outcome::Stopped);
    }
    session.run().map_err(short)
}

const NOTHING_TRAINED: &str = "stopped before anything was trained";

/// A teacher that was asked which of its layers to keep, and teaches afterwards; what it said.
type Searched = (AnyTeacher, Cuts);

/// Replaces `student.layers = "auto"` in the plan.
fn choose_layers(plan: &mut Plan, screen: &Screen) -> Result<Searched> {
    let missing = || Error::run("there is no live teacher to choose layers of");
    let teacher = build::teacher(plan, screen)?.ok_or_else(missing)?;
    let data = (plan.train.clone(), plan.encoder.clone());
    let live = teacher.live().ok_or_else(missing)?;
    let cuts = choose::layers(&plan.config, live, data, screen)?;
    choose::table(&cuts).iter().for_each(|line| screen.line(line));
    plan.choose(cuts.layers.clone())?;
    Ok((teacher, cuts))
}

/// Everything a run needs, checked and loaded; the run's folder is not touched yet.
struct Session<'a> {
    plan: &'a Plan,
    start: &'a Start,
    screen: &'a Screen,
    interrupted: &'a AtomicBool,
    stop_after: Option<u64>,
    teacher: Option<AnyTeacher>,
    student: Arc<Decoder>,
    companions: Companions,
    state: TrainState,
    provenance: provenance::Record,
    /// What the choice of layers rests on, where this session made it.
    cuts: Option<Cuts>,
}

impl<'a> Session<'a> {
    fn open(
        plan: &'a Plan,
        start: &'a Start,
        screen: &'a Screen,
        stop_after: Option<u64>,
        interrupted: &'a AtomicBool,
        searched: Option<Searched>,
    ) -> Result<Self> {
        let companions = Companions::of(plan.encoder.tokenizer())?;
        let fingerprints = fingerprints::of(plan, &companions)?;
        let state = match start {
            Start::Fresh => TrainState::new(fingerprints, build::hardware(&plan.devices)),
            Start::From(origin) => {
                let mut state = TrainState::read(&origin.checkpoint)?;
                fingerprints::check(&state.fingerprints, &fingerprints)?;
                if state.loader.order.is_empty() {
                    state.loader.order = order_until(plan, state.step)?;
                }
                state
            }
        };
        let origin = match start {
            Start::Fresh => None,
            Start::From(origin) => Some((&origin.checkpoint, &state)),
        };
        let provenance = provenance::Record::begin(plan, origin, build::hardware(&plan.devices))?;
        let (teacher, cuts) = match searched {
            Some((teacher, cuts)) => (Some(teacher), Some(cuts)),
            None => (build::teacher(plan, screen)?, None),
        };
        let student = match start {
            Start::Fresh => build::student(plan, teacher.as_ref(), screen)?,
            Start::From(origin) => build::resumed_student(plan, &origin.checkpoint, screen)?,
        };
        let student = Arc::new(student);
        Ok(Self { plan, start, screen, interrupted, stop_after, teacher, student, companions, state, provenance, cuts })
    }

    /// Opens the run's folder for writing, as it has to be at the state's step: nothing of a later one counts any more.
    fn open_folder(&self) -> Result<(Store, Sinks)> {
        let run_dir = &self.plan.config.output.dir;
        let store = Store::open(run_dir)?;
        let log = run_dir.join(layout::METRICS);
        let step = self.state.step;
        if !self.same_run() {
            store.begin()?;
            // What a start that was cut off has left.
            self.leave_no_trace(run_dir);
        }
        let jsonl = match self.start {
            Start::Fresh => Jsonl::create(&log)?,
            Start::From(origin) => {
                self.go_back(origin, &store, &log)?;
                Jsonl::resume(&log, step, self.state.evaluated == Some(step))?
            }
        };
        config::save(&self.plan.config, &run_dir.join(CONFIG))?;
        if let Some(cuts) = &self.cuts {
            let text = serde_json::to_vec_pretty(cuts).map_err(|e| Error::run(e.to_string()))?;
            atomic::write_file(&run_dir.join(choose::RECORD), &text)?;
        }
        let console = Console::new(self.screen.clone(), step, self.plan.total_steps);
        let mut sinks = Sinks(vec![Box::new(jsonl), Box::new(console)]);
        if let Start::Fresh = self.start {
            for notice in &self.plan.notices {
                warn(&mut sinks, 0, notice.code, notice.message.clone())?;
            }
        }
        Ok((store, sinks))
    }

    fn same_run(&self) -> bool {
        matches!(self.start, Start::From(origin) if origin.same_run)
    }

    fn go_back(&self, origin: &Origin, store: &Store, log: &Path) -> Result<()> {
        if origin.same_run {
            // `latest` first: a kill after the log was cut must not find the later checkpoint with a hole in its log.
            store.set_latest(self.state.step)?;
        } else {
            let theirs = origin.run_dir.join(layout::METRICS);
            std::fs::copy(&theirs, log).map_err(|e| Error::unreadable(&theirs, e))?;
        }
        store.go_on_from(origin.checkpoint.manifest());
        store.point_best_at(self.state.best.map(|best| best.step))
    }

    fn run(self) -> Result<Outcome> {
        let plan = self.plan;
        let train = &plan.config.train;
        let (store, mut sinks) = self.open_folder()?;
        let store = Arc::new(store);
        let live = self.teacher.as_ref().map(AnyTeacher::as_dyn);
        // What it says goes to the cache first, so the lock of the run's folder is taken by now.
        let storing = self.teacher.as_ref().and_then(AnyTeacher::live).filter(|_| writes_through(plan));
        if storing.is_some() && self.state.step > 0 && layout::is_fresh(&cache::folder(plan))? {
            let message = "the run's cache is not there any more: the teacher is asked again".into();
            warn(&mut sinks, self.state.step, "cache_lost", message)?;
        }
        let storing = storing.map(|teacher| write_through(plan, teacher, self.provenance.teacher_weights()?));
        let storing = storing.transpose()?;
        let speaking = storing.as_ref().map(|teacher| teacher as &dyn Teacher).or(live);
        let mut stepper = build::stepper(plan, speaking, &self.student)?;
        let mut loader = Loader::new(plan.train.clone(), plan.encoder.clone(), plan.order());
        let mut state = self.state.clone();
        if let Start::From(origin) = self.start {
            stepper.optimizer.restore(TrainState::read_moments(&origin.checkpoint)?)?;
            TrainState::restore_projections(&origin.checkpoint, stepper.hidden.as_ref())?;
            loader.restore(state.loader.clone())?;
            for (code, message) in state.continue_here(build::hardware(&plan.devices)) {
                warn(&mut sinks, state.step, code, message)?;
            }
            let past = if state.step > plan.total_steps {
                format!(": past the {} asked for, nothing is left to train", Count(plan.total_steps))
            } else {
                String::new()
            };
            self.screen.line(&format!("resuming after step {}{past}", Count(state.step)));
        }
        // Held-out rows are asked for at every evaluation; the teacher's word on them does not change.
        let spill = Spill::new(&plan.config.output.dir, HELD_OUT_DISK);
        let critic = live.map(|teacher| RememberingTeacher::new(teacher, HELD_OUT_MEMORY, spill));
        let critic = critic.as_ref().map(|t| t as &dyn Teacher);
        // The whole first report is kept for the closing table; a resumed run has only what its state says of it.
        let mut initial: Option<EvalReport> = None;
        let mut evaluate_step = |step: u64| -> Result<Option<Evaluated>> {
            let Some(report) = self.evaluate(&self.student, critic)? else { return Ok(None) };
            let score = report.score();
            let event = eval_event(step, &report);
            if step == 0 {
                initial = Some(report);
            }
            Ok(Some(Evaluated { event, score }))
        };
        let text = |tokens: &[u32]| plan.encoder.tokenizer().decode(tokens, false);
        let shape = StepShape { batch_size: train.batch_size, packing: plan.config.data.packing };
        let keep = Retention { last: plan.config.checkpoint.keep_last, every: plan.config.checkpoint.keep_every };
        let mut run = Run {
            stepper,
            steps: ReadAhead::new(loader, shape)?,
            micro_batch_size: train.micro_batch_size,
            rollouts: build::rollouts(plan, &text, self.interrupted),
            schedule: build::schedule(plan),
            pace: Pace {
                total_steps: plan.total_steps,
                max_time: train.max_time.as_ref().map(|t| t.duration()),
                stop_after: self.stop_after,
                eval_every: plan.config.eval.every_steps,
                checkpoint_every: plan.config.checkpoint.every_steps,
                keep_best: plan.config.checkpoint.keep_best,
            },
            saver: Saver::new(store.clone(), keep, self.same_run().then_some(state.step)),
            sinks: &mut sinks,
            evaluate: plan.held_out.as_ref().map(|_| &mut evaluate_step as _),
            model_writer: &|state| self.model_writer(state),
            interrupted: self.interrupted,
            state,
        };
        let ended = run.go();
        let Run { stepper, steps, state, saver, .. } = run;
        let rejections = steps.rejections().clone();
        // Nothing is read any more; and the moments are twice the student: gone before the saved student is read back.
        drop((steps, stepper, saver));
        let stored = storing.map_or(Ok(()), |storing: WriteThrough| storing.finish(cache::corpus_digest(plan)));
        let mut summary = summarize(&state, plan);
        let end = match ended {
            Err(error) => {
                summary.status = Status::Failed;
                summary.error = Some(error.to_string());
                Err(error)
            }
            Ok(Ending::Stopped) => Ok(None),
            Ok(ending) => {
                summary.status = if ending == Ending::TimeUp { Status::TimeUp } else { Status::Complete };
                self.deliver(&state, critic, &mut summary).map(Some)
            }
        };
        let run_dir = &plan.config.output.dir;
        let (delivered, error) = match end {
            Ok(delivered) => (delivered.flatten(), None),
            Err(error) => (None, Some(error)),
        };
        if delivered.is_none() && error.is_none() {
            summary.status = Status::Stopped;
        }
        // What follows only tells of the run: it neither hides the run's own error nor costs its result.
        let told = [
            stored,
            summary.write(run_dir),
            write_rejected(plan, &rejections, run_dir),
            metrics::draw_curves(&run_dir.join(layout::METRICS), &run_dir.join(CURVES), &title(run_dir)),
        ];
        for trouble in told.into_iter().filter_map(Result::err) {
            self.screen.line(&format!("warning[report_incomplete]: {trouble}"));
        }
        drop(sinks);
        match (error, delivered) {
            (Some(error), _) => {
                // Not even the checkpoint that it begins with: there is nothing to resume, so the folder is given back.
                if store.is_beginning() {
                    self.give_back(run_dir);
                }
                Err(error)
            }
            (None, Some(last)) => {
                let initial = initial.or_else(|| state.initial_eval.as_ref().map(recorded));
                out::write(&closing(plan, &state, initial.as_ref(), last.as_ref()))?;
                Ok(Outcome::Done)
            }
            (None, None) if state.step == 0 && !self.same_run() => {
                self.give_back(run_dir);
                self.screen.line("stopped before the first step: nothing to save, the same command starts anew");
                Ok(Outcome::Stopped)
            }
            (None, None) => {
                self.screen.line(&format!("stopped after step {}; --resume goes on from there", Count(state.step)));
                Ok(Outcome::Stopped)
            }
        }
    }

    /// The student on the held-out rows. None without such rows, or when it was interrupted.
    fn evaluate(&self, student: &Decoder, teacher: Option<&dyn Teacher>) -> Result<Option<EvalReport>> {
        let Some(held_out) = &self.plan.held_out else { return Ok(None) };
        let report = build::evaluate_rows(teacher, student, &held_out.rows, self.interrupted, self.screen)?;
        Ok(report.map(|r| if self.plan.config.eval.exact_match { r } else { r.without_exact_match() }))
    }

    /// Writes the model of a checkpoint: a student with adapters is merged with them, and goes on from the adapters.
    fn model_writer(&self, state: &TrainState) -> Result<Writer> {
        let (student, companions) = (self.student.clone(), self.companions.clone());
        let provenance = self.provenance.after(state, self.plan.config.seed)?;
        let adapted = self.plan.config.student.source.adaptation().is_some();
        Ok(Box::new(move |dir| {
            let adapters = if adapted { write_adapters(dir, &student)? } else { Unsynced::default() };
            let model = write_model(dir, &student, &companions, Dtype::F32)?;
            provenance.write(dir)?;
            Ok(adapters.and(model))
        }))
    }

    /// Writes student/ and evaluates what stands on the disk: what is reported is what was delivered. None when it was
    /// interrupted.
    fn deliver(
        &self,
        state: &TrainState,
        critic: Option<&dyn Teacher>,
        summary: &mut Summary,
    ) -> Result<Option<Option<EvalReport>>> {
        let folder = student_folder(self.plan);
        let dtype = build::stored(self.plan.config.output.dtype);
        atomic::write_folder(&folder, |dir| {
            write_model(dir, &self.student, &self.companions, dtype)?.sync()?;
            self.provenance.after(state, self.plan.config.seed)?.write_over(dir)
        })?;
        let saved = Decoder::load(&folder, false, &self.plan.devices.student.device)?;
        let report = self.evaluate(&saved, critic)?;
        if self.plan.held_out.is_some() && report.is_none() {
            return Ok(None);
        }
        if let Some(report) = &report {
            let saved = eval_event(state.step, report);
            self.check_delivery(state, &saved)?;
            summary.final_eval = Some(saved);
        }
        Ok(Some(report))
    }

    /// An f32 folder must evaluate as the model in memory did.
    fn check_delivery(&self, state: &TrainState, saved: &metrics::Eval) -> Result<()> {
        let Some(memory) = &state.last_eval else { return Ok(()) };
        // Adapters were merged into matrices that round once where two products rounded twice.
        let tolerance = if self.plan.config.student.source.adaptation().is_some() { 1e-5 } else { 1e-6 };
        let same = (memory.student_perplexity / saved.student_perplexity - 1.0).abs() < tolerance;
        if self.plan.config.output.dtype == OutputDtype::F32 && state.evaluated == Some(state.step) && !same {
            return Err(Error::run(format!(
                "the saved student evaluates to perplexity {}, the one in memory to {}: the disk or memory is at fault",
                saved.student_perplexity, memory.student_perplexity
            )));
        }
        Ok(())
    }

    /// Of a run that began in this session and has nothing to resume: its folder counts as empty.
    fn give_back(&self, run_dir: &Path) {
        self.leave_no_trace(run_dir);
        let _ = std::fs::remove_file(run_dir.join(layout::STARTING));
    }

    /// Removes what a run without a step has written. Best effort: it only tidies.
    fn leave_no_trace(&self, run_dir: &Path) {
        let _ = std::fs::remove_dir_all(run_dir.join(layout::CHECKPOINTS));
        for name in [layout::METRICS, CONFIG, layout::SUMMARY, REJECTED, CURVES, choose::RECORD] {
            let _ = std::fs::remove_file(run_dir.join(name));
        }
        if writes_through(self.plan) {
            let _ = std::fs::remove_dir_all(cache::folder(self.plan));
        }
    }
}

/// What a checkpoint that did not record it would have said of the order of its rows.
fn order_until(plan: &Plan, steps: u64) -> Result<String> {
    let mut loader = Loader::new(plan.train.clone(), plan.encoder.clone(), plan.order());
    for _ in 0..steps {
        loader.next_step(plan.config.train.batch_size, plan.config.data.packing)?;
    }
    Ok(loader.state().order.clone())
}

fn writes_through(plan: &Plan) -> bool {
    plan.config.cache.as_ref().is_some_and(|cache| cache.write_through)
}

fn student_folder(plan: &Plan) -> PathBuf {
    plan.config.output.dir.join(layout::STUDENT)
}

/// rejected.jsonl: what `on_bad_record = "skip"` passed over, the first thousand of each kind. Absent when nothing was.
fn write_rejected(plan: &Plan, while_training: &Rejections, run_dir: &Path) -> Result<()> {
    let held_out = plan.held_out.as_ref().map(|h| &h.rejections);
    let all = [Some(plan.train.rejections()), Some(&plan.scan.rejections), Some(while_training), held_out];
    let mut lines: Vec<String> = responses::passed_over(&plan.config);
    for r in all.into_iter().flatten().flat_map(|rejections| &rejections.first) {
        let line = r.json().to_string();
        // The plan's scan and the training meet the same records.
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    atomic::write_file(&run_dir.join(REJECTED), (lines.join("\n") + "\n").as_bytes())
}

fn warn(sinks: &mut Sinks, step: u64, code: &str, message: String) -> Result<()> {
    sinks.record(&Event::Warning(metrics::Warning { step, code: code.into(), message }))
}

fn title(run_dir: &Path) -> String {
    run_dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn eval_event(step: u64, report: &EvalReport) -> metrics::Eval {
    metrics::Eval {
        step,
        kl_mean: report.kl_mean,
        bucket_kl_mean: report.bucket_kl_mean,
        kl_median: report.kl_median,
        kl_p99: report.kl_p99,
        top1_agreement: report.top1_agreement,
        student_perplexity: report.student_perplexity,
        teacher_perplexity: report.teacher_perplexity,
        tokens: report.tokens as u64,
        student_exact_match: report.student_exact_match,
        teacher_exact_match: report.teacher_exact_match,
    }
}

/// The summary of a stopped run; the caller knows if it ended otherwise.
fn summarize(state: &TrainState, plan: &Plan) -> Summary {
    Summary {
        status: Status::Stopped,
        error: None,
        steps: state.step,
        tokens: state.target_tokens,
        rows_used: state.loader.rows_used,
        rows_dropped: state.loader.rows_dropped,
        rows_truncated: state.loader.rows_truncated,
        rows_rejected: plan.train.rejections().count + state.loader.records_rejected,
        tokens_per_second: (state.step > 0).then(|| state.input_tokens as f64 / state.times.train_seconds),
        peak_rss_bytes: crate::units::peak_rss_bytes(),
        peak_gpu_bytes: gpu_peak(&plan.devices.student.device),
        elapsed_seconds: state.times.elapsed_seconds,
        rollouts: written(state),
        initial_eval: state.initial_eval.clone(),
        final_eval: state.last_eval.clone(),
        best: state.best,
    }
}

/// What the student wrote itself. None: it did not write.
fn written(state: &TrainState) -> Option<Written> {
    let rollout = state.rollout.as_ref()?;
    Some(Written {
        rows: rollout.rows,
        tokens: rollout.tokens,
        tokens_per_second: rollout.tokens as f64 / state.times.rollout_seconds.max(1e-9),
        share: state.times.rollout_seconds / state.times.train_seconds.max(1e-9),
    })
}

/// The table that closes a run.
fn closing(plan: &Plan, state: &TrainState, initial: Option<&EvalReport>, last: Option<&EvalReport>) -> String {
    let mut text = String::new();
    if let Some(last) = last {
        let before = initial.map(|report| Column { title: "before", report });
        let columns: Vec<Column> = before.into_iter().chain([Column { title: "after", report: last }]).collect();
        text += &format!("\n{}", eval_table(&columns));
    }
    let (student, teacher) = (plan.student.parameters(), plan.teacher.as_ref().map(|t| t.parameters()));
    let share = teacher.map_or(String::new(), |t| {
        format!(", {:.0} % of the teacher's {}", 100.0 * student as f64 / t as f64, Rounded(t as u64))
    });
    let speed = state.input_tokens as f64 / state.times.train_seconds.max(1e-9);
    text += &format!("student  {} ({} parameters{share})\n", student_folder(plan).display(), Rounded(student as u64));
    text += &format!(
        "steps    {} in {}, {} tokens/s while training\n",
        Count(state.step),
        Span::from_seconds(state.times.elapsed_seconds),
        Count(speed as u64)
    );
    if let Some(Written { rows, tokens, tokens_per_second, share }) = written(state) {
        text += &format!(
            "rollouts {} rows, {} tokens at {} tokens/s, {:.0} % of the training time\n",
            Count(rows),
            Count(tokens),
            Count(tokens_per_second as u64),
            100.0 * share
        );
    }
    text + &format!("curves   {}\n", plan.config.output.dir.join(CURVES).display())
}
