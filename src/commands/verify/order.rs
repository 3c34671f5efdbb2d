//! The order in which rows were read, computed again from the corpus: no model takes part.

use std::path::PathBuf;
use std::sync::Arc;

use super::folder::Made;
use super::sources::held;
use super::{Finding, Report};
use crate::checkpoint::provenance::{Corpus, Order, Rows, Training};
use crate::commands::provenance::Digests;
use crate::corpus::{CorpusIndex, Encoder, LoadOrder, Loader, OnBadRecord, TemplateChoice, TextTokenizer};
use crate::error::Result;
use crate::metrics::Screen;

/// A model's claim.
struct Claim<'a> {
    made: &'a Made,
    training: &'a Training,
    corpus: &'a Corpus,
}

impl<'a> Claim<'a> {
    fn of(made: &'a Made) -> Option<Self> {
        let (training, corpus) = (made.provenance.training.as_ref()?, made.provenance.corpus.as_ref()?);
        Some(Self { made, training, corpus })
    }

    /// What has to agree for one reading to serve two claims.
    fn reading(&self) -> (Order, u64, Vec<PathBuf>) {
        let order = Order { digest: String::new(), ..self.training.order.clone() };
        (order, self.training.seed, self.corpus.files.iter().map(|file| file.path.clone()).collect())
    }

    fn what(&self) -> String {
        format!("{}order of {} steps", self.made.prefix, self.training.steps)
    }
}

/// Checks the claims of all of `made`; those of one run in one reading.
pub fn check(report: &mut Report, made: &[Made], digests: &Digests, screen: &Screen) {
    let mut claims: Vec<Claim> = made.iter().filter_map(Claim::of).collect();
    claims.sort_by_key(|claim| claim.training.steps);
    while let Some(first) = claims.first() {
        let reading = first.reading();
        let (same, rest): (Vec<_>, Vec<_>) = claims.into_iter().partition(|claim| claim.reading() == reading);
        together(report, &same, digests, screen);
        claims = rest;
    }
}

fn together(report: &mut Report, claims: &[Claim], digests: &Digests, screen: &Screen) {
    let mut loader = match loader(claims, digests) {
        Ok(loader) => loader,
        Err(why) => {
            claims.iter().for_each(|claim| report.add(claim.what(), Finding::NotThere(why.clone())));
            return;
        }
    };
    let steps = claims.iter().map(|claim| claim.training.steps).max();
    let progress = screen.progress("reading the steps again", steps);
    let mut done = 0;
    for claim in claims {
        let order = &claim.training.order;
        let mut read = || -> Result<bool> {
            while done < claim.training.steps {
                if loader.0.next_step(order.batch_size, order.packing)?.is_none() {
                    return Ok(false);
                }
                done += 1;
                progress.advance(1);
            }
            Ok(true)
        };
        let differs = match read() {
            Err(error) => Some(error.to_string()),
            Ok(false) => Some(format!("the corpus ends after {done} steps")),
            Ok(true) => difference(claim, &loader),
        };
        report.judge(claim.what(), differs);
    }
    progress.finish();
}

fn difference(claim: &Claim, (loader, rejected): &(Loader, u64)) -> Option<String> {
    let state = loader.state();
    if state.order != claim.training.order.digest {
        return Some("the corpus, read again, gives other rows or another order".into());
    }
    let rows = Rows {
        used: state.rows_used,
        dropped: state.rows_dropped,
        truncated: state.rows_truncated,
        rejected: rejected + state.records_rejected,
    };
    let same = claim.corpus.rows.as_ref().is_none_or(|recorded| *recorded == rows);
    (!same).then(|| format!("the corpus, read again, gives {rows:?}"))
}

/// A loader at the first step, and the bad records that it passes over; or what it lacks.
fn loader(claims: &[Claim], digests: &Digests) -> Result<(Loader, u64), String> {
    let Some(claim) = claims.first() else { return Err("nothing was recorded".into()) };
    let provenance = &claim.made.provenance;
    let template = provenance.chat_template.iter();
    for file in claim.corpus.files.iter().chain(template) {
        match held(&file.entry(), &file.path, digests) {
            Finding::AsRecorded => {}
            Finding::NotThere(_) => return Err(format!("{} is not there", file.path.display())),
            _ => return Err(format!("{} is not what was read", file.path.display())),
        }
    }
    let Some(intact) = claims.iter().find(|claim| claim.made.intact) else {
        return Err("the model's own tokenizer is not what was recorded".into());
    };
    let open = || -> Result<(Loader, u64)> {
        let Training { seed, order, .. } = claim.training;
        let tokenizer = Arc::new(TextTokenizer::from_dir(&intact.made.dir)?);
        let template: &TemplateChoice = &order.chat_template;
        let encoder = Encoder::new(tokenizer, template, order.max_length, order.loss_on)?;
        let encoder = if order.prompts { encoder.with_prompts() } else { encoder };
        let paths: Vec<PathBuf> = claim.corpus.files.iter().map(|file| file.path.clone()).collect();
        let index = CorpusIndex::open_watching(&paths, OnBadRecord::Skip { most: None }, order.prompts, |_, _| {})?;
        let rejected = index.rejections().count;
        let order = LoadOrder { seed: *seed, shuffle: order.shuffle, epochs: None };
        Ok((Loader::new(Arc::new(index), Arc::new(encoder), order), rejected))
    };
    open().map_err(|error| error.to_string())
}
