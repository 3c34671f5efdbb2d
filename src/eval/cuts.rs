//! Which layers a model can best do without: a greedy search by what leaving each one out does to what the model says.

use candle_core::Tensor;
use rayon::prelude::*;
use serde::Serialize;

use crate::corpus::Batch;
use crate::error::{Error, Result};
use crate::loss::{ChunkedLogits, Divergence, ForwardKl, LogitRow};
use crate::model::Decoder;
use crate::signal::{Head, WeightHead};

/// One step of the search.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cut {
    /// Layers that are left after it.
    pub left: usize,
    /// The layer that went, by its number in the whole model.
    pub removed: usize,
    /// Mean KL(whole ‖ cut) over the targets, in nats.
    pub kl: f64,
}

/// What the search found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cuts {
    /// The layers to keep, ascending.
    pub layers: Vec<usize>,
    pub rows: usize,
    pub targets: usize,
    pub cuts: Vec<Cut>,
}

/// After this share of the targets a candidate is given up that adds twice what the cheapest adds to the KL of the cuts so far,
/// or, where these differ little, is this part of the KL dearer: its rest will not make up for it.
const SHARE: f64 = 0.25;
const LEAD: f64 = 0.05;

/// Leaves out layers of `model` until `count` are left, each time the one without which the model, less those that are gone,
/// is nearest to itself as a whole. The states before a layer are shared by all candidates behind it, so that only tails run.
///
/// `advance` is told of candidates that are done with a batch, of [`work`] in all; it returns false to stop, and then None comes back.
pub fn choose_layers(
    model: &Decoder,
    batches: &[Batch],
    count: usize,
    mut advance: impl FnMut(u64) -> bool,
) -> Result<Option<Cuts>> {
    let head = WeightHead { weight: model.head()?.weight.clone(), cap: model.logit_cap() };
    let targets: usize = batches.iter().map(Batch::valid_tokens).sum();
    if targets == 0 {
        return Err(Error::input(
            "there is no target token to choose the layers by: rows without a response have none; raise student.rows, or list \
             student.layers",
        ));
    }
    let total = |sums: &Vec<f64>| sums.iter().sum::<f64>();
    let whole = batches.iter().map(|batch| model.hidden(batch)).collect::<Result<Vec<_>>>()?;
    let mut layers: Vec<usize> = (0..model.config().layers).collect();
    let mut cuts = vec![];
    // Σ KL of the layers that are left, batch by batch.
    let mut before = vec![0.0; batches.len()];
    while layers.len() > count.max(1) {
        // The same of each candidate; None: given up.
        let mut sums: Vec<Option<Vec<f64>>> = vec![Some(vec![]); layers.len()];
        let mut seen = 0;
        for (b, (batch, whole)) in batches.iter().zip(&whole).enumerate() {
            let passage = model.passage(batch)?;
            let inputs = passage.inputs(&batch.tokens, &layers)?;
            let mut running: Vec<(&mut f64, Tensor)> = vec![];
            for (i, sums) in sums.iter_mut().enumerate() {
                if let Some(sums) = sums {
                    sums.push(0.0);
                    running.push((&mut sums[b], passage.finish(&inputs[i], &layers[i + 1..])?));
                }
                if !advance(1) {
                    return Ok(None);
                }
            }
            drop(inputs);
            add_divergences(&head, whole, &mut running)?;
            seen += batch.valid_tokens();
            if seen as f64 >= SHARE * targets as f64 {
                let so_far = before[..=b].iter().sum::<f64>();
                let least = sums.iter().flatten().map(total).fold(f64::INFINITY, f64::min);
                let limit = least + (least - so_far).max(LEAD * least);
                sums.iter_mut().for_each(|sums| *sums = sums.take().filter(|sums| total(sums) <= limit));
            }
        }
        let finished = sums.into_iter().enumerate().filter_map(|(i, sums)| Some((i, sums?)));
        let Some((cheapest, sums)) = finished.min_by(|(_, a), (_, b)| total(a).total_cmp(&total(b))) else {
            return Err(Error::run(format!("with {} layers left the KL is not a number", layers.len() - 1)));
        };
        let removed = layers.remove(cheapest);
        cuts.push(Cut { left: layers.len(), removed, kl: total(&sums) / targets as f64 });
        before = sums;
    }
    let rows = batches.iter().map(|batch| batch.rows.len()).sum();
    Ok(Some(Cuts { layers, rows, targets, cuts }))
}

/// What the search of `count` of `layers` layers advances by on so many batches.
pub fn work(layers: usize, count: usize, batches: usize) -> u64 {
    ((count.max(1) + 1)..=layers).map(|n| (n * batches) as u64).sum()
}

/// Adds Σ KL(whole ‖ cut) over a batch's targets to each candidate's sum, given the final states `[N, D]` of both.
fn add_divergences(head: &dyn Head, whole: &Tensor, cut: &mut [(&mut f64, Tensor)]) -> Result<()> {
    let (targets, vocab) = (whole.dim(0)?, head.vocab_size());
    let chunk = ChunkedLogits::rows_per_chunk(vocab);
    let (mut p, mut q) = (vec![], vec![]);
    for from in (0..targets).step_by(chunk) {
        let n = chunk.min(targets - from);
        p.resize(n * vocab, 0.0);
        q.resize(n * vocab, 0.0);
        head.write_logits(&whole.narrow(0, from, n)?, &mut p)?;
        let p: Vec<LogitRow> = p.par_chunks_exact(vocab).map(|row| LogitRow::new(row, 1.0)).collect();
        for (sum, states) in cut.iter_mut() {
            head.write_logits(&states.narrow(0, from, n)?, &mut q)?;
            let rows = q.par_chunks_exact(vocab).zip(&p);
            let each: Vec<f64> = rows.map(|(q, p)| ForwardKl.row(*p, LogitRow::new(q, 1.0), None)).collect();
            // In order: a sum of threads' sums would depend on them.
            **sum += each.iter().sum::<f64>();
        }
    }
    Ok(())
}
