//! What a run will do: the parts of a config checked against each other and against what is on the disk, with the
//! arithmetic. All problems are reported at once. Weights are not loaded here.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cached::{Lookup, cache_fits, fits_vocabulary};
use super::disk::Disk;
use super::hidden::hidden_can_be_compared;
use super::memory::{Memory, estimate, places};
use super::objective::{can_be_computed, has_kernels, has_positions, has_room_to_answer};
use super::rollout::RolloutConfig;
use super::tokenizer::students_tokenizer;
use super::types::*;
use crate::cache::{Codec, Reader, is_cache};
use crate::corpus::{
    CorpusIndex, Encoder, LoadOrder, Loader, OverlapFinder, Rejections, Row, Scan, TemplateChoice, TextTokenizer, scan,
};
use crate::device::{Devices, Opened};
use crate::error::{Error, Result};
use crate::kernels::{Precision, Simd};
use crate::metrics::Screen;
use crate::model::{Gguf, ModelConfig};
use crate::units::hex;

/// JSONL read for token counts at most, unless the number of steps depends on all of it.
const SAMPLE_BYTES: u64 = 16 << 20;

/// Something the user should know before the run starts.
#[derive(Debug, Clone)]
pub struct Notice {
    /// Stable, for scripts.
    pub code: &'static str,
    pub message: String,
}

impl Notice {
    /// When bf16 is asked of a CPU that does not multiply it: what is lost.
    pub fn of_bf16((teacher, student): (Dtype, Dtype), devices: &Devices) -> Option<Self> {
        let asked = |dtype, opened: &Opened| dtype == Dtype::Bf16 && !opened.device.is_cuda();
        let teacher = asked(teacher, &devices.teacher).then_some("a bf16 teacher saves memory but no time");
        let student = asked(student, &devices.student).then_some("a bf16 student is the f32 one");
        let lost: Vec<&str> = teacher.into_iter().chain(student).collect();
        if lost.is_empty() || Precision::Bf16.is_native() {
            return None;
        }
        let message = format!(
            "this CPU has no AVX512-BF16, or {} leaves it out, so products are f32: {}",
            Simd::VARIABLE,
            lost.join(", and ")
        );
        Some(Self { code: "bf16_not_native", message })
    }

    /// As the console shows it outside a run.
    pub fn line(&self) -> String {
        format!("warning[{}]: {}", self.code, self.message)
    }
}

/// A checked run, ready to be built.
#[derive(Debug)]
pub struct Plan {
    pub config: RunConfig,
    pub devices: Devices,
    /// None without a teacher, and of a cached one, whose weights are not here.
    pub teacher: Option<ModelConfig>,
    /// What a cached teacher said.
    pub cache: Option<Arc<Reader>>,
    /// A digest of the run's rows in it.
    pub cached_rows: [u8; 32],
    pub student: ModelConfig,
    pub encoder: Arc<Encoder>,
    pub train: Arc<CorpusIndex>,
    pub scan: Scan,
    pub held_out: Option<HeldOut>,
    pub total_steps: u64,
    /// Of the first epoch; an estimate when the scan is one.
    pub steps_per_epoch: u64,
    pub memory: Memory,
    pub notices: Vec<Notice>,
}

/// The rows that evaluations use.
#[derive(Debug)]
pub struct HeldOut {
    pub index: Arc<CorpusIndex>,
    pub rows: Vec<Row>,
    /// Records passed over under on_bad_record = "skip".
    pub rejections: Rejections,
}

impl HeldOut {
    /// The first `max_rows` rows of `index` that have a target.
    pub fn take(index: Arc<CorpusIndex>, encoder: Arc<Encoder>, max_rows: usize) -> Result<Self> {
        let mut loader = Loader::new(index.clone(), encoder, LoadOrder { seed: 0, shuffle: false, epochs: Some(1) });
        let rows = loader.next_step(max_rows, false)?.map(|step| step.items.into_iter().flatten().collect());
        let mut rejections = index.rejections().clone();
        rejections.extend(loader.rejections());
        Ok(Self { index, rows: rows.unwrap_or_default(), rejections })
    }
}

/// Turns errors into a list and goes on, so that one look shows them all.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn keep<T>(&mut self, key: &str, result: Result<T>) -> Option<T> {
        result.map_err(|e| self.0.push(format!("{key}: {e}"))).ok()
    }

    fn done<T>(self, value: Option<T>) -> Result<T> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(Error::input(self.0.join("\n"))),
        }
    }
}

impl DataConfig {
    /// The encoder of these rows for a tokenizer.
    pub fn encoder(&self, tokenizer: Arc<TextTokenizer>) -> Result<Encoder> {
        encoder(tokenizer, &self.chat_template, self.max_length, self.loss_on)
    }

    /// What bad rows do.
    pub fn bad_rows(&self) -> crate::corpus::OnBadRecord {
        match self.on_bad_record {
            OnBadRecord::Fail => crate::corpus::OnBadRecord::Fail,
            OnBadRecord::Skip => crate::corpus::OnBadRecord::Skip { most: self.max_bad },
        }
    }
}

/// An encoder from config values.
pub fn encoder(
    tokenizer: Arc<TextTokenizer>,
    template: &ChatTemplate,
    max_length: usize,
    loss_on: LossOn,
) -> Result<Encoder> {
    Encoder::new(tokenizer, &template.into(), max_length, loss_on.into())
}

impl From<&ChatTemplate> for TemplateChoice {
    fn from(template: &ChatTemplate) -> Self {
        match template {
            ChatTemplate::Auto => Self::Auto,
            ChatTemplate::None => Self::Off,
            ChatTemplate::File(file) => Self::File(file.clone()),
        }
    }
}

impl From<LossOn> for crate::corpus::LossOn {
    fn from(loss_on: LossOn) -> Self {
        match loss_on {
            LossOn::Completion => Self::Completion,
            LossOn::All => Self::All,
        }
    }
}

/// The folder of a model path, or why it is none.
pub fn model_folder(path: &Path) -> Result<&Path> {
    match path {
        _ if is_cache(path) => Err(Error::input(format!(
            "{} is a teacher cache and no model: it can teach (teacher.kind = \"cache\", or --teacher of eval), and nothing else",
            path.display()
        ))),
        _ if path.is_dir() => Ok(path),
        _ if path.extension().is_some_and(|e| e == "gguf") && path.exists() => Err(Error::input(format!(
            "{} is a GGUF file, whose quantised weights can teach (teacher.kind = \"gguf\", or --teacher of eval) but not \
             learn; a student is a Hugging Face folder of f32, bf16 or f16 safetensors, which \
             `distill export FILE.gguf --dequantize --output DIR` makes of it",
            path.display()
        ))),
        _ if path.exists() => Err(Error::input(format!(
            "{} is a file; a model is a Hugging Face folder with config.json, safetensors and tokenizer.json",
            path.display()
        ))),
        _ => Err(Error::input(format!("the model folder {} does not exist", path.display()))),
    }
}

/// Refuses two tokenizers that number their tokens differently, whatever their sizes.
pub fn same_tokenizer(teacher: &TextTokenizer, student: &TextTokenizer) -> Result<()> {
    match teacher.vocabulary_difference(student) {
        None => Ok(()),
        Some(difference) => Err(other_tokenizer(&difference)),
    }
}

fn other_tokenizer(difference: &str) -> Error {
    Error::input(format!(
        "teacher and student have different tokenizers ({difference}); logits can only be compared token by token, so take a \
         student of the teacher's tokenizer"
    ))
}

/// What a teacher's files say of it before its weights are read.
#[derive(Debug)]
pub struct TeacherFiles {
    /// None of a cache.
    pub config: Option<ModelConfig>,
    pub cache: Option<Arc<Reader>>,
    path: PathBuf,
    gguf: Option<Gguf>,
}

impl TeacherFiles {
    /// Reads the shape of a folder or of a GGUF file, or opens a cache.
    pub fn read(kind: TeacherKind, path: &Path) -> Result<Self> {
        let gguf = match kind {
            TeacherKind::Cache => {
                let cache = Some(Arc::new(Reader::open(path)?));
                return Ok(Self { config: None, cache, path: path.to_owned(), gguf: None });
            }
            TeacherKind::Local => None,
            TeacherKind::Gguf => Some(Gguf::open(path)?),
        };
        let config = match &gguf {
            None => ModelConfig::read(model_folder(path)?)?,
            Some(file) => file.config.clone(),
        };
        Ok(Self { config: Some(config), cache: None, path: path.to_owned(), gguf })
    }

    /// Refuses a student whose tokenizer numbers its tokens differently.
    pub fn same_tokenizer(&self, student: &TextTokenizer) -> Result<()> {
        if let Some(cache) = &self.cache {
            let (theirs, ours) = (&cache.header().teacher.tokenizer, hex(&student.vocabulary_digest()));
            return match *theirs == ours {
                true => Ok(()),
                false => {
                    Err(other_tokenizer(&format!("teacher.tokenizer of the cache is {theirs}, the student's {ours}")))
                }
            };
        }
        match &self.gguf {
            None => same_tokenizer(&TextTokenizer::from_dir(&self.path)?, student),
            Some(file) => match student.difference_from(file.tokens()?) {
                None => Ok(()),
                Some(difference) => Err(other_tokenizer(&difference)),
            },
        }
    }
}

/// Refuses a model with fewer rows than its tokenizer has ids: what lies beyond the shorter vocabulary of two models is
/// then proven to be padding.
pub fn covers(model: &ModelConfig, tokenizer: &TextTokenizer, whose: &str) -> Result<()> {
    match tokenizer.max_token_id() as usize {
        id if id < model.vocab_size => Ok(()),
        id => Err(Error::input(format!(
            "the {whose}'s vocabulary has {} rows, but its tokenizer has the id {id}; the tokenizer belongs to another \
             model",
            model.vocab_size
        ))),
    }
}

impl Plan {
    /// Opens what `config` names, reads the corpus once, and checks that everything fits.
    ///
    /// # Errors
    /// An input error with every problem on a line of its own.
    pub fn new(config: RunConfig, devices: Devices, screen: &Screen) -> Result<Self> {
        let mut findings = Findings::default();
        let mut notices = vec![];
        let models = Models::check(&config, &mut findings);
        let corpora = Corpora::open(&config, screen, &mut findings, &mut notices);
        let parts = models.zip(corpora).filter(|_| findings.0.is_empty());
        let (models, corpora) = findings.done(parts)?;

        let encoder = |prompts: bool| {
            let encoder = config.data.encoder(models.tokenizer.clone()).map_err(|e| e.context("data"))?;
            Ok::<_, Error>(Arc::new(if prompts { encoder.with_prompts() } else { encoder }))
        };
        // Only what is trained on may be without an answer.
        let held_out_encoder = encoder(false)?;
        let answers = |rollout: &&RolloutConfig| rollout.answers(config.responses.is_some());
        let encoder = encoder(config.rollout.as_ref().filter(answers).is_some())?;
        let held_out = corpora
            .eval
            .map(|index| HeldOut::take(index, held_out_encoder.clone(), config.eval.max_rows))
            .transpose()
            .map_err(|e| e.context("data.eval"))?;
        let limit = matches!(config.train.length(), Length::Steps(_)).then_some(SAMPLE_BYTES);
        let progress = screen.progress("tokenising", Some(corpora.train.len() as u64));
        let written = config.cache.as_ref().filter(|cache| cache.write_through);
        // Only which codec it is matters here.
        let written = written.map(|cache| match cache.codec {
            CacheCodec::TopK => Codec::TopK { k: 1 },
            CacheCodec::Sampled => Codec::Sampled { draws: 1, temperature: 1.0, seed: 0 },
            CacheCodec::Dense => Codec::Dense,
        });
        has_positions(models.teacher.as_ref(), &models.student, config.data.max_length)?;
        if let Some(rollout) = config.rollout.as_ref().filter(answers) {
            has_room_to_answer(rollout, models.teacher.as_ref(), &models.student, config.data.max_length)?;
        }
        has_kernels(models.teacher.as_ref(), &models.student, &devices)?;
        if models.cache.is_none() {
            can_be_computed(&config.loss, written.as_ref())?;
        }
        hidden_can_be_compared(&config, models.teacher.as_ref(), &models.student, &devices)?;
        if let (Some(Codec::TopK { .. }), Some(teacher)) = (&written, &models.teacher) {
            let k = config.cache.as_ref().and_then(|cache| cache.k).unwrap_or(0);
            fits_vocabulary(k, teacher.vocab_size.min(models.student.vocab_size))?;
        }
        // A row that a cache does not have is better found now than in the middle of the run.
        let limit = limit.filter(|_| models.cache.is_none());
        let mut rows_of_cache = Lookup::default();
        if let Some(cache) = &models.cache {
            cache_fits(cache, &config, &models.student, &encoder, &devices)?;
            held_out.iter().flat_map(|held_out| &held_out.rows).try_for_each(|row| rows_of_cache.look(cache, row))?;
        }
        let watch = |_, _, row: &Row| models.cache.as_ref().map_or(Ok(()), |cache| rows_of_cache.look(cache, row));
        let scan = scan(&corpora.train, &encoder, limit, watch, |done| progress.set(done, "rows"))
            .map_err(|e| e.context("data.train"))?;
        progress.finish();
        let cached_rows = rows_of_cache.finish()?;
        let count = |epochs| {
            let order = LoadOrder { seed: config.seed, shuffle: config.data.shuffle, epochs: Some(epochs) };
            scan.count_steps(order, config.train.batch_size, config.data.packing, config.data.max_length)
        };
        let steps_per_epoch = count(1)?;
        let total_steps = match config.train.length() {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => count(epochs)?,
        };
        let answers = config.rollout.as_ref().is_some_and(|rollout| rollout.answers(config.responses.is_some()));
        if answers && scan.rows_with_prompt == 0 {
            return Err(Error::input(
                "[rollout] has prompts answered, and no row of data.train has one (texts have none): give rows with a prompt, or \
                 leave [rollout] out",
            ));
        }
        let written = config.rollout.as_ref().filter(|rollout| rollout.on_policy());
        let longest = written.map_or(scan.longest, |rollout| {
            config.data.max_length.min(scan.longest.saturating_add(rollout.max_new_tokens))
        });
        let memory = estimate(&config, models.teacher.as_ref(), &models.student, longest)?;
        let places = places(&memory, &devices);
        if let Some(place) = places.iter().find(|place| place.there.is_some_and(|there| place.needed / 2 > there)) {
            return Err(Error::input(place.short_of("more than twice the ")));
        }
        let mut plan = Self {
            config,
            devices,
            teacher: models.teacher,
            cache: models.cache,
            cached_rows,
            student: models.student,
            encoder,
            train: corpora.train,
            scan,
            held_out,
            total_steps,
            steps_per_epoch,
            memory,
            notices,
        };
        plan.look_for_trouble();
        Ok(plan)
    }

    /// What the run's folder grows to.
    pub fn disk(&self) -> Disk {
        Disk::of(&self.config, self.student.parameters(), self.memory.checkpoint, self.total_steps)
    }

    /// Seeded order of the training rows.
    pub fn order(&self) -> LoadOrder {
        let epochs = match self.config.train.length() {
            Length::Steps(_) => None,
            Length::Epochs(epochs) => Some(epochs),
        };
        LoadOrder { seed: self.config.seed, shuffle: self.config.data.shuffle, epochs }
    }

    /// Layers of the student and the teacher whose outputs are compared.
    pub fn hidden_layers(&self) -> Result<Vec<[usize; 2]>> {
        match (&self.config.loss.hidden, &self.teacher) {
            (Some(hidden), Some(teacher)) => hidden.pairs(
                &self.config.student.source,
                self.config.local_teacher(),
                self.student.layers,
                teacher.layers,
            ),
            _ => Ok(vec![]),
        }
    }

    /// Takes the layers that a search has chosen of the teacher's.
    pub fn choose(&mut self, layers: Vec<usize>) -> Result<()> {
        if let Some(whole) = &self.teacher {
            self.student = cut(whole, &Layers::These(layers.clone()))?;
        }
        self.config.student.choose(layers);
        Ok(())
    }

    /// Takes the first layers where they are to be chosen: for timing, to which it makes no difference.
    pub fn stand_in(&mut self) -> Result<()> {
        self.config.student.search().map_or(Ok(()), |(count, _)| self.choose((0..count).collect()))
    }

    /// Legal, but likely not what was meant.
    fn look_for_trouble(&mut self) {
        let dtypes = (self.config.teacher_dtype(), self.config.train.dtype);
        self.notices.extend(Notice::of_bf16(dtypes, &self.devices));
        let mut notice = |code, message| self.notices.push(Notice { code, message });
        let (train, data) = (&self.config.train, &self.config.data);
        let first = match &self.config.student.source {
            StudentSource::Local { path } => Some(path),
            StudentSource::Lora { from, .. } => Some(from),
            _ => None,
        };
        let (teacher, loss) = (self.config.teacher.as_ref(), &self.config.loss);
        let labels = loss.is_cross_entropy() || loss.hard_label_weight != Scheduled::Constant(0.0);
        if teacher.is_some_and(|teacher| Some(&teacher.path) == first) && !labels {
            let message = "the student starts as its own teacher: a divergence has nothing to teach it".into();
            notice("student_is_teacher", message);
        }
        if train.warmup_steps >= self.total_steps {
            let (warmup, steps) = (train.warmup_steps, self.total_steps);
            let message = format!(
                "train.warmup_steps = {warmup}, but the run has {steps} steps: the learning rate never arrives"
            );
            notice("warmup_longer_than_run", message);
        }
        let models = [("teacher", self.teacher.as_ref()), ("student", Some(&self.student))];
        for (whose, model) in models {
            if let Some(model) = model.filter(|m| m.max_position_embeddings < data.max_length.min(self.scan.longest)) {
                let message = format!(
                    "rows of up to {} tokens go to a {whose} made for {}: lower data.max_length",
                    self.scan.longest.min(data.max_length),
                    model.max_position_embeddings
                );
                notice("rows_longer_than_context", message);
            }
        }
        for place in places(&self.memory, &self.devices) {
            if place.there.is_some_and(|there| place.needed > there) {
                notice("more_memory_than_there_is", place.short_of(""));
            }
        }
        if train.tf32 && !self.devices.student.device.is_cuda() && !self.devices.teacher.device.is_cuda() {
            notice("tf32_without_gpu", "train.tf32 concerns GPUs alone: products on the CPU are f32".into());
        }
        let scan = &self.scan;
        if scan.rows_truncated * 5 > scan.rows_used {
            let message = format!(
                "{} of {} rows are cut at data.max_length = {}: their ends are not learned",
                scan.rows_truncated,
                // Rows that lost all their targets were cut too.
                scan.rows_used + scan.rows_dropped,
                data.max_length
            );
            notice("many_rows_truncated", message);
        }
    }
}

/// The models' shapes and the tokenizer they share.
pub struct Models {
    teacher: Option<ModelConfig>,
    cache: Option<Arc<Reader>>,
    student: ModelConfig,
    pub tokenizer: Arc<TextTokenizer>,
}

impl Models {
    /// Those that `config` names, without its data.
    ///
    /// # Errors
    /// An input error with every problem on a line of its own.
    pub fn of(config: &RunConfig) -> Result<Self> {
        let mut findings = Findings::default();
        let models = Self::check(config, &mut findings);
        findings.done(models)
    }

    fn check(config: &RunConfig, findings: &mut Findings) -> Option<Self> {
        let read = |path: &Path| ModelConfig::read(model_folder(path)?);
        let teacher = config.teacher.as_ref();
        let given = teacher.and_then(|teacher| teacher.tokenizer.as_ref());
        let teacher =
            teacher.and_then(|teacher| findings.keep("teacher.path", TeacherFiles::read(teacher.kind, &teacher.path)));
        let (student, dir) = match &config.student.source {
            StudentSource::Local { path } => (findings.keep("student.path", read(path)), path),
            StudentSource::Fresh { config, tokenizer } => {
                (findings.keep("student.config", ModelConfig::read(config)), tokenizer)
            }
            StudentSource::Pruned { from, layers } => {
                let whole = findings.keep("student.from", read(from));
                let cut = whole.and_then(|whole| findings.keep("student.layers", cut(&whole, layers)));
                (cut, from)
            }
            StudentSource::Lora { from, .. } => {
                let whole = findings.keep("student.from", read(from));
                if let Some((whole, adaptation)) = whole.as_ref().zip(config.student.source.adaptation()) {
                    findings.keep("student", adaptation.factors(whole));
                }
                (whole, from)
            }
        };
        // A folder that is missing is on the list already, unless only its tokenizer was wanted.
        if !dir.exists() && !findings.0.is_empty() {
            return None;
        }
        let file = teacher.as_ref().and_then(|teacher| Some((teacher.path.as_path(), teacher.gguf.as_ref()?)));
        let (key, own) = students_tokenizer(dir, file, given);
        let own = Arc::new(findings.keep(key, own)?);
        // A student cut from its teacher has that folder's tokenizer.
        if let Some(teacher) = teacher.as_ref().filter(|teacher| teacher.path != *dir) {
            findings.keep("student", teacher.same_tokenizer(&own));
        }
        let (teacher, cache) = teacher.map_or((None, None), |teacher| (teacher.config, teacher.cache));
        for (whose, model) in [("teacher", &teacher), ("student", &student)] {
            if let Some(model) = model {
                findings.keep(whose, covers(model, &own, whose));
            }
        }
        Some(Self { teacher, cache, student: student?, tokenizer: own })
    }
}

/// The shape of a cut; of one whose layers are to be chosen, that of the first ones.
fn cut(whole: &ModelConfig, layers: &Layers) -> Result<ModelConfig> {
    let layers = match layers {
        Layers::These(layers) => layers,
        Layers::Auto { count, .. } if *count <= whole.layers => &(0..*count).collect(),
        Layers::Auto { count, .. } => {
            return Err(Error::input(format!(
                "student.count = {count}, but the model it is cut from has {} layers",
                whole.layers
            )));
        }
    };
    match layers.iter().find(|&&i| i >= whole.layers) {
        None => Ok(whole.with_layers(layers)),
        Some(beyond) => Err(Error::input(format!(
            "layer {beyond} does not exist; the model it is cut from has the layers 0 to {}",
            whole.layers - 1
        ))),
    }
}

struct Corpora {
    train: Arc<CorpusIndex>,
    eval: Option<Arc<CorpusIndex>>,
}

impl Corpora {
    fn open(config: &RunConfig, screen: &Screen, findings: &mut Findings, notices: &mut Vec<Notice>) -> Option<Self> {
        let policy = config.data.bad_rows();
        let eval = config.data.eval.as_ref();
        let eval = eval.map(|path| findings.keep("data.eval", CorpusIndex::open(std::slice::from_ref(path), policy)));
        let eval = eval.flatten().map(Arc::new);
        let mut finder = match &eval {
            Some(eval) => findings.keep("data.eval", OverlapFinder::new(eval)),
            None => None,
        };
        let progress = screen.progress("reading the corpus", None);
        let files = config.responses.as_ref().map_or(&config.data.train[..], std::slice::from_ref);
        let prompts = config.rollout.as_ref().is_some_and(|rollout| rollout.answers(config.responses.is_some()));
        let train = CorpusIndex::open_watching(files, policy, prompts, |place, record| {
            progress.advance(1);
            if let Some(finder) = &mut finder {
                finder.watch(place, record);
            }
        });
        progress.finish();
        let train = findings.keep("data.train", train)?;
        let overlap = finder.map(OverlapFinder::finish).filter(|overlap| overlap.rows > 0);
        if let Some(overlap) = overlap {
            let example = overlap.first.map_or(String::new(), |(train, eval)| format!(" ({train} is {eval})"));
            let message = format!(
                "{} held-out rows stand in the training data too{example}: the evaluation will flatter the student",
                overlap.rows
            );
            notices.push(Notice { code: "train_eval_overlap", message });
        }
        Some(Self { train: Arc::new(train), eval })
    }
}
