//! `student.layers = "auto"`: the search that replaces it by a list.

use std::sync::Arc;

use crate::config::RunConfig;
use crate::corpus::{Batch, CorpusIndex, Encoder, LoadOrder, Loader, Row};
use crate::error::{Error, Result};
use crate::eval::{Cuts, choose_layers, work};
use crate::metrics::Screen;
use crate::teacher::LocalTeacher;
use crate::units::Count;

/// Tokens of a batch: enough that products are efficient, and few, so that there are batches after which a candidate can be given up.
const TOKENS: usize = 1024;

/// Where a run keeps what the search found.
pub const RECORD: &str = "layers.json";

/// Chooses among the teacher's layers, on the first rows that training will see.
pub fn layers(
    config: &RunConfig,
    teacher: &LocalTeacher,
    (index, encoder): (Arc<CorpusIndex>, Arc<Encoder>),
    screen: &Screen,
) -> Result<Cuts> {
    let (count, rows) = config.student.search().ok_or_else(|| Error::run("the layers are chosen already"))?;
    let order = LoadOrder { seed: config.seed, shuffle: config.data.shuffle, epochs: Some(1) };
    let first = Loader::new(index, encoder, order).next_step(rows, false)?;
    let rows: Vec<Row> = first.map_or(vec![], |step| step.items.into_iter().flatten().collect());
    let batches = batches(&rows);
    let model = teacher.decoder();
    let progress = screen.progress("choosing layers", Some(work(model.config().layers, count, batches.len())));
    let cuts = choose_layers(model, &batches, count, |n| {
        progress.advance(n);
        true
    })?;
    progress.finish();
    cuts.ok_or_else(|| Error::run("the search for layers was given up"))
}

fn batches(rows: &[Row]) -> Vec<Batch> {
    let mut batches: Vec<Vec<Row>> = vec![];
    for row in rows {
        let fits = |batch: &Vec<Row>| batch.iter().chain([row]).map(|row| row.tokens.len()).sum::<usize>() <= TOKENS;
        match batches.last_mut().filter(|batch| fits(batch)) {
            Some(batch) => batch.push(row.clone()),
            None => batches.push(vec![row.clone()]),
        }
    }
    batches.iter().map(|rows| Batch::new(rows.as_slice())).collect()
}

/// What each cut cost, a line each, and the list that came of it.
pub fn table(cuts: &Cuts) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<11}chosen by the KL of each cut to the whole, on {} targets of {} rows",
        "layers",
        Count(cuts.targets as u64),
        Count(cuts.rows as u64)
    )];
    lines.push(format!("{:<11}{:>4}  {:>7}  {:>8}", "", "left", "removed", "KL, nats"));
    let row = |cut: &crate::eval::Cut| format!("{:<11}{:>4}  {:>7}  {:>8.4}", "", cut.left, cut.removed, cut.kl);
    lines.extend(cuts.cuts.iter().map(row));
    lines.push(format!("{:<11}student.layers = {:?}", "", cuts.layers));
    lines
}
