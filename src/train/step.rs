//! One optimizer step: signal, forward, loss, backward; then, once, clipping and the move.

use std::time::{Duration, Instant};

use super::clip;
use super::optim::AdamW;
use crate::corpus::Batch;
use crate::error::{Error, Result};
use crate::loss::{Objective, StudentHead, Sums};
use crate::model::Decoder;
use crate::teacher::Teacher;

/// What one step did.
#[derive(Debug, Clone)]
pub struct StepReport {
    pub sums: Sums,
    /// Nats per target: what was differentiated.
    pub loss: f64,
    /// Of all gradients, before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the student.
    pub input_tokens: usize,
    /// None without a teacher.
    pub teacher_time: Option<Duration>,
    pub student_time: Duration,
}

/// The pieces a step works with.
pub struct Stepper<'a> {
    pub teacher: Option<&'a dyn Teacher>,
    pub student: &'a Decoder,
    pub objective: Objective,
    pub optimizer: AdamW,
    pub max_grad_norm: f64,
}

impl Stepper<'_> {
    /// Sums the gradients of all micro-batches into the parameters' slots, divided by the step's targets.
    pub fn accumulate(&mut self, micro: &[Batch]) -> Result<StepReport> {
        let started = Instant::now();
        let valid: usize = micro.iter().map(Batch::valid_tokens).sum();
        let needs = self.objective.needs();
        let mut teacher_time = Duration::ZERO;
        let mut sums = Sums::default();
        self.student.parameters().clear_gradients();
        for batch in micro.iter().filter(|b| b.valid_tokens() > 0) {
            let asked = Instant::now();
            let signal = match self.teacher.filter(|_| self.objective.uses_teacher()) {
                Some(teacher) => Some(teacher.signal(batch, &needs)?),
                None => None,
            };
            teacher_time += asked.elapsed();
            let trace = self.student.trace(batch)?;
            let head = self.student.head()?;
            let head = StudentHead { weight: &head.tensor, grad: head.grad.as_ref() };
            let out = self.objective.run(&trace.hidden, &head, signal.as_ref(), batch, valid)?;
            self.student.backward(trace, out.d_hidden)?;
            sums += out.sums;
        }
        Ok(StepReport {
            loss: self.objective.loss(&sums),
            sums,
            grad_norm: clip::global_norm(self.student.parameters()),
            input_tokens: micro.iter().map(|b| b.tokens.len()).sum(),
            teacher_time: self.objective.uses_teacher().then_some(teacher_time),
            student_time: started.elapsed().saturating_sub(teacher_time),
        })
    }

    /// One optimizer step at 0-based `step`. Weights are not touched when loss or gradients are not finite: the error
    /// names the step.
    pub fn step(&mut self, micro: &[Batch], step: u64, learning_rate: f64) -> Result<StepReport> {
        let mut report = self.accumulate(micro)?;
        self.ensure_finite(&report, micro, step)?;
        let started = Instant::now();
        let scale = clip::scale(report.grad_norm, self.max_grad_norm);
        self.optimizer.step(self.student.parameters(), step, learning_rate, scale)?;
        report.student_time += started.elapsed();
        Ok(report)
    }

    fn ensure_finite(&self, report: &StepReport, micro: &[Batch], step: u64) -> Result<()> {
        if report.loss.is_finite() && report.grad_norm.is_finite() {
            return Ok(());
        }
        let tensor = self
            .student
            .parameters()
            .iter()
            .find(|p| p.grad.as_ref().is_some_and(|slot| slot.lock().iter().any(|g| !g.is_finite())));
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
