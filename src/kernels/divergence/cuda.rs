//! Launching the kernels of divergence.cu.

use candle_core::{DType, Result, Tensor, bail};

use super::{RowDivergence, RowScales, RowSums, TeacherRows};
use crate::kernels::cuda::{Arg, Grid, Module, empty, module};

const MODULE: Module = module!("divergence");
/// THREADS of divergence.cu.
const THREADS: u32 = 512;
/// MAX_TOP_K of divergence.cu.
const MAX_TOP_K: usize = 2048;

/// How kernels call the dtype of logits.
fn dtype(student: &Tensor) -> Result<&'static str> {
    Ok(match student.dtype() {
        DType::F32 => "f32",
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        other => bail!("there is no kernel for logits of {other:?}"),
    })
}

/// The kernels' first name, and their arguments kind, weight and factor.
fn kernels(divergence: RowDivergence, student: &Tensor) -> Result<(String, [Arg<'static>; 3])> {
    // As the enum of divergence.cu has them.
    let (kind, weight, factor) = match divergence {
        RowDivergence::ForwardKl => {
            return Ok((format!("forward_kl_{}", dtype(student)?), [0usize.into(), 0.0.into(), 0.0.into()]));
        }
        RowDivergence::ReverseKl => (0usize, 0.0, 1.0),
        RowDivergence::Jsd { beta, factor } => (1, beta, factor),
        RowDivergence::SkewKl { lambda } => (2, lambda, 1.0),
        RowDivergence::SkewReverseKl { lambda } => (3, lambda, 1.0),
        RowDivergence::TotalVariation => (4, 0.0, 1.0),
    };
    match student.dtype() {
        DType::F32 => Ok(("terms_f32".into(), [kind.into(), weight.into(), factor.into()])),
        other => bail!("there is no kernel for {divergence:?} of logits of {other:?}: they are f32"),
    }
}

pub(super) fn divergence(
    divergence: RowDivergence,
    teacher: &TeacherRows,
    student: &Tensor,
    labels: &Tensor,
    scales: RowScales,
) -> Result<RowSums> {
    let (rows, vocab) = student.dims2()?;
    let sums = empty((rows, 2), student.device())?;
    let log_sum_exp = empty(rows, student.device())?;
    let said = [student.into(), labels.into(), (&sums).into()];
    let stored = |ids: &Tensor| match ids.dim(1)? {
        k if k > MAX_TOP_K => bail!("{k} stored tokens per target; the GPU takes up to {MAX_TOP_K}"),
        k => Ok(k),
    };
    let (which, of_teacher, said, counts): (_, Vec<Arg>, Vec<Arg>, Vec<Arg>) = match teacher {
        TeacherRows::Logits(teacher) => {
            let stride = teacher.dim(1)?;
            if teacher.dtype() != student.dtype() || teacher.dim(0)? != rows {
                bail!("teacher logits {teacher:?} for student logits {student:?}");
            }
            let said = [&said[..], &[(&log_sum_exp).into()]].concat();
            ("dense", vec![teacher.into()], said, vec![vocab.into(), stride.into(), stride.min(vocab).into()])
        }
        TeacherRows::TopK { ids, log_probabilities, log_tails } => {
            // A pointer that is not read stands in for tails that there are not.
            let tails = log_tails.as_ref().unwrap_or(log_probabilities);
            let counts = vec![vocab.into(), stored(ids)?.into(), log_tails.is_none().into()];
            ("top_k", vec![ids.into(), log_probabilities.into(), tails.into()], said.to_vec(), counts)
        }
        TeacherRows::Sampled { ids, log_probabilities, weights } => {
            let counts = vec![vocab.into(), stored(ids)?.into()];
            ("sampled", vec![ids.into(), log_probabilities.into(), weights.into()], said.to_vec(), counts)
        }
    };
    let (name, parameters) = kernels(divergence, student)?;
    let scalars = [scales.inverse_temperature.into(), scales.divergence.into(), scales.label.into()];
    let args = [&of_teacher[..], &said, &counts, &parameters, &scalars].concat();
    MODULE.launch(&format!("{name}_{which}"), Grid::new(rows, 1, THREADS), &args)?;
    let teacher_log_sum_exp = matches!(teacher, TeacherRows::Logits(_)).then_some(log_sum_exp);
    Ok(RowSums { sums, teacher_log_sum_exp })
}

pub(super) fn cross_entropy(student: &Tensor, labels: &Tensor, scale: f32) -> Result<RowSums> {
    let (rows, vocab) = student.dims2()?;
    let sums = empty((rows, 2), student.device())?;
    let args = [student.into(), labels.into(), (&sums).into(), vocab.into(), scale.into()];
    MODULE.launch(&format!("cross_entropy_{}", dtype(student)?), Grid::new(rows, 1, THREADS), &args)?;
    Ok(RowSums { sums, teacher_log_sum_exp: None })
}
