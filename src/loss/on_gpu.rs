//! [`Objective::run`] on a GPU: the same chunks, but their logits and gradients never leave it. What crosses are two sums
//! per target.

use candle_core::{Device, Tensor};

use super::driver::{ChunkedLogits, StudentHead};
use super::objective::{Objective, Output, RowSaid, Scales, checked_sampled, checked_top_k, teacher_not_finite};
use crate::corpus::Batch;
use crate::error::{Error, Result};
use crate::kernels::{Linear, RowScales, RowSums, TeacherRows, Weight, add_rows, cross_entropy_rows};
use crate::signal::{TeacherRow, TeacherSignal};

impl Objective {
    pub(super) fn run_on_gpu(
        &self,
        hidden: &Tensor,
        head: &StudentHead,
        signal: Option<&TeacherSignal>,
        batch: &Batch,
        scales: Scales,
    ) -> Result<Output> {
        let (targets, vocab) = (hidden.dim(0)?, head.weight.dim(0)?);
        if targets == 0 {
            return Ok(Output { sums: self.sums_of(&[], batch), d_hidden: hidden.clone() });
        }
        let signal = match (self.uses_teacher(), signal) {
            (true, None) => return Err(Error::run("a divergence was asked for without a teacher's signal")),
            (true, signal) => signal,
            (false, _) => None,
        };
        // The head's backward pass is a layer's, the logits are f32 whatever it rounds to.
        let layer = Linear {
            weight: Weight::Dense(head.weight.clone()),
            bias: None,
            weight_grad: head.grad.cloned(),
            bias_grad: None,
            adapter: None,
        };
        let teacher_width = signal.map_or(0, TeacherSignal::logits_per_target);
        let limit = self.logits.rows_per_chunk.unwrap_or(ChunkedLogits::rows_on_gpu(vocab.max(teacher_width)));
        let (mut d_hidden, mut sums, mut log_sums) = (vec![], vec![], vec![]);
        for from in (0..targets).step_by(limit) {
            let rows = limit.min(targets - from);
            let chunk = hidden.narrow(0, from, rows)?;
            let labels = Tensor::new(&batch.labels[from..from + rows], hidden.device())?;
            let logits = layer.weight.logits(&chunk)?;
            let row_scales =
                |divergence, label| RowScales { inverse_temperature: scales.inverse_temperature, divergence, label };
            let Some(signal) = signal else {
                sums.push(vec![cross_entropy_rows(&logits, &labels, scales.label)?.sums]);
                d_hidden.push(layer.backward(&chunk, &logits, None, head.precision)?);
                continue;
            };
            let teacher = teacher_rows(signal, batch, from, rows, vocab, hidden.device())?;
            // Each part replaces logits by its gradient, so each but the last gets a copy; labels count once.
            let mut gradient: Option<Tensor> = None;
            let mut of_parts = vec![];
            for (i, (part, &scale)) in self.parts.iter().zip(&scales.parts).enumerate() {
                let own = if i + 1 == self.parts.len() { logits.clone() } else { logits.copy()? };
                let label = if i == 0 { scales.label } else { 0.0 };
                let said = part.divergence.rows_on_gpu(&teacher, &own, &labels, row_scales(scale, label))?;
                let RowSums { sums: of_rows, teacher_log_sum_exp } = said;
                of_parts.push(of_rows);
                if i == 0 {
                    log_sums.extend(teacher_log_sum_exp);
                }
                gradient = Some(match gradient {
                    None => own,
                    Some(sum) => {
                        add_rows(&sum, &(0..rows as u32).collect::<Vec<_>>(), &own)?;
                        sum
                    }
                });
            }
            sums.push(of_parts);
            let logits = gradient.ok_or_else(|| Error::run("an objective without parts"))?;
            d_hidden.push(layer.backward(&chunk, &logits, None, head.precision)?);
        }
        if !log_sums.is_empty() {
            let log_sums: Vec<f32> = Tensor::cat(&log_sums, 0)?.to_vec1()?;
            if let Some(n) = log_sums.iter().position(|x| !x.is_finite()) {
                return Err(teacher_not_finite(batch, n));
            }
        }
        let mut said = vec![RowSaid::default(); targets];
        for part in 0..sums.first().map_or(0, Vec::len) {
            let of_part: Vec<&Tensor> = sums.iter().map(|chunk| &chunk[part]).collect();
            let rows: Vec<Vec<f32>> = Tensor::cat(&of_part, 0)?.to_vec2()?;
            for (said, row) in said.iter_mut().zip(rows) {
                (said.0[part], said.1) = (row[0] as f64, row[1] as f64);
            }
        }
        Ok(Output { sums: self.sums_of(&said, batch), d_hidden: Tensor::cat(&d_hidden, 0)? })
    }
}

/// The teacher's rows of a chunk, on the device of the loss. A stored signal is checked before it goes there.
fn teacher_rows(
    signal: &TeacherSignal,
    batch: &Batch,
    from: usize,
    rows: usize,
    vocab: usize,
    device: &Device,
) -> Result<TeacherRows> {
    Ok(match signal {
        TeacherSignal::Hidden { states, head, .. } => TeacherRows::Logits(head.logits(&states.narrow(0, from, rows)?)?),
        TeacherSignal::Dense { logits, vocab_size } => {
            let chunk = &logits[from * vocab_size..(from + rows) * vocab_size];
            TeacherRows::Logits(Tensor::from_slice(chunk, (rows, *vocab_size), device)?)
        }
        TeacherSignal::Sampled { bounds, .. } => {
            let longest = (from..from + rows).map(|n| bounds[n + 1] - bounds[n]).max().unwrap_or(0).max(1);
            let (mut ids, mut log_probabilities, mut weights) = (vec![], vec![], vec![]);
            for n in from..from + rows {
                if let TeacherRow::Sampled(row) = signal.row(n, &[], vocab) {
                    let row = checked_sampled(row, vocab, batch, n)?;
                    let end = ids.len() + longest;
                    ids.extend(row.ids);
                    log_probabilities.extend(row.log_probabilities);
                    weights.extend(row.weights);
                    ids.resize(end, 0);
                    log_probabilities.resize(end, 0.0);
                    weights.resize(end, 0.0);
                }
            }
            TeacherRows::Sampled {
                ids: Tensor::from_vec(ids, (rows, longest), device)?,
                log_probabilities: Tensor::from_vec(log_probabilities, (rows, longest), device)?,
                weights: Tensor::from_vec(weights, (rows, longest), device)?,
            }
        }
        TeacherSignal::TopK { k, ids, log_probabilities, log_tails, .. } => {
            for n in from..from + rows {
                if let TeacherRow::TopK(row) = signal.row(n, &[], vocab) {
                    checked_top_k(row, vocab, batch, n)?;
                }
            }
            let range = from * k..(from + rows) * k;
            TeacherRows::TopK {
                ids: Tensor::from_slice(&ids[range.clone()], (rows, *k), device)?,
                log_probabilities: Tensor::from_slice(&log_probabilities[range], (rows, *k), device)?,
                log_tails: (log_tails.as_ref())
                    .map(|tails| Tensor::from_slice(&tails[from..from + rows], rows, device))
                    .transpose()?,
            }
        }
    })
}
