//! `distill init`: the student of a config, before any training, as a Hugging Face folder.

use std::sync::Arc;

use super::build::AnyTeacher;
use super::export::check_output;
use super::{Outcome, build, choose, out, provenance, responses};
use crate::checkpoint::atomic;
use crate::cli::InitArgs;
use crate::config::plan::Models;
use crate::config::{self, StudentSource, Word};
use crate::corpus::CorpusIndex;
use crate::error::{Error, Result};
use crate::metrics::Screen;
use crate::model::Decoder;
use crate::student::{Companions, write_model};
use crate::units::{Bytes, Count, Rounded};

pub fn run(args: &InitArgs) -> Result<Outcome> {
    let screen = Screen::stderr();
    check_output(&args.output)?;
    let mut config = config::load_to_read(&args.config, &args.set)?;
    if let StudentSource::Lora { from, .. } = &config.student.source {
        return Err(Error::input(format!(
            "student.kind = \"lora\": adapters that have not learned change nothing, so this student is still {}: use that \
             folder as it is, or make an adapted one with `distill train`",
            from.display()
        )));
    }
    let tokenizer = Models::of(&config)?.tokenizer;
    let companions = Companions::of(&tokenizer)?;
    let mut said = vec![];
    let (mut teacher, mut searched) = (None, None);
    if config.student.search().is_some() {
        let devices = config.devices(args.device.choice)?;
        let described = config.teacher.as_ref().ok_or_else(|| Error::run("there is no teacher to choose layers of"))?;
        let live = build::load_teacher(described, &devices, &screen)?;
        if responses::wanted(&config).is_some() {
            return Err(Error::input(
                "rollout.from = \"teacher\" has the rows written by `distill train`, which then chooses layers on them: list \
                 student.layers, or leave [rollout] out here",
            ));
        }
        let index = CorpusIndex::open(&config.data.train, config.data.bad_rows());
        let index = Arc::new(index.map_err(|e| e.context("data.train"))?);
        let encoder = Arc::new(config.data.encoder(tokenizer.clone()).map_err(|e| e.context("data"))?);
        let cuts = choose::layers(&config, &live, (index.clone(), encoder), &screen)?;
        said = choose::table(&cuts);
        config.student.choose(cuts.layers);
        teacher = Some(AnyTeacher::Live(live));
        searched = Some((index, build::hardware(&devices)));
    }
    let (shape, weights) = build::first_weights(&config, teacher.as_ref(), &screen)?;
    let model = Decoder::new(shape, weights, false, &candle_core::Device::Cpu)?;
    let dtype = build::stored(config.output.dtype);
    let searched = searched.as_ref().map(|(index, hardware)| (index.as_ref(), hardware.clone()));
    let provenance = provenance::of_init(&config, &tokenizer, searched)?;
    atomic::write_folder(&args.output, |dir| {
        write_model(dir, &model, &companions, dtype)?.sync()?;
        provenance.write_over(dir)
    })?;
    let (shape, parameters) = (model.config(), model.config().parameters() as u64);
    said.push(format!(
        "{}: {} with {} layers, {} wide, {} parameters, {} as {}; tokenizer of {} tokens",
        args.output.display(),
        shape.family.name(),
        shape.layers,
        shape.hidden_size,
        Rounded(parameters),
        Bytes(parameters * dtype.size() as u64),
        config.output.dtype.word(),
        Count(tokenizer.vocab_size() as u64),
    ));
    out::write(&(said.join("\n") + "\n"))?;
    Ok(Outcome::Done)
}
