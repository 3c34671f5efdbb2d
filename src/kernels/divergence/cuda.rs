//! Launching the kernels of divergence.cu.

use candle_core::{DType, Result, Tensor, bail};

use super::{RowScales, RowSums, TeacherRows};
use crate::kernels::cuda::{Grid, Module, empty, module};

const MODULE: Module = module!("divergence");
/// THREADS of divergence.cu.
const THREADS: u32 = 512;
/// MAX_TOP_K of divergence.cu.
const MAX_TOP_K: usize = 2048;

/// The kernel for rows of the tensor's dtype.
fn named(kernel: &str, student: &Tensor) -> Result<String> {
    Ok(match student.dtype() {
        DType::F32 => format!("{kernel}_f32"),
        DType::BF16 => format!("{kernel}_bf16"),
        DType::F16 => format!("{kernel}_f16"),
        other => bail!("there is no kernel for logits of {other:?}"),
    })
}

pub(super) fn forward_kl(
    teacher: &TeacherRows,
    student: &Tensor,
    labels: &Tensor,
    scales: RowScales,
) -> Result<RowSums> {
    let (rows, vocab) = student.dims2()?;
    let sums = empty((rows, 2), student.device())?;
    let scalars = [scales.inverse_temperature.into(), scales.divergence.into(), scales.label.into()];
    match teacher {
        TeacherRows::Logits(teacher) => {
            let stride = teacher.dim(1)?;
            if teacher.dtype() != student.dtype() || teacher.dim(0)? != rows {
                bail!("teacher logits {teacher:?} for student logits {student:?}");
            }
            let log_sum_exp = empty(rows, student.device())?;
            let tensors = [teacher.into(), student.into(), labels.into(), (&sums).into(), (&log_sum_exp).into()];
            let counts = [vocab.into(), stride.into(), stride.min(vocab).into()];
            let name = named("forward_kl", student)?;
            MODULE.launch(&name, Grid::new(rows, 1, THREADS), &[&tensors[..], &counts, &scalars].concat())?;
            Ok(RowSums { sums, teacher_log_sum_exp: Some(log_sum_exp) })
        }
        TeacherRows::TopK { log_tails: None, .. } => bail!("renormalised top-k rows have no kernel yet"),
        TeacherRows::TopK { ids, log_probabilities, log_tails: Some(third) }
        | TeacherRows::Sampled { ids, log_probabilities, weights: third } => {
            let k = ids.dim(1)?;
            if k > MAX_TOP_K {
                bail!("{k} stored tokens per target; the GPU takes up to {MAX_TOP_K}");
            }
            let tensors =
                [ids.into(), log_probabilities.into(), third.into(), student.into(), labels.into(), (&sums).into()];
            let sampled = matches!(teacher, TeacherRows::Sampled { .. });
            let name = named(if sampled { "forward_kl_sampled" } else { "forward_kl_top_k" }, student)?;
            let counts = [vocab.into(), k.into()];
            let grid = Grid::new(rows, 1, THREADS);
            MODULE.launch(&name, grid, &[&tensors[..], &counts, &scalars].concat())?;
            Ok(RowSums { sums, teacher_log_sum_exp: None })
        }
    }
}

pub(super) fn cross_entropy(student: &Tensor, labels: &Tensor, scale: f32) -> Result<RowSums> {
    let (rows, vocab) = student.dims2()?;
    let sums = empty((rows, 2), student.device())?;
    let args = [student.into(), labels.into(), (&sums).into(), vocab.into(), scale.into()];
    MODULE.launch(&named("cross_entropy", student)?, Grid::new(rows, 1, THREADS), &args)?;
    Ok(RowSums { sums, teacher_log_sum_exp: None })
}
