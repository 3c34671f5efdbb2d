//! The loop around the step: evaluation, checkpoints, metrics, and stopping at any step without losing one.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::rollout::{Mixed, Rollouts};
use super::saver::{Saved, Saver, Writer};
use super::schedule::Schedule;
use super::state::{Best, TrainState};
use super::step::{StepReport, Stepper};
use crate::checkpoint::layout;
use crate::corpus::ReadAhead;
use crate::error::{Error, Result};
use crate::metrics::{self, Event, Rollout, Sink};

/// How long a run is and how often it looks at itself.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub total_steps: u64,
    /// Time since the run began, evaluations and saving included, after which it ends: complete but shorter.
    pub max_time: Option<Duration>,
    /// Stop as a signal would, once this step is done.
    pub stop_after: Option<u64>,
    pub eval_every: u64,
    pub checkpoint_every: u64,
    pub keep_best: bool,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All steps are done.
    Complete,
    /// `max_time` was up.
    TimeUp,
    /// A signal or `stop_after`; a checkpoint was written unless no step was done.
    Stopped,
}

/// An evaluation and the score that decides which checkpoint is best; less is better.
pub struct Evaluated {
    pub event: metrics::Eval,
    pub score: f64,
}

/// Everything a run works with. `evaluate` is None without held-out rows and returns None when it was interrupted;
/// `model_writer` makes what writes the student at a state into a checkpoint's folder.
pub struct Run<'a> {
    pub stepper: Stepper<'a>,
    /// From where `state.loader` stands.
    pub steps: ReadAhead,
    /// Rows (or packs) that go through the models at once.
    pub micro_batch_size: usize,
    /// Where the student answers prompts itself.
    pub rollouts: Option<Rollouts<'a>>,
    pub schedule: Schedule,
    pub pace: Pace,
    pub saver: Saver,
    pub sinks: &'a mut dyn Sink,
    pub evaluate: Option<&'a mut dyn FnMut(u64) -> Result<Option<Evaluated>>>,
    pub model_writer: &'a dyn Fn(&TrainState) -> Result<Writer>,
    pub interrupted: &'a AtomicBool,
    pub state: TrainState,
}

/// What became of a step.
enum Stepped {
    Done,
    DataEnded,
    /// Between micro-batches, or while the student was writing: nothing has changed.
    Interrupted,
    /// Some weights have moved and some have not: nothing that could be saved.
    Torn(Error),
}

/// What became of an evaluation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Evaluation {
    NotDue,
    Done { improved: bool },
    Interrupted,
}

impl Run<'_> {
    /// Trains to the end or to an interruption. The state and what follows from it are a function of config, data,
    /// models and thread count alone.
    ///
    /// A step that fails leaves a checkpoint of the step before it, whose weights these still are. A run begins with a checkpoint,
    /// of step 0 or of where it branches off: a disk that takes none is known before any time went into training, and no kill finds a run without one.
    pub fn go(&mut self) -> Result<Ending> {
        let ended = self.steps();
        // However it ends, what is under way is waited for and told of.
        match (ended, self.wait_for_checkpoint()) {
            (Ok(ending), told) => told.map(|()| ending),
            (Err(error), told) => Err(self.with_warning(error, told)),
        }
    }

    /// The error that ends the run; what went wrong with a checkpoint beside it is a warning.
    fn with_warning(&mut self, error: Error, then: Result<()>) -> Error {
        if let Err(other) = then {
            let _ = self.warn(self.state.step, "checkpoint_not_saved", other.to_string());
        }
        error
    }

    fn steps(&mut self) -> Result<Ending> {
        let mut clock = Instant::now();
        if self.saver.newest().is_none() && !self.stopping() {
            self.save(self.state.best.is_some_and(|best| best.step == self.state.step))?;
            self.wait_for_checkpoint()?;
        }
        loop {
            let step = self.state.step;
            let time_up =
                self.pace.max_time.is_some_and(|limit| self.state.times.elapsed_seconds >= limit.as_secs_f64());
            let last = step >= self.pace.total_steps || time_up;
            let evaluation = match self.stopping() && !last {
                true => Evaluation::NotDue,
                false => self.evaluate_if_due(last)?,
            };
            if let Some(saved) = self.saver.done()? {
                self.tell(saved)?;
            }
            self.tick(&mut clock);
            let stopping = evaluation == Evaluation::Interrupted || (self.stopping() && !last);
            let improved = evaluation == Evaluation::Done { improved: true };
            let due = step.is_multiple_of(self.pace.checkpoint_every) || last || stopping;
            let changed = self.saver.newest() != Some(step) || matches!(evaluation, Evaluation::Done { .. });
            if step > 0 && changed && (due || (improved && self.pace.keep_best)) {
                self.save(improved)?;
            }
            if stopping {
                return Ok(Ending::Stopped);
            }
            if last {
                return Ok(if step >= self.pace.total_steps { Ending::Complete } else { Ending::TimeUp });
            }
            self.tick(&mut clock);
            match self.train_step() {
                // What was interrupted is as if it had not begun; the loop sees the flag.
                Ok(Stepped::Done | Stepped::Interrupted) => {}
                // The data ended before the planned steps: the plan's count was an estimate.
                Ok(Stepped::DataEnded) => self.pace.total_steps = step,
                Ok(Stepped::Torn(error)) => return Err(error),
                Err(error) => {
                    // A step that is done and not on record would leave a hole in the log.
                    let unsaved = self.state.step == step && step > 0 && self.saver.newest() != Some(step);
                    let saved = if unsaved { self.save(false) } else { Ok(()) };
                    return Err(self.with_warning(error, saved));
                }
            }
            self.tick(&mut clock);
        }
    }

    /// Adds the time since the last tick to the run's.
    fn tick(&mut self, clock: &mut Instant) {
        let now = Instant::now();
        self.state.times.elapsed_seconds += (now - std::mem::replace(clock, now)).as_secs_f64();
    }

    fn stopping(&self) -> bool {
        let asked = self.pace.stop_after.is_some_and(|stop| self.state.step >= stop);
        asked || self.interrupted.load(Ordering::Relaxed)
    }

    /// Evaluates at step 0, every `eval_every` steps and at the last, once each.
    fn evaluate_if_due(&mut self, last: bool) -> Result<Evaluation> {
        let step = self.state.step;
        let due = step.is_multiple_of(self.pace.eval_every) || last;
        let Some(evaluate) = self.evaluate.as_mut().filter(|_| due && self.state.evaluated != Some(step)) else {
            return Ok(Evaluation::NotDue);
        };
        let Some(Evaluated { event, score }) = evaluate(step)? else { return Ok(Evaluation::Interrupted) };
        self.sinks.record(&Event::Eval(event.clone()))?;
        self.state.evaluated = Some(step);
        if step == 0 {
            self.state.initial_eval = Some(event.clone());
        }
        self.state.last_eval = Some(event);
        // Step 0 has no checkpoint to go back to, so it can't be the best one.
        let improved = step > 0 && score.is_finite() && self.state.best.is_none_or(|best| score < best.score);
        if improved {
            self.state.best = Some(Best { step, score });
        }
        Ok(Evaluation::Done { improved })
    }

    /// Begins the checkpoint of this step; it is on the disk when [`Run::tell`] says so.
    fn save(&mut self, improved: bool) -> Result<()> {
        let step = self.state.step;
        self.wait_for_checkpoint()?;
        // No checkpoint is ahead of its metrics.
        self.sinks.flush()?;
        let write_model = (self.model_writer)(&self.state)?;
        let (state, optimizer, hidden) =
            (self.state.clone(), self.stepper.optimizer.clone(), self.stepper.hidden.clone());
        let write = move |dir: &Path| {
            let model = write_model(dir)?;
            Ok(model.and(state.write(dir, &optimizer, hidden.as_ref())?))
        };
        self.saver.begin(step, improved && self.pace.keep_best, Box::new(write))?;
        // Merging takes memory that the activations of a step leave only between two.
        if self.stepper.student.parameters().iter().any(|p| p.adapter.is_some()) {
            self.saver.wait_until_written();
        }
        Ok(())
    }

    fn wait_for_checkpoint(&mut self) -> Result<()> {
        self.saver.wait()?.map_or(Ok(()), |saved| self.tell(saved))
    }

    /// Records a checkpoint that is on the disk.
    fn tell(&mut self, Saved { step, best, again, retained }: Saved) -> Result<()> {
        if let Some(damage) = retained.damage {
            self.warn(step, "checkpoint_unreadable", format!("no old checkpoint was deleted: {damage}"))?;
        }
        if let Some(trouble) = retained.trouble {
            self.warn(step, "checkpoint_not_deleted", trouble.to_string())?;
        }
        // It is on record already.
        if again && !best {
            return Ok(());
        }
        let path = format!("{}/{}", layout::CHECKPOINTS, layout::folder_name(step));
        self.sinks.record(&Event::Checkpoint(metrics::Checkpoint { step, path, best }))
    }

    fn warn(&mut self, step: u64, code: &str, message: String) -> Result<()> {
        self.sinks.record(&Event::Warning(metrics::Warning { step, code: code.into(), message }))
    }

    /// One optimizer step.
    fn train_step(&mut self) -> Result<Stepped> {
        let started = Instant::now();
        let Some(rows) = self.steps.next_step()? else {
            self.state.loader = self.steps.state().clone();
            return Ok(Stepped::DataEnded);
        };
        let (micro, mut written) = match &self.rollouts {
            None => (rows.micro_batches(self.micro_batch_size), None),
            Some(rollouts) => {
                let state = self.state.rollout.clone().unwrap_or_default();
                match rollouts.mix(rows, self.state.step, self.stepper.student, &state)? {
                    None => return Ok(Stepped::Interrupted),
                    Some(mixed) => (mixed.micro_batches(self.micro_batch_size), Some(mixed)),
                }
            }
        };
        let learning_rate = self.schedule.at(self.state.step);
        let stop = || self.interrupted.load(Ordering::Relaxed);
        let Some(mut report) = self.stepper.gradients_unless(&micro, self.state.step, &stop)? else {
            return Ok(Stepped::Interrupted);
        };
        let waiting = Instant::now();
        self.saver.wait_until_written();
        let waited = waiting.elapsed();
        if let Err(error) = self.stepper.update(&mut report, self.state.step, learning_rate) {
            return Ok(Stepped::Torn(error));
        }
        let seconds = (started.elapsed() - waited).as_secs_f64();
        self.state.step += 1;
        // Not before: a step that failed is read again on resume.
        self.state.loader = self.steps.state().clone();
        self.state.target_tokens += report.sums.targets as u64;
        self.state.input_tokens += report.input_tokens as u64;
        self.state.times.train_seconds += seconds;
        let rollout = written.as_mut().and_then(|mixed| mixed.report.take());
        let rollout = rollout.map(|rollout| Rollout { share: rollout.seconds / seconds, ..rollout });
        self.state.times.rollout_seconds += rollout.map_or(0.0, |rollout| rollout.seconds);
        let mut sample = None;
        if let (Some(Mixed { state, sample: first, .. }), Some(rollouts)) = (written, &self.rollouts) {
            self.state.rollout = Some(state);
            sample = first.filter(|_| rollouts.shows(self.state.step - 1, self.pace.eval_every));
        }
        let mut event = self.train_event(&report, learning_rate, seconds, rollout);
        event.elapsed_seconds += waited.as_secs_f64();
        self.sinks.record(&Event::Train(event))?;
        sample.map_or(Ok(()), |sample| self.sinks.record(&Event::Sample(sample)))?;
        Ok(Stepped::Done)
    }

    fn train_event(
        &self,
        report: &StepReport,
        learning_rate: f64,
        seconds: f64,
        rollout: Option<Rollout>,
    ) -> metrics::Train {
        let objective = &self.stepper.objective;
        let (parts, moves) = (objective.parts_of(&report.sums), objective.moves());
        // A GPU is not waited for between the two: what each took is not known, only their sum.
        let (teacher, student) = (report.phases.teacher, report.phases.student());
        let apart = !self.stepper.student.device().is_cuda();
        metrics::Train {
            step: self.state.step,
            loss: report.loss,
            divergence: objective.divergence(&report.sums),
            parts: (parts.len() > 1).then(|| parts.iter().map(|(name, mean)| (name.to_string(), *mean)).collect()),
            cross_entropy: report.sums.cross_entropy.map(|c| c / report.sums.labels.max(1) as f64),
            hidden: report.hidden,
            temperature: moves.0.then(|| objective.temperature()),
            hard_label_weight: moves.1.then(|| objective.hard_label_weight()),
            learning_rate,
            grad_norm: report.grad_norm,
            tokens: self.state.target_tokens,
            tokens_per_second: report.input_tokens as f64 / seconds,
            teacher_seconds: (apart && self.stepper.objective.uses_teacher()).then_some(teacher.as_secs_f64()),
            student_seconds: if apart { student } else { teacher + student }.as_secs_f64(),
            elapsed_seconds: self.state.times.elapsed_seconds + seconds,
            rollout,
        }
    }
}
