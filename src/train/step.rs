//! One optimizer step: signal, forward, loss, backward; then, once, clipping and the move.

use std::time::{Duration, Instant};

use candle_core::Device;

use super::clip;
use super::optim::AdamW;
use crate::corpus::Batch;
use crate::error::{Error, Result};
use crate::kernels::{GradSlot, Precision, sums_of_squares};
use crate::loss::{Counts, HiddenMatch, Objective, StudentHead, Sums};
use crate::model::{Decoder, Keep, Parameters};
use crate::signal::TeacherSignal;
use crate::teacher::Teacher;

/// Wall time of each part of a step.
#[derive(Debug, Clone, Copy, Default)]
pub struct Phases {
    pub teacher: Duration,
    pub forward: Duration,
    /// Both heads' projections, the rows of the loss, and the gradients they give.
    pub head: Duration,
    pub backward: Duration,
    /// Norm, clipping and AdamW.
    pub optimizer: Duration,
}

impl Phases {
    /// All but the teacher's.
    pub fn student(&self) -> Duration {
        self.forward + self.head + self.backward + self.optimizer
    }
}

/// What one step did.
#[derive(Debug, Clone)]
pub struct StepReport {
    pub sums: Sums,
    /// Nats per target: what was differentiated.
    pub loss: f64,
    /// Mean distance of hidden states per target, unweighted.
    pub hidden: Option<f64>,
    /// Of all gradients, before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the student.
    pub input_tokens: usize,
    pub phases: Phases,
}

/// The pieces a step works with.
pub struct Stepper<'a> {
    pub teacher: Option<&'a dyn Teacher>,
    pub student: &'a Decoder,
    pub objective: Objective,
    /// Hidden states that are held to the teacher's.
    pub hidden: Option<HiddenMatch>,
    pub optimizer: AdamW,
    pub max_grad_norm: f64,
    pub keep: Keep,
    /// What the student's products are rounded to; weights, gradients, logits and all else are f32.
    pub precision: Precision,
    /// Wait for a GPU at the end of every phase, so that each is charged with its own work; a little slower.
    pub exact_phases: bool,
}

impl Stepper<'_> {
    /// Sums the gradients of all micro-batches into the parameters' slots, divided by the step's targets.
    pub fn accumulate(&mut self, micro: &[Batch]) -> Result<StepReport> {
        self.accumulate_unless(micro, &|| false)?.ok_or_else(never)
    }

    /// `stop` is asked before each micro-batch; None once it says so.
    fn accumulate_unless(&mut self, micro: &[Batch], stop: &dyn Fn() -> bool) -> Result<Option<StepReport>> {
        let valid = Counts::of(micro);
        let mut needs = self.objective.needs();
        let layers = self.hidden.as_ref().map_or(vec![], HiddenMatch::layers_of_student);
        needs.layers = self.hidden.as_ref().map_or(vec![], HiddenMatch::layers_of_teacher);
        let mut hidden = 0.0;
        let mut phases = Phases::default();
        let mut sums = Sums::default();
        let clock = self.clock();
        let learned = self.learned();
        learned.clear_gradients()?;
        for batch in micro.iter().filter(|b| b.valid_tokens() > 0) {
            if stop() {
                return Ok(None);
            }
            let teacher = self.teacher.filter(|_| self.objective.uses_teacher());
            let signal = clock.time(&mut phases.teacher, || teacher.map(|t| t.signal(batch, &needs)).transpose())?;
            let trace =
                clock.time(&mut phases.forward, || self.student.trace(batch, self.keep, self.precision, &layers))?;
            let (head, cap) = (self.student.head()?, self.student.logit_cap());
            let head = StudentHead { weight: head.tensor()?, grad: head.grad.as_ref(), precision: self.precision, cap };
            let objective = &mut self.objective;
            let out =
                clock.time(&mut phases.head, || objective.run(&trace.hidden, &head, signal.as_ref(), batch, valid))?;
            let mut d_layers = vec![];
            if let Some(matched) = &self.hidden {
                let Some(TeacherSignal::Hidden { layers: taught, .. }) = &signal else {
                    return Err(Error::run("hidden states are matched, and the teacher gave none"));
                };
                let compared = || matched.run(&trace.layers, taught, valid.targets, self.precision);
                let (distance, gradients) = clock.time(&mut phases.head, compared)?;
                hidden += distance;
                d_layers = layers.iter().copied().zip(gradients).collect();
            }
            clock.time(&mut phases.backward, || self.student.backward(trace, out.d_hidden, &d_layers))?;
            sums += &out.sums;
        }
        let grad_norm = clock.time(&mut phases.optimizer, || clip::global_norm(&learned))?;
        let hidden = self.hidden.as_ref().map(|_| hidden / valid.targets.max(1) as f64);
        let matched = self.hidden.as_ref().zip(hidden).map_or(0.0, |(matched, mean)| matched.weight * mean);
        Ok(Some(StepReport {
            loss: self.objective.loss(&sums) + matched,
            hidden,
            sums,
            grad_norm,
            input_tokens: micro.iter().map(|b| b.tokens.len()).sum(),
            phases,
        }))
    }

    /// One optimizer step at 0-based `step`. Weights are not touched when loss or gradients are not finite: the error
    /// names the step.
    pub fn step(&mut self, micro: &[Batch], step: u64, learning_rate: f64) -> Result<StepReport> {
        let mut report = self.gradients_unless(micro, step, &|| false)?.ok_or_else(never)?;
        self.update(&mut report, step, learning_rate)?;
        Ok(report)
    }

    /// The part of [`Stepper::step`] that only reads the weights: finite gradients. None once `stop`, asked before each
    /// micro-batch, says so; the step is still to do.
    pub fn gradients_unless(
        &mut self,
        micro: &[Batch],
        step: u64,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<StepReport>> {
        self.objective.move_to(step);
        let Some(report) = self.accumulate_unless(micro, stop)? else { return Ok(None) };
        self.ensure_finite(&report, micro, step)?;
        Ok(Some(report))
    }

    /// The part of [`Stepper::step`] that changes weights and moments, by the gradients of `report`.
    pub fn update(&mut self, report: &mut StepReport, step: u64, learning_rate: f64) -> Result<()> {
        let scale = clip::scale(report.grad_norm, self.max_grad_norm);
        let clock = self.clock();
        let learned = self.learned();
        let optimizer = &mut self.optimizer;
        clock.time(&mut report.phases.optimizer, || optimizer.step(&learned, step, learning_rate, scale))
    }

    /// What learns: the student, and the projections of its hidden states.
    pub fn learned(&self) -> Parameters {
        self.student.parameters().with(self.hidden.iter().flat_map(HiddenMatch::projections))
    }

    fn clock(&self) -> Clock {
        Clock(self.exact_phases.then(|| self.student.device().clone()))
    }

    fn ensure_finite(&self, report: &StepReport, micro: &[Batch], step: u64) -> Result<()> {
        if report.loss.is_finite() && report.grad_norm.is_finite() {
            return Ok(());
        }
        // A sum of squares is finite only if every term is; at worst it overflows where they are.
        let broken = |slot: &GradSlot| sums_of_squares(&[slot.tensor()]).is_ok_and(|sums| !sums[0].is_finite());
        let learned = self.learned();
        let tensor = learned.trainable().find(|p| p.grad.as_ref().is_some_and(broken));
        let tensor = tensor.map_or(String::new(), |p| format!(", first in the gradient of {}", p.name));
        let first = micro.iter().find_map(|b| b.rows.first());
        let rows = first.map_or(String::new(), |r| format!("; its rows start at {}:{}", r.file.display(), r.line));
        Err(Error::run(format!(
            "step {}: the loss is {} and the gradient norm {}{tensor}{rows}. The weights are those of the step before. \
             In a new --output, a lower train.learning_rate or more warmup_steps usually helps",
            step + 1,
            report.loss,
            report.grad_norm
        )))
    }
}

fn never() -> Error {
    Error::run("a step that nobody stopped was stopped")
}

/// Wall time of phases.
struct Clock(Option<Device>);

impl Clock {
    /// Adds the time that `f` takes to `total`, with what it leaves a GPU to do if that is waited for.
    fn time<R>(&self, total: &mut Duration, f: impl FnOnce() -> Result<R>) -> Result<R> {
        let started = Instant::now();
        let result = f();
        if let Some(device) = &self.0 {
            device.synchronize()?;
        }
        *total += started.elapsed();
        result
    }
}
