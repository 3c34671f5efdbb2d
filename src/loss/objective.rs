//! What a step minimises: (1 − w) · T² · D(p_T, q_T) + w · cross-entropy, summed over targets and divided once.

use candle_core::Tensor;

use super::cross_entropy::cross_entropy_row;
use super::driver::{ChunkedLogits, StudentHead};
use super::row::{Divergence, LogitRow};
use crate::corpus::Batch;
use crate::error::{Error, Result};
use crate::kernels::RowScales;
use crate::signal::{Needs, SampledRow, Tail, TeacherRow, TeacherSignal, TopKRow};

/// Undivided sums over targets, in nats. What was not computed is None.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    pub targets: usize,
    /// Σ D at temperature T, before T².
    pub divergence: Option<f64>,
    pub cross_entropy: Option<f64>,
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        let add = |a: Option<f64>, b: Option<f64>| a.map_or(b, |a| Some(a + b.unwrap_or(0.0)));
        self.targets += other.targets;
        self.divergence = add(self.divergence, other.divergence);
        self.cross_entropy = add(self.cross_entropy, other.cross_entropy);
    }
}

/// Sums of one micro-batch and ∂loss/∂hidden, `[N, D]`.
pub struct Output {
    pub sums: Sums,
    pub d_hidden: Tensor,
}

/// Weights and temperature of a training loss, with its buffers.
pub struct Objective {
    pub(super) divergence: Option<Box<dyn Divergence>>,
    temperature: f64,
    tail: Tail,
    /// T² (Hinton et al. 2015), or 1 when scaling is off.
    divergence_scale: f64,
    hard_label_weight: f64,
    pub(super) logits: ChunkedLogits,
}

impl Objective {
    /// Distillation. `hard_label_weight` w is in [0, 1]; with `scale_by_temperature_squared` the divergence counts T² times.
    pub fn distillation(
        divergence: Box<dyn Divergence>,
        temperature: f64,
        hard_label_weight: f64,
        scale_by_temperature_squared: bool,
    ) -> Self {
        let power = if scale_by_temperature_squared { divergence.temperature_power() } else { 0 };
        Self {
            divergence: Some(divergence),
            temperature,
            tail: Tail::Bucket,
            divergence_scale: temperature.powi(power),
            hard_label_weight,
            logits: ChunkedLogits::default(),
        }
    }

    /// Hard labels alone.
    pub fn cross_entropy() -> Self {
        Self {
            divergence: None,
            temperature: 1.0,
            tail: Tail::Bucket,
            divergence_scale: 1.0,
            hard_label_weight: 1.0,
            logits: ChunkedLogits::default(),
        }
    }

    /// Whether a teacher has to speak.
    pub fn uses_teacher(&self) -> bool {
        self.divergence.is_some()
    }

    /// What the teacher has to give.
    pub fn needs(&self) -> Needs {
        let full_distribution = self.divergence.as_ref().is_some_and(|d| d.needs_full_distribution());
        Needs { full_distribution, temperature: self.temperature, tail: self.tail }
    }

    /// What becomes of the tokens that a truncated teacher does not name.
    pub fn with_tail(mut self, tail: Tail) -> Self {
        self.tail = tail;
        self
    }

    /// Targets per chunk of logits, instead of as many as the memory limit allows: the results do not depend on it.
    pub fn with_rows_per_chunk(mut self, rows: usize) -> Self {
        self.logits.rows_per_chunk = Some(rows);
        self
    }

    /// The step's loss in nats per target: what is logged is what is differentiated.
    pub fn loss(&self, sums: &Sums) -> f64 {
        let n = sums.targets.max(1) as f64;
        let w = self.hard_label_weight;
        (1.0 - w) * self.divergence_scale * sums.divergence.unwrap_or(0.0) / n
            + w * sums.cross_entropy.unwrap_or(0.0) / n
    }

    /// Runs one micro-batch. `hidden` holds the student's final states at the target rows, `[N, D]`; `valid` is the
    /// number of targets of the whole optimizer step. The head's gradient is added to its slot.
    ///
    /// Fails on teacher logits that are NaN or +∞, naming the row. A batch without targets gives zeros.
    pub fn run(
        &mut self,
        hidden: &Tensor,
        head: &StudentHead,
        signal: Option<&TeacherSignal>,
        batch: &Batch,
        valid: usize,
    ) -> Result<Output> {
        let w = self.hard_label_weight;
        let n = valid.max(1) as f64;
        let divergence_scale = ((1.0 - w) * self.divergence_scale / n) as f32;
        let label_scale = (w / n) as f32;
        let inverse_temperature = (1.0 / self.temperature) as f32;
        let divergence = self.divergence.as_deref();
        if hidden.device().is_cuda() {
            let scales = RowScales { inverse_temperature, divergence: divergence_scale, label: label_scale };
            return self.run_on_gpu(hidden, head, signal, batch, scales);
        }
        let row = |i: usize, teacher: Option<TeacherRow>, student: &[f32], gradient: Option<&mut [f32]>| {
            let Some(gradient) = gradient else { return Err(Error::run("a training row without a gradient")) };
            let q = LogitRow::new(student, 1.0);
            let d = match (divergence, teacher) {
                (Some(divergence), Some(teacher)) => {
                    let q = if inverse_temperature == 1.0 { q } else { LogitRow::new(student, inverse_temperature) };
                    let into = Some((&mut *gradient, divergence_scale));
                    match teacher {
                        TeacherRow::Logits(logits) => {
                            let p = checked_teacher_row(logits, inverse_temperature, batch, i)?;
                            divergence.row(p, q, into)
                        }
                        TeacherRow::TopK(p) => {
                            divergence.top_k_row(checked_top_k(p, student.len(), batch, i)?, q, into)
                        }
                        TeacherRow::Sampled(p) => {
                            divergence.sampled_row(checked_sampled(p, student.len(), batch, i)?, q, into)
                        }
                    }
                }
                (Some(_), None) => return Err(Error::run("a divergence was asked for without a teacher's signal")),
                (None, _) => 0.0,
            };
            // With w = 0 the cross-entropy is only logged: its value is one subtraction.
            let ce = cross_entropy_row(q, batch.labels[i], (w > 0.0).then_some((gradient, label_scale)));
            Ok((d, ce))
        };
        let (rows, d_hidden) = self.logits.run(hidden, head, signal, true, row)?;
        let d_hidden = d_hidden.ok_or_else(|| Error::run("the loss driver returned no gradient"))?;
        Ok(Output { sums: self.sums_of(&rows), d_hidden })
    }

    /// Of each row's divergence and cross-entropy.
    pub(super) fn sums_of(&self, rows: &[(f64, f64)]) -> Sums {
        Sums {
            targets: rows.len(),
            divergence: self.divergence.as_ref().map(|_| rows.iter().map(|r| r.0).sum()),
            cross_entropy: Some(rows.iter().map(|r| r.1).sum()),
        }
    }
}

/// The teacher's row of target `n`; refused with the row's file and line when it has no finite log Σ exp.
pub(crate) fn checked_teacher_row<'a>(
    logits: &'a [f32],
    inverse_temperature: f32,
    batch: &Batch,
    n: usize,
) -> Result<LogitRow<'a>> {
    let row = LogitRow::new(logits, inverse_temperature);
    if row.log_sum_exp.is_finite() { Ok(row) } else { Err(teacher_not_finite(batch, n)) }
}

/// What is said of target `n`, whose teacher's logits have no finite log Σ exp.
pub(super) fn teacher_not_finite(batch: &Batch, n: usize) -> Error {
    let source = batch.row_of_target(n);
    Error::run(format!(
        "{}:{}: the teacher's logits for target {n} of the batch are not finite; its weights may be damaged, or its \
         dtype may overflow",
        source.file.display(),
        source.line
    ))
}

/// A stored row of target `n`; refused with the row's file and line when a token lies beyond the student's `vocab`, or a
/// probability is none.
pub(crate) fn checked_top_k<'a>(row: TopKRow<'a>, vocab: usize, batch: &Batch, n: usize) -> Result<TopKRow<'a>> {
    check_stored(row.ids, row.log_probabilities.iter().chain(&row.log_tail), vocab, batch, n)?;
    Ok(row)
}

/// As [`checked_top_k`]; a weight has to be a finite number of at least 0.
pub(crate) fn checked_sampled<'a>(
    row: SampledRow<'a>,
    vocab: usize,
    batch: &Batch,
    n: usize,
) -> Result<SampledRow<'a>> {
    check_stored(row.ids, row.log_probabilities.iter(), vocab, batch, n)?;
    match row.weights.iter().find(|weight| !weight.is_finite() || **weight < 0.0) {
        None => Ok(row),
        Some(odd) => Err(stored_is_odd(batch, n, format!("holds {odd} where the weight of a draw is wanted"))),
    }
}

fn check_stored<'a>(
    ids: &[u32],
    mut log_probabilities: impl Iterator<Item = &'a f32>,
    vocab: usize,
    batch: &Batch,
    n: usize,
) -> Result<()> {
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
        return Err(stored_is_odd(batch, n, format!("names token {id}, the student's vocabulary has {vocab}")));
    }
    match log_probabilities.find(|p| p.is_nan() || **p > 1e-3) {
        None => Ok(()),
        Some(odd) => Err(stored_is_odd(batch, n, format!("holds {odd} where a log-probability is wanted"))),
    }
}

fn stored_is_odd(batch: &Batch, n: usize, what: String) -> Error {
    let source = batch.row_of_target(n);
    let (file, line) = (source.file.display(), source.line);
    Error::run(format!("{file}:{line}: the stored signal for target {n} of the batch {what}"))
}
