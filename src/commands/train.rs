//! `distill train`: plan, build, run, report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::build;
use super::show_plan;
use super::{Outcome, signals};
use crate::checkpoint::{Checkpoint, Dtype, Store, atomic, latest_valid, layout};
use crate::cli::{Resume, TrainArgs};
use crate::config::plan::Plan;
use crate::config::{self, Dtype as OutputDtype, RunConfig, TeacherConfig};
use crate::corpus::Loader;
use crate::device;
use crate::error::{Error, Result};
use crate::eval::EvalReport;
use crate::metrics::{self, Console, Event, Jsonl, Screen, Sink, Sinks};
use crate::model::{Decoder, weight_files};
use crate::report::{Column, Status, Summary, eval_table};
use crate::student::{Companions, write_model};
use crate::teacher::{LocalTeacher, Teacher};
use crate::train::{Ending, Evaluated, Pace, Run, TrainState, check_fingerprints};
use crate::units::{Count, Rounded};

const STUDENT: &str = "student";

pub fn run(args: &TrainArgs) -> Result<Outcome> {
    device::open(args.device.choice)?;
    let screen = Screen::stderr();
    let config = config::load(&args.config, &args.set, args.output.as_deref())?;
    let run_dir = config.output.dir.clone();
    if args.dry_run {
        let plan = Plan::new(config, &screen)?;
        print!("{}", show_plan::with_estimate(&plan, &screen)?);
        return Ok(Outcome::Done);
    }
    let start = Start::find(args.resume.as_ref(), &run_dir, &config, &screen)?;
    let plan = Plan::new(config, &screen)?;
    show_plan::lines(&plan).iter().for_each(|line| screen.line(line));
    let interrupted = signals::watch()?;
    Session::open(&plan, start, &screen, args.stop_after, &interrupted)?.run()
}

/// Where a run begins.
enum Start {
    Fresh,
    From(Box<Checkpoint>),
}

impl Start {
    fn find(resume: Option<&Resume>, run_dir: &Path, config: &RunConfig, screen: &Screen) -> Result<Self> {
        let checkpoint = match resume {
            None if layout::is_fresh(run_dir)? => return Ok(Self::Fresh),
            None => {
                return Err(Error::input(format!(
                    "{} is not empty: --resume goes on with the run in it, another --output starts a new one",
                    run_dir.display()
                )));
            }
            Some(Resume::Auto) if layout::is_fresh(run_dir)? => return Ok(Self::Fresh),
            Some(Resume::Auto) => {
                let found = latest_valid(run_dir)?;
                for damage in &found.damage {
                    screen.line(&format!("warning[checkpoint_damaged]: {damage}; an older one is used"));
                }
                found.checkpoint.ok_or_else(|| {
                    Error::run(format!(
                        "{} has no checkpoint to resume from; remove the folder or choose another --output to start anew",
                        run_dir.display()
                    ))
                })?
            }
            Some(Resume::From(path)) => Checkpoint::open(path)?,
        };
        let saved = checkpoint.dir().ancestors().map(|dir| dir.join("config.toml")).find(|file| file.is_file());
        if let Some(saved) = saved {
            let differences = config::resume_differences(&config::load(&saved, &[], None)?, config)?;
            if !differences.is_empty() {
                let list: Vec<String> = differences.iter().map(|d| format!("\n  {d}")).collect();
                return Err(Error::input(format!(
                    "cannot resume {}: the config is not the run's:{}\nrestore these, or start a new run in another --output",
                    checkpoint.dir().display(),
                    list.concat()
                )));
            }
        }
        Ok(Self::From(Box::new(checkpoint)))
    }
}

/// An open run: its folder, models, and where it stands.
struct Session<'a> {
    plan: &'a Plan,
    screen: &'a Screen,
    interrupted: &'a AtomicBool,
    stop_after: Option<u64>,
    store: Store,
    sinks: Sinks,
    teacher: Option<LocalTeacher>,
    student: Decoder,
    companions: Companions,
    start: Start,
}

impl<'a> Session<'a> {
    fn open(
        plan: &'a Plan,
        start: Start,
        screen: &'a Screen,
        stop_after: Option<u64>,
        interrupted: &'a AtomicBool,
    ) -> Result<Self> {
        let run_dir = &plan.config.output.dir;
        let tokenizer = plan.encoder.tokenizer();
        let files = tokenizer.files();
        let companions = Companions::read(&files, tokenizer.bos_id(), tokenizer.eos_ids())?;
        let teacher = build::teacher(plan, screen)?;
        let student = match &start {
            Start::Fresh => build::student(plan, teacher.as_ref(), screen)?,
            Start::From(checkpoint) => Decoder::load(checkpoint.dir(), true)?,
        };
        let store = Store::open(run_dir)?;
        config::save(&plan.config, &run_dir.join("config.toml"))?;
        write_rejected(plan, run_dir)?;
        let log = run_dir.join(layout::METRICS);
        let (step, log) = match &start {
            Start::Fresh => (0, Jsonl::create(&log)?),
            Start::From(checkpoint) => (checkpoint.step(), Jsonl::resume(&log, checkpoint.step())?),
        };
        let console = Console::new(screen.clone(), step, plan.total_steps);
        let sinks = Sinks(vec![Box::new(log), Box::new(console)]);
        Ok(Self { plan, screen, interrupted, stop_after, store, sinks, teacher, student, companions, start })
    }

    fn run(mut self) -> Result<Outcome> {
        let plan = self.plan;
        let train = &plan.config.train;
        let mut state = TrainState { threads: rayon::current_num_threads(), ..TrainState::default() };
        state.fingerprints = fingerprints(plan, &self.companions)?;
        let mut stepper = build::stepper(plan, self.teacher.as_ref(), &self.student)?;
        let mut loader = Loader::new(plan.train.clone(), plan.encoder.clone(), plan.order());
        if let Start::From(checkpoint) = &self.start {
            let (saved, moments) = TrainState::read(checkpoint)?;
            check_fingerprints(&saved.fingerprints, &state.fingerprints)?;
            if saved.threads != state.threads {
                let message = format!(
                    "the run began with {} threads and goes on with {}: results may differ in the last bits \
                     (RAYON_NUM_THREADS={} keeps them)",
                    saved.threads, state.threads, saved.threads
                );
                warn(&mut self.sinks, saved.step, "thread_count_changed", message)?;
            }
            state = TrainState { threads: state.threads, ..saved };
            stepper.optimizer.restore(moments)?;
            loader.restore(state.loader.clone())?;
            self.screen.line(&format!("resuming after step {}", Count(state.step)));
        } else {
            for notice in &plan.notices {
                warn(&mut self.sinks, 0, notice.code, notice.message.clone())?;
            }
        }
        let teacher: Option<&dyn Teacher> = self.teacher.as_ref().map(|t| t as &dyn Teacher);
        let evaluate = |student: &Decoder| -> Result<Option<EvalReport>> {
            let Some(held_out) = &plan.held_out else { return Ok(None) };
            let report = build::evaluate_rows(teacher, student, &held_out.rows, self.interrupted, self.screen)?;
            Ok(report.map(|r| if plan.config.eval.exact_match { r } else { r.without_exact_match() }))
        };
        // The whole first report is kept for the closing table; a resumed run has only what state.json says of it.
        let mut initial: Option<EvalReport> = None;
        let mut evaluate_step = |step: u64| -> Result<Option<Evaluated>> {
            let Some(report) = evaluate(&self.student)? else { return Ok(None) };
            let score = report.kl_mean.unwrap_or(report.student_perplexity);
            let event = eval_event(step, &report);
            if step == 0 {
                initial = Some(report);
            }
            Ok(Some(Evaluated { event, score }))
        };
        let mut run = Run {
            stepper,
            loader,
            schedule: build::schedule(plan),
            pace: Pace {
                total_steps: plan.total_steps,
                max_time: train.max_time.as_ref().map(|t| t.duration()),
                stop_after: self.stop_after,
                batch_size: train.batch_size,
                micro_batch_size: train.micro_batch_size,
                packing: plan.config.data.packing,
                eval_every: plan.config.eval.every_steps,
                checkpoint_every: plan.config.checkpoint.every_steps,
                keep_last: plan.config.checkpoint.keep_last,
                keep_best: plan.config.checkpoint.keep_best,
            },
            store: &self.store,
            sinks: &mut self.sinks,
            evaluate: plan.held_out.as_ref().map(|_| &mut evaluate_step as _),
            save_model: &|dir| write_model(dir, &self.student, &self.companions, Dtype::F32),
            interrupted: self.interrupted,
            state,
        };
        let ended = run.go();
        let state = TrainState { loader: run.loader.state().clone(), ..run.state };
        // The moments are twice the student: gone before the saved student is read back.
        drop(run.stepper);
        let run_dir = &plan.config.output.dir;
        let mut summary = summarize(&state, plan.train.rejections().count);
        metrics::draw_curves(&run_dir.join(layout::METRICS), &run_dir.join("curves.svg"), &title(run_dir))?;
        match ended {
            Err(error) => {
                summary.status = Status::Failed;
                summary.error = Some(error.to_string());
                summary.write(run_dir)?;
                Err(error)
            }
            Ok(Ending::Stopped) => {
                summary.write(run_dir)?;
                drop(self.sinks);
                self.screen.line(&format!("stopped after step {}; --resume goes on from there", Count(state.step)));
                Ok(Outcome::Stopped)
            }
            Ok(ending) => {
                summary.status = if ending == Ending::TimeUp { Status::TimeUp } else { Status::Complete };
                let folder = self.save_student()?;
                let saved = Decoder::load(&folder, false)?;
                // Read back from the disk: what is reported is what was delivered.
                let last = evaluate(&saved)?;
                summary.final_eval = last.as_ref().map(|report| eval_event(state.step, report));
                self.check_delivery(&state, summary.final_eval.as_ref())?;
                summary.write(run_dir)?;
                drop(self.sinks);
                print_closing(plan, &state, initial.as_ref(), last.as_ref(), &folder);
                Ok(Outcome::Done)
            }
        }
    }

    /// Writes student/ in the output's dtype.
    fn save_student(&self) -> Result<PathBuf> {
        let folder = self.plan.config.output.dir.join(STUDENT);
        let dtype = match self.plan.config.output.dtype {
            OutputDtype::F32 => Dtype::F32,
            OutputDtype::Bf16 => Dtype::Bf16,
        };
        atomic::write_folder(&folder, |dir| write_model(dir, &self.student, &self.companions, dtype))?;
        Ok(folder)
    }

    /// An f32 folder must evaluate as the model in memory did.
    fn check_delivery(&self, state: &TrainState, saved: Option<&metrics::Eval>) -> Result<()> {
        let (Some(memory), Some(saved)) = (&state.last_eval, saved) else { return Ok(()) };
        let same = (memory.student_perplexity / saved.student_perplexity - 1.0).abs() < 1e-6;
        if self.plan.config.output.dtype == OutputDtype::F32 && state.evaluated == Some(state.step) && !same {
            return Err(Error::run(format!(
                "the saved student evaluates to perplexity {}, the one in memory to {}: the disk or memory is at fault",
                saved.student_perplexity, memory.student_perplexity
            )));
        }
        Ok(())
    }
}

/// rejected.jsonl: what `on_bad_record = "skip"` passed over, the first thousand of each kind. Absent when nothing was.
fn write_rejected(plan: &Plan, run_dir: &Path) -> Result<()> {
    let lines: String = [plan.train.rejections(), &plan.scan.rejections]
        .iter()
        .flat_map(|rejections| &rejections.first)
        .map(|r| json!({ "file": *r.place.file, "line": r.place.line, "reason": r.reason }).to_string() + "\n")
        .collect();
    if lines.is_empty() { Ok(()) } else { atomic::write_file(&run_dir.join("rejected.jsonl"), lines.as_bytes()) }
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
fn summarize(state: &TrainState, malformed: u64) -> Summary {
    Summary {
        status: Status::Stopped,
        error: None,
        steps: state.step,
        tokens: state.target_tokens,
        rows_used: state.loader.rows_used,
        rows_dropped: state.loader.rows_dropped,
        rows_truncated: state.loader.rows_truncated,
        rows_rejected: malformed + state.loader.records_rejected,
        tokens_per_second: (state.step > 0).then(|| state.input_tokens as f64 / state.train_seconds),
        peak_rss_bytes: crate::units::peak_rss_bytes(),
        elapsed_seconds: state.train_seconds,
        initial_eval: state.initial_eval.clone(),
        final_eval: state.last_eval.clone(),
        best: state.best,
    }
}

/// What a resumed run must find as it was: digests of data, tokenizer and teacher by name.
fn fingerprints(plan: &Plan, companions: &Companions) -> Result<BTreeMap<String, String>> {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let mut prints = BTreeMap::new();
    prints.insert("the training data".into(), hex(&plan.train.digest()));
    if let Some(held_out) = &plan.held_out {
        prints.insert("the held-out data".into(), hex(&held_out.index.digest()));
    }
    prints.insert("the student's tokenizer".into(), hex(&companions.digest()));
    if let Some(TeacherConfig::Local { path, .. }) = &plan.config.teacher {
        prints.insert("the teacher".into(), hex(&weights_fingerprint(path)?));
    }
    Ok(prints)
}

/// A digest of a model's files by sample: their sizes, and 64 KiB at each of 64 even places. It tells two models apart
/// without reading gigabytes.
fn weights_fingerprint(folder: &Path) -> Result<[u8; 32]> {
    use std::os::unix::fs::FileExt;
    const PLACES: u64 = 64;
    let mut hasher = Sha256::new();
    for path in weight_files(folder)?.iter().chain([&folder.join("config.json")]) {
        let unreadable = |e| Error::unreadable(path, e);
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let len = file.metadata().map_err(unreadable)?.len();
        hasher.update(len.to_le_bytes());
        let mut block = vec![0u8; 64 << 10];
        for place in 0..PLACES {
            let n = file.read_at(&mut block, len / PLACES * place).map_err(unreadable)?;
            hasher.update(&block[..n]);
        }
    }
    Ok(hasher.finalize().into())
}

/// The table that closes a run, on stdout.
fn print_closing(plan: &Plan, state: &TrainState, initial: Option<&EvalReport>, last: Option<&EvalReport>, to: &Path) {
    if let Some(last) = last {
        let before = initial.map(|report| Column { title: "before", report });
        let columns: Vec<Column> = before.into_iter().chain([Column { title: "after", report: last }]).collect();
        print!("\n{}", eval_table(&columns));
    }
    let (student, teacher) = (plan.student.parameters(), plan.teacher.as_ref().map(|t| t.parameters()));
    let share = teacher.map_or(String::new(), |t| {
        format!(", {:.0} % of the teacher's {}", 100.0 * student as f64 / t as f64, Rounded(t as u64))
    });
    let speed = state.input_tokens as f64 / state.train_seconds.max(1e-9);
    let seconds = crate::units::Span::from_seconds(state.train_seconds);
    println!("student: {} ({} parameters{share})", to.display(), Rounded(student as u64));
    println!("trained: {} steps in {seconds}, {} tokens/s", Count(state.step), Count(speed as u64));
    println!("curves:  {}", plan.config.output.dir.join("curves.svg").display());
}
