//! How much of the teacher a student holds, on held-out rows.

mod bootstrap;
mod codec;
mod cuts;
mod report;
mod row;

pub use bootstrap::{Interval, gap_closed};
pub use codec::{CodecCost, codec_cost};
pub use cuts::{Cut, Cuts, choose_layers, work};
pub use report::{EvalReport, RowSums};
pub use row::{Comparison, TargetStats, Word, argmax};

use crate::corpus::Batch;
use crate::error::{Error, Result};
use crate::kernels::Precision;
use crate::loss::{ChunkedLogits, LogitRow, StudentHead, checked_sampled, checked_teacher_row, checked_top_k};
use crate::model::Decoder;
use crate::signal::{Needs, TeacherRow, TeacherSignal};
use crate::teacher::Teacher;

/// Compares `student` with `teacher` (or only with the labels) on every target of `batches`.
pub fn evaluate(
    teacher: Option<&dyn Teacher>,
    student: &Decoder,
    batches: impl IntoIterator<Item = Result<Batch>>,
) -> Result<EvalReport> {
    let mut logits = ChunkedLogits::default();
    let mut targets = vec![];
    let mut row_ends = vec![];
    let mut kind = None;
    for batch in batches {
        let batch = batch?;
        let signal: Option<TeacherSignal> = teacher.map(|t| t.signal(&batch, &Needs::default())).transpose()?;
        kind = signal.as_ref().map(TeacherSignal::name).or(kind);
        let hidden = student.hidden(&batch)?;
        let (weight, cap) = (student.head()?.tensor()?, student.logit_cap());
        let head = StudentHead { weight, grad: None, precision: Precision::F32, cap };
        let (stats, _) = logits.run(&hidden, &head, signal.as_ref(), false, |i, teacher, student, _| {
            let label = || {
                let known = signal.as_ref().and_then(|signal| signal.label(i));
                known.ok_or_else(|| Error::run("the stored signal does not say how likely its labels are"))
            };
            let word = match teacher {
                Some(TeacherRow::Logits(row)) => Some(Word::Logits(checked_teacher_row(row, 1.0, &batch, i)?)),
                Some(TeacherRow::TopK(row)) => {
                    Some(Word::TopK(checked_top_k(row, student.len(), &batch, i)?, label()?))
                }
                Some(TeacherRow::Sampled(row)) => {
                    Some(Word::Sampled(checked_sampled(row, student.len(), &batch, i)?, label()?))
                }
                None => None,
            };
            Ok(TargetStats::new(word, LogitRow::new(student, 1.0), batch.labels[i]))
        })?;
        row_ends.extend(batch.cu_targets[1..].iter().map(|end| targets.len() + end));
        targets.extend(stats);
    }
    EvalReport::new(&targets, &row_ends, kind)
}
