//! What a model was made from, put together while it is made.

mod license;
mod source;

use std::cell::{OnceCell, RefCell};
use std::path::Path;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

pub use source::{Digests, cache_identity};

use super::{fingerprints, responses};
use crate::cache::Reader;
use crate::checkpoint::provenance::{
    Config, Corpus, Environment, FileAt, Order, Provenance, Rollouts, Rows, Source, Training,
};
use crate::checkpoint::{Checkpoint, FileEntry, hash_file, layout};
use crate::config::plan::Plan;
use crate::config::{self, ChatTemplate, RolloutConfig, RunConfig, StudentSource, TeacherConfig, TeacherKind};
use crate::corpus::{CorpusIndex, Encoder, TextTokenizer};
use crate::error::{Error, Result};
use crate::kernels::Precision;
use crate::train::TrainState;
use crate::units::hex;

/// This program, here. `hardware`: what computes, where something is computed.
pub fn environment(hardware: Option<String>) -> Environment {
    let binary = std::env::current_exe().and_then(|path| hash_file(&path));
    let depends = hardware.is_some() && !Precision::F32.is_native();
    Environment {
        version: Some(env!("CARGO_PKG_VERSION").into()),
        binary: binary.ok().map(|(_, sha256)| sha256),
        hardware,
        threads: depends.then(rayon::current_num_threads),
    }
}

/// Of an exported GGUF file.
pub fn of_export(file: &Path, tokenizer: &TextTokenizer) -> Result<Provenance> {
    let digests = Digests::default();
    let file = std::path::absolute(file).map_err(|e| Error::unreadable(file, e))?;
    let mut provenance = Provenance::new("export", vec![environment(None)], source::tokenizer(tokenizer, &digests)?);
    provenance.student = Some(source::gguf(&file, &digests)?);
    Ok(provenance)
}

/// Of an untrained student. `searched`: the rows that its layers were chosen on, and what computed that.
pub fn of_init(
    config: &RunConfig,
    tokenizer: &TextTokenizer,
    searched: Option<(&CorpusIndex, String)>,
) -> Result<Provenance> {
    let digests = Digests::default();
    let (corpus, hardware) = searched.unzip();
    let mut provenance = Provenance::new("init", vec![environment(hardware)], source::tokenizer(tokenizer, &digests)?);
    if corpus.is_some() {
        provenance.teacher = config.teacher.as_ref().map(|teacher| live_teacher(teacher, &digests)).transpose()?;
    }
    provenance.student = Some(student(&config.student.source, &digests)?);
    provenance.corpus = corpus.map(|index| Corpus { files: files_of(index), ..no_files() });
    provenance.config = Some(config_of(config)?);
    Ok(provenance)
}

/// A run's provenance: what does not change in its course is read in a thread of its own, while the models are loaded.
pub struct Record {
    /// Until it is first asked for.
    job: RefCell<Option<JoinHandle<Result<Provenance>>>>,
    constant: OnceCell<Provenance>,
    /// Of the checkpoint that the run goes on from.
    before: Option<Provenance>,
    order: Order,
    /// Bad records that the corpus was indexed without.
    rejected: u64,
}

/// What the thread reads.
struct Parts {
    config: RunConfig,
    encoder: Arc<Encoder>,
    train: Arc<CorpusIndex>,
    held_out: Option<Arc<CorpusIndex>>,
    cache: Option<(Arc<Reader>, [u8; 32])>,
    hardware: String,
    resumed: bool,
    before: Option<Provenance>,
    environments: Vec<Environment>,
}

impl Record {
    /// Begins to read what `plan` names. `origin`: the checkpoint that is gone on from, and its state.
    pub fn begin(plan: &Plan, origin: Option<(&Checkpoint, &TrainState)>, hardware: String) -> Result<Self> {
        let before = match origin {
            Some((checkpoint, _)) if checkpoint.has(layout::PROVENANCE) => {
                let read = Provenance::read(checkpoint.dir());
                Some(read.map_err(|damage| Error::run(damage.to_string()))?)
            }
            _ => None,
        };
        let environments = match (&before, origin) {
            (Some(before), _) => before.environments.clone(),
            (None, Some((_, state))) => vec![Environment {
                version: None,
                binary: None,
                hardware: Some(state.hardware.clone()).filter(|hardware| !hardware.is_empty()),
                threads: (!Precision::F32.is_native()).then_some(state.threads),
            }],
            (None, None) => vec![],
        };
        let parts = Parts {
            config: plan.config.clone(),
            encoder: plan.encoder.clone(),
            train: plan.train.clone(),
            held_out: plan.held_out.as_ref().map(|held_out| held_out.index.clone()),
            cache: plan.cache.clone().map(|cache| (cache, plan.cached_rows)),
            hardware,
            resumed: origin.is_some(),
            before: before.clone(),
            environments,
        };
        let data = &plan.config.data;
        let order = Order {
            digest: String::new(),
            shuffle: data.shuffle,
            packing: data.packing,
            batch_size: plan.config.train.batch_size,
            max_length: data.max_length,
            loss_on: data.loss_on.into(),
            chat_template: (&data.chat_template).into(),
            prompts: plan.config.rollout.as_ref().is_some_and(RolloutConfig::on_policy),
        };
        let job = Builder::new().name("provenance".into()).spawn(move || parts.read());
        let job = job.map_err(|e| Error::run(format!("cannot start the thread that digests the models: {e}")))?;
        let rejected = plan.train.rejections().count;
        Ok(Self { job: RefCell::new(Some(job)), constant: OnceCell::new(), before, order, rejected })
    }

    /// What does not change in the course of the run. An input error where a run that is gone on with finds another teacher
    /// or another frozen model than it began with.
    fn constant(&self) -> Result<&Provenance> {
        if let Some(known) = self.constant.get() {
            return Ok(known);
        }
        let job = self.job.take().ok_or_else(|| Error::run("the models could not be digested"))?;
        let now = job.join().map_err(|_| Error::run("the thread that digests the models has panicked"))??;
        if let Some(before) = &self.before {
            let weights = |source: &Option<Source>| source.as_ref().and_then(|source| source.weights.clone());
            let pairs =
                [("teacher", &before.teacher, &now.teacher), ("student's origin", &before.student, &now.student)];
            if let Some((whose, ..)) = pairs.iter().find(|(_, then, now)| weights(then) != weights(now)) {
                return Err(Error::input(format!(
                    "the weights of the {whose} are not what the run began with: restore them and resume, or start a new run \
                     in another --output"
                )));
            }
        }
        Ok(self.constant.get_or_init(|| now))
    }

    /// The digest of the teacher's weights, as caches have it.
    pub fn teacher_weights(&self) -> Result<String> {
        let weights = self.constant()?.teacher.as_ref().and_then(|teacher| teacher.weights.clone());
        weights.ok_or_else(|| Error::run("there is no teacher"))
    }

    /// The provenance of the model after the steps of `state`.
    pub fn after(&self, state: &TrainState, seed: u64) -> Result<Provenance> {
        let mut provenance = self.constant()?.clone();
        let loader = &state.loader;
        if let Some(corpus) = &mut provenance.corpus {
            corpus.rows = Some(Rows {
                used: loader.rows_used,
                dropped: loader.rows_dropped,
                truncated: loader.rows_truncated,
                rejected: self.rejected + loader.records_rejected,
            });
        }
        provenance.training = Some(Training {
            seed,
            steps: state.step,
            target_tokens: state.target_tokens,
            order: Order { digest: loader.order.clone(), ..self.order.clone() },
            rollouts: state.rollout.as_ref().map(|written| Rollouts { rows: written.rows, tokens: written.tokens }),
        });
        Ok(provenance)
    }
}

impl Parts {
    fn read(self) -> Result<Provenance> {
        let digests = Digests::default();
        let (config, before) = (&self.config, self.before.as_ref());
        let mut environments = self.environments;
        let here = environment(Some(self.hardware));
        if !environments.contains(&here) {
            environments.push(here);
        }
        let tokenizer = source::tokenizer(self.encoder.tokenizer(), &digests)?;
        let mut provenance = Provenance::new("train", environments, tokenizer);
        provenance.teacher = match (&self.cache, &config.teacher) {
            (Some((cache, rows)), Some(teacher)) => Some(source::cache(&teacher.path, cache, rows)?),
            (_, teacher) => teacher.as_ref().map(|teacher| live_teacher(teacher, &digests)).transpose()?,
        };
        // A checkpoint has the student's weights: where they once came from may be gone. A frozen model is read again.
        let frozen = matches!(config.student.source, StudentSource::Lora { .. });
        provenance.student = match before.filter(|_| !frozen) {
            Some(before) => before.student.clone(),
            None if self.resumed && !frozen => student(&config.student.source, &digests).ok(),
            None => Some(student(&config.student.source, &digests)?),
        };
        if let ChatTemplate::File(path) = &config.data.chat_template {
            let entry = digests.of(path).map_err(|e| Error::unreadable(path, e))?;
            provenance.chat_template = Some(FileAt::new(path.clone(), entry));
        }
        let mut corpus = Corpus { files: files_of(&self.train), ..no_files() };
        if config.responses.is_some() {
            (corpus.written_from, corpus.prompts) = (responses::written_from(config)?, config.data.train.clone());
        }
        provenance.corpus = Some(corpus);
        provenance.held_out = self.held_out.and_then(|index| files_of(&index).into_iter().next());
        provenance.config = Some(config_of(config)?);
        Ok(provenance)
    }
}

fn no_files() -> Corpus {
    Corpus { files: vec![], rows: None, written_from: Default::default(), prompts: vec![] }
}

/// What an index has read.
fn files_of(index: &CorpusIndex) -> Vec<FileAt> {
    let file = |file: &crate::corpus::CorpusFile| {
        FileAt::new(file.path.to_path_buf(), FileEntry { size: file.bytes, sha256: hex(&file.sha256) })
    };
    index.files().iter().map(file).collect()
}

fn live_teacher(teacher: &TeacherConfig, digests: &Digests) -> Result<Source> {
    match teacher.kind {
        TeacherKind::Local => source::folder("local", &teacher.path, digests),
        TeacherKind::Gguf => source::gguf(&teacher.path, digests),
        TeacherKind::Cache => Err(Error::run("a cache has no model to digest")),
    }
}

fn student(student: &StudentSource, digests: &Digests) -> Result<Source> {
    match student {
        StudentSource::Local { path } => source::folder("local", path, digests),
        StudentSource::Pruned { from, .. } => source::folder("pruned", from, digests),
        StudentSource::Lora { from, .. } => source::folder("lora", from, digests),
        StudentSource::Fresh { config, .. } => source::file("fresh", &fingerprints::shape_file(config), digests),
    }
}

fn config_of(config: &RunConfig) -> Result<Config> {
    let json = |value: toml::Value| serde_json::to_value(value).map_err(|e| Error::run(format!("the config: {e}")));
    let keys = config::identity(config)?.into_iter().map(|(key, value)| Ok((key, json(value)?)));
    Config::of(keys.collect::<Result<_>>()?)
}

/// A config's keys as a provenance has them.
pub fn keys_of(config: &RunConfig) -> Result<std::collections::BTreeMap<String, serde_json::Value>> {
    Ok(config_of(config)?.keys)
}
