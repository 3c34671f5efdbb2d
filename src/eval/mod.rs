//! How much of the teacher a student holds, on held-out rows.

mod bootstrap;
mod report;
mod row;

pub use bootstrap::{Interval, gap_closed};
pub use report::{EvalReport, RowSums};
pub use row::{Comparison, TargetStats, argmax};

use crate::corpus::Batch;
use crate::error::{Error, Result};
use crate::kernels::Precision;
use crate::loss::{ChunkedLogits, LogitRow, StudentHead, checked_teacher_row};
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
    for batch in batches {
        let batch = batch?;
        let signal: Option<TeacherSignal> =
            teacher.map(|t| t.signal(&batch, &Needs { full_distribution: true })).transpose()?;
        let hidden = student.hidden(&batch)?;
        let head = StudentHead { weight: student.head()?.tensor()?, grad: None, precision: Precision::F32 };
        let (stats, _) = logits.run(&hidden, &head, signal.as_ref(), false, |i, teacher, student, _| {
            let teacher = match teacher {
                Some(TeacherRow::Logits(row)) => Some(checked_teacher_row(row, 1.0, &batch, i)?),
                Some(TeacherRow::TopK(_)) => return Err(Error::run("a truncated signal cannot be evaluated against")),
                None => None,
            };
            Ok(TargetStats::new(teacher, LogitRow::new(student, 1.0), batch.labels[i]))
        })?;
        row_ends.extend(batch.cu_targets[1..].iter().map(|end| targets.len() + end));
        targets.extend(stats);
    }
    EvalReport::new(&targets, &row_ends)
}
