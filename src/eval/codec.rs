//! What a stored signal costs: its loss and gradient against those of the whole distribution.

use crate::corpus::Batch;
use crate::error::{Error, Result};
use crate::kernels::Precision;
use crate::loss::{
    ChunkedLogits, Divergence, ForwardKl, LogitRow, StudentHead, checked_sampled, checked_teacher_row, checked_top_k,
};
use crate::model::Decoder;
use crate::signal::{TeacherRow, TeacherSignal};

/// Sums over targets, of forward KL and its gradient by the student's logits.
#[derive(Debug, Clone, Copy, Default)]
pub struct CodecCost {
    targets: f64,
    whole: f64,
    stored: f64,
    /// Σ g², Σ ĝ², Σ g ĝ and Σ (ĝ − g)², g the gradient from the whole distribution.
    squares: f64,
    stored_squares: f64,
    products: f64,
    error_squares: f64,
}

impl CodecCost {
    pub fn add(&mut self, other: Self) {
        self.targets += other.targets;
        self.whole += other.whole;
        self.stored += other.stored;
        self.squares += other.squares;
        self.stored_squares += other.stored_squares;
        self.products += other.products;
        self.error_squares += other.error_squares;
    }

    /// Nats per target from what was stored.
    pub fn loss(&self) -> f64 {
        self.stored / self.targets
    }

    /// Nats per target from the whole distribution.
    pub fn whole(&self) -> f64 {
        self.whole / self.targets
    }

    pub fn difference(&self) -> f64 {
        self.loss() - self.whole()
    }

    /// ‖ĝ − g‖ / ‖g‖ over all targets.
    pub fn relative_error(&self) -> f64 {
        (self.error_squares / self.squares).sqrt()
    }

    pub fn cosine(&self) -> f64 {
        self.products / (self.squares * self.stored_squares).sqrt()
    }
}

/// The cost of each of `stored`, signals on the targets of `batch` at `temperature`, of which `whole` is the teacher's own.
pub fn codec_cost(
    whole: &TeacherSignal,
    stored: &[TeacherSignal],
    student: &Decoder,
    batch: &Batch,
    temperature: f64,
) -> Result<Vec<CodecCost>> {
    let hidden = student.hidden(batch)?;
    let (weight, cap) = (student.head()?.tensor()?, student.logit_cap());
    let head = StudentHead { weight, grad: None, precision: Precision::F32, cap };
    let inverse = (1.0 / temperature) as f32;
    let of_row = |i: usize, teacher: Option<TeacherRow>, student: &[f32], _: Option<&mut [f32]>| {
        let Some(TeacherRow::Logits(logits)) = teacher else { return Err(Error::run("the teacher is not a live one")) };
        let p = checked_teacher_row(logits, inverse, batch, i)?;
        let q = LogitRow::new(student, inverse);
        let vocab = student.len();
        let mut gradient = vec![0.0; vocab];
        let loss = ForwardKl.row(p, q, Some((&mut gradient, 1.0)));
        let mut costs = vec![];
        for signal in stored {
            let mut theirs = vec![0.0; vocab];
            let into = Some((&mut theirs[..], 1.0));
            let logits: Vec<f32> = match signal {
                TeacherSignal::Dense { logits, vocab_size } => logits[i * vocab_size..(i + 1) * vocab_size].to_vec(),
                _ => vec![],
            };
            let stored = match signal.row(i, &logits, vocab) {
                TeacherRow::Logits(logits) => ForwardKl.row(checked_teacher_row(logits, inverse, batch, i)?, q, into),
                TeacherRow::TopK(row) => ForwardKl.top_k_row(checked_top_k(row, vocab, batch, i)?, q, into),
                TeacherRow::Sampled(row) => ForwardKl.sampled_row(checked_sampled(row, vocab, batch, i)?, q, into),
            };
            let pairs = || gradient.iter().zip(&theirs).map(|(&g, &h)| (g as f64, h as f64));
            costs.push(CodecCost {
                targets: 1.0,
                whole: loss,
                stored,
                squares: pairs().map(|(g, _)| g * g).sum(),
                stored_squares: pairs().map(|(_, h)| h * h).sum(),
                products: pairs().map(|(g, h)| g * h).sum(),
                error_squares: pairs().map(|(g, h)| (h - g) * (h - g)).sum(),
            });
        }
        Ok(costs)
    };
    let (rows, _) = ChunkedLogits::default().run(&hidden, &head, Some(whole), false, of_row)?;
    let mut total = vec![CodecCost::default(); stored.len()];
    for row in rows {
        total.iter_mut().zip(row).for_each(|(sum, row)| sum.add(row));
    }
    Ok(total)
}
