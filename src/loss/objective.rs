//! What a step minimises: (1 − w) · Σ weight · T² · D(p_T, q_T) + w · cross-entropy, summed over targets and divided once.

use candle_core::Tensor;

use super::cross_entropy::cross_entropy_row;
use super::driver::{ChunkedLogits, StudentHead};
use super::ramp::Ramp;
use super::row::{Divergence, LogitRow};
use crate::corpus::Batch;
use crate::error::{Error, Result};
use crate::signal::{Needs, SampledRow, Tail, TeacherRow, TeacherSignal, TopKRow};

/// Undivided sums over targets, in nats. What was not computed is None.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sums {
    pub targets: usize,
    /// Σ of each part's divergence at the step's temperature, before its weight and any power of T. Empty: no teacher.
    pub divergences: Vec<f64>,
    /// Targets whose labels are the corpus's, over which the cross-entropy is.
    pub labels: usize,
    pub cross_entropy: Option<f64>,
}

impl std::ops::AddAssign<&Self> for Sums {
    fn add_assign(&mut self, other: &Self) {
        self.targets += other.targets;
        self.labels += other.labels;
        if self.divergences.is_empty() {
            self.divergences = other.divergences.clone();
        } else {
            self.divergences.iter_mut().zip(&other.divergences).for_each(|(sum, more)| *sum += more);
        }
        self.cross_entropy = match (self.cross_entropy, other.cross_entropy) {
            (None, more) => more,
            (sum, None) => sum,
            (Some(sum), Some(more)) => Some(sum + more),
        };
    }
}

/// What the losses of a whole optimizer step are divided by, known before its first forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// The divergence.
    pub targets: usize,
    /// The cross-entropy: targets of rows that the student wrote itself have no label.
    pub labels: usize,
}

impl Counts {
    pub fn of(micro: &[Batch]) -> Self {
        let targets = micro.iter().map(Batch::valid_tokens).sum();
        let written = micro.iter().filter(|batch| batch.generated).map(Batch::valid_tokens).sum::<usize>();
        Self { targets, labels: targets - written }
    }
}

/// Of a step without rows that the student wrote.
impl From<usize> for Counts {
    fn from(targets: usize) -> Self {
        Self { targets, labels: targets }
    }
}

/// Sums of one micro-batch and ∂loss/∂hidden, `[N, D]`.
pub struct Output {
    pub sums: Sums,
    pub d_hidden: Tensor,
}

/// One divergence of an objective.
pub struct Part {
    /// In the logs.
    pub name: String,
    /// How much it counts.
    pub weight: f64,
    pub divergence: Box<dyn Divergence>,
}

/// Weights and temperature of a training loss, with its buffers.
pub struct Objective {
    pub(super) parts: Vec<Part>,
    temperature: Ramp,
    /// T² (Hinton et al. 2015) times each part whose gradient falls so with T.
    scale_by_temperature_squared: bool,
    hard_label_weight: Ramp,
    /// The step that the ramps are at.
    step: u64,
    tail: Tail,
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
        let part = Part { name: divergence.name().into(), weight: 1.0, divergence };
        let [temperature, hard_label_weight] = [temperature, hard_label_weight].map(Ramp::Constant);
        Self::mixed(vec![part], temperature, hard_label_weight, scale_by_temperature_squared)
    }

    /// [`Self::distillation`] by a weighted sum of divergences, with a temperature and a weight of hard labels that may move.
    pub fn mixed(
        parts: Vec<Part>,
        temperature: Ramp,
        hard_label_weight: Ramp,
        scale_by_temperature_squared: bool,
    ) -> Self {
        Self {
            parts,
            temperature,
            scale_by_temperature_squared,
            tail: Tail::Bucket,
            hard_label_weight,
            step: 0,
            logits: ChunkedLogits::default(),
        }
    }

    /// Hard labels alone.
    pub fn cross_entropy() -> Self {
        Self::mixed(vec![], Ramp::Constant(1.0), Ramp::Constant(1.0), true)
    }

    /// Whether a teacher has to speak.
    pub fn uses_teacher(&self) -> bool {
        !self.parts.is_empty()
    }

    /// What the teacher has to give.
    pub fn needs(&self) -> Needs {
        let full_distribution = self.parts.iter().any(|part| part.divergence.needs_full_distribution());
        Needs { full_distribution, temperature: self.temperature(), tail: self.tail, ..Needs::default() }
    }

    /// Sets what moves to 0-based step `step`.
    pub fn move_to(&mut self, step: u64) {
        self.step = step;
    }

    /// T of the step.
    pub fn temperature(&self) -> f64 {
        self.temperature.at(self.step)
    }

    /// w of the step.
    pub fn hard_label_weight(&self) -> f64 {
        self.hard_label_weight.at(self.step)
    }

    /// w, or 0 in a step without a label: then the divergence is all there is, at its full weight.
    fn weight_of(&self, labels: usize) -> f64 {
        if labels == 0 && self.uses_teacher() { 0.0 } else { self.hard_label_weight() }
    }

    /// Whether temperature and hard_label_weight move.
    pub fn moves(&self) -> (bool, bool) {
        (self.temperature.moves(), self.hard_label_weight.moves())
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

    /// What a part's divergence is multiplied by: its weight and its power of T.
    fn factor(&self, part: &Part) -> f64 {
        let power = if self.scale_by_temperature_squared { part.divergence.temperature_power() } else { 0 };
        part.weight * self.temperature().powi(power)
    }

    /// Each part's name and its unweighted mean per target, in nats.
    pub fn parts_of(&self, sums: &Sums) -> Vec<(&str, f64)> {
        let n = sums.targets.max(1) as f64;
        self.parts.iter().zip(&sums.divergences).map(|(part, sum)| (part.name.as_str(), sum / n)).collect()
    }

    /// The parts' weighted sum per target, in nats at the step's temperature, before any power of T. None without a teacher.
    pub fn divergence(&self, sums: &Sums) -> Option<f64> {
        let weighted = self.parts.iter().zip(self.parts_of(sums)).map(|(part, (_, mean))| part.weight * mean);
        self.uses_teacher().then(|| weighted.sum())
    }

    /// The step's loss in nats per target: what is logged is what is differentiated.
    pub fn loss(&self, sums: &Sums) -> f64 {
        let w = self.weight_of(sums.labels);
        let scaled = self.parts.iter().zip(self.parts_of(sums)).map(|(part, (_, mean))| self.factor(part) * mean);
        (1.0 - w) * scaled.sum::<f64>() + w * sums.cross_entropy.unwrap_or(0.0) / sums.labels.max(1) as f64
    }

    /// Runs one micro-batch. `hidden` holds the student's final states at the target rows, `[N, D]`; `valid` is the
    /// number of targets of the whole optimizer step, or its [`Counts`]. The head's gradient is added to its slot.
    ///
    /// Fails on teacher logits that are NaN or +∞, naming the row. A batch without targets gives zeros.
    pub fn run(
        &mut self,
        hidden: &Tensor,
        head: &StudentHead,
        signal: Option<&TeacherSignal>,
        batch: &Batch,
        valid: impl Into<Counts>,
    ) -> Result<Output> {
        let counts: Counts = valid.into();
        let (w, n) = (self.weight_of(counts.labels), counts.targets.max(1) as f64);
        let scales: Vec<f32> = self.parts.iter().map(|part| ((1.0 - w) * self.factor(part) / n) as f32).collect();
        // What the student wrote itself is no label.
        let label_scale = if batch.generated { 0.0 } else { (w / counts.labels.max(1) as f64) as f32 };
        let inverse_temperature = (1.0 / self.temperature()) as f32;
        if hidden.device().is_cuda() {
            let scales = Scales { inverse_temperature, parts: scales, label: label_scale };
            return self.run_on_gpu(hidden, head, signal, batch, scales);
        }
        let parts = &self.parts;
        let row = |i: usize, teacher: Option<TeacherRow>, student: &[f32], gradient: Option<&mut [f32]>| {
            let Some(gradient) = gradient else { return Err(Error::run("a training row without a gradient")) };
            let q = LogitRow::new(student, 1.0);
            let warm = if inverse_temperature == 1.0 { q } else { LogitRow::new(student, inverse_temperature) };
            let mut said = RowSaid::default();
            let mut divergences = |row: OfRow<'_>| {
                for ((part, scale), d) in parts.iter().zip(&scales).zip(said.0.iter_mut()) {
                    *d = row(part.divergence.as_ref(), Some((&mut *gradient, *scale)));
                }
            };
            match teacher {
                _ if parts.is_empty() => {}
                None => return Err(Error::run("a divergence was asked for without a teacher's signal")),
                Some(TeacherRow::Logits(logits)) => {
                    let p = checked_teacher_row(logits, inverse_temperature, batch, i)?;
                    divergences(&|d, into| d.row(p, warm, into));
                }
                Some(TeacherRow::TopK(p)) => {
                    let p = checked_top_k(p, student.len(), batch, i)?;
                    divergences(&|d, into| d.top_k_row(p, warm, into));
                }
                Some(TeacherRow::Sampled(p)) => {
                    let p = checked_sampled(p, student.len(), batch, i)?;
                    divergences(&|d, into| d.sampled_row(p, warm, into));
                }
            }
            // Without a weight the cross-entropy is only logged: its value is one subtraction.
            said.1 = cross_entropy_row(q, batch.labels[i], (label_scale > 0.0).then_some((gradient, label_scale)));
            Ok(said)
        };
        let (rows, d_hidden) = self.logits.run(hidden, head, signal, true, row)?;
        let d_hidden = d_hidden.ok_or_else(|| Error::run("the loss driver returned no gradient"))?;
        Ok(Output { sums: self.sums_of(&rows, batch), d_hidden })
    }

    /// Of each row's divergences and cross-entropy.
    pub(super) fn sums_of(&self, rows: &[RowSaid], batch: &Batch) -> Sums {
        Sums {
            targets: rows.len(),
            divergences: (0..self.parts.len()).map(|i| rows.iter().map(|row| row.0[i]).sum()).collect(),
            labels: if batch.generated { 0 } else { rows.len() },
            cross_entropy: (!batch.generated).then(|| rows.iter().map(|row| row.1).sum()),
        }
    }
}

/// Divergences that an objective may add up.
pub const MOST_PARTS: usize = 8;

/// A divergence of one row, which adds its gradient times a scale.
type OfRow<'a> = &'a dyn Fn(&dyn Divergence, Option<(&mut [f32], f32)>) -> f64;

/// A row's divergence of each part, and its cross-entropy.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RowSaid(pub [f64; MOST_PARTS], pub f64);

/// What the parts of a step's gradient are multiplied by on a GPU.
pub(super) struct Scales {
    pub inverse_temperature: f32,
    pub parts: Vec<f32>,
    pub label: f32,
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
