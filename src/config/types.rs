//! What a run is asked to do, with every default filled in and every path absolute. Plain values: nothing here is
//! opened or checked against anything else.

use std::path::PathBuf;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::rollout::RolloutConfig;
use crate::cache::is_cache;
use crate::device::{DeviceChoice, Devices};
use crate::error::Result;
use crate::model::Adaptation;
use crate::signal::Tail;

/// Declares a kind that is written as one word in the config and on the command line.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl Word for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.serialize_str(self.word())
            }
        }
    };
}

/// A choice that is written as one word.
pub trait Word: Copy + PartialEq + 'static {
    const ALL: &'static [Self];
    fn word(self) -> &'static str;
}

words! {
    /// How numbers are held.
    Dtype { F32 = "f32", Bf16 = "bf16" }
}
words! {
    /// What a teacher is.
    TeacherKind {
        /// A Hugging Face folder.
        Local = "local",
        /// A GGUF file, whose weights stay quantised.
        Gguf = "gguf",
        /// What a teacher said before, stored by `distill cache` or a run with `cache.write_through`.
        Cache = "cache",
    }
}

impl TeacherKind {
    /// Of what lies at `path`: a file called .gguf, a cache's folder, or else a model's.
    pub fn of(path: &std::path::Path) -> Self {
        let named = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        match path {
            _ if named && !path.is_dir() => Self::Gguf,
            _ if is_cache(path) => Self::Cache,
            _ => Self::Local,
        }
    }

    /// Where it computes when its own key says nothing: quantised weights are the CPU's.
    pub fn device(self, default: DeviceChoice) -> DeviceChoice {
        match self {
            Self::Local => default,
            Self::Gguf | Self::Cache => DeviceChoice::Cpu,
        }
    }
}

words! {
    /// Which tokens of a target a cache keeps.
    CacheCodec { TopK = "top_k", Sampled = "sampled", Dense = "dense" }
}
words! {
    /// How a cache keeps log-probabilities.
    CacheValues { F16 = "f16", F32 = "f32" }
}
words! {
    /// Which tokens of a row with a prompt count.
    LossOn { Completion = "completion", All = "all" }
}
words! {
    /// What a record that cannot be read does to the run.
    OnBadRecord { Fail = "fail", Skip = "skip" }
}
words! {
    /// What is minimised; LOSSES.md has the formulas.
    LossKind {
        ForwardKl = "forward_kl",
        ReverseKl = "reverse_kl",
        Jsd = "jsd",
        SkewKl = "skew_kl",
        SkewReverseKl = "skew_reverse_kl",
        Tvd = "tvd",
        CrossEntropy = "cross_entropy",
    }
}
words! {
    /// How far two hidden states are from each other.
    HiddenKind { Mse = "mse", Cosine = "cosine" }
}
words! {
    /// Who answers the corpus's prompts.
    RolloutFrom { Student = "student", Teacher = "teacher" }
}
words! {
    /// What becomes of the tokens that a truncated teacher does not name.
    LossTail { Bucket = "bucket", Renormalize = "renormalize" }
}
words! {
    /// How the learning rate moves after the warm-up.
    Schedule { Constant = "constant", Linear = "linear", Cosine = "cosine" }
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunConfig {
    pub seed: u64,
    /// `None`: hard labels alone. With `cross_entropy` a teacher serves the evaluations only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<TeacherConfig>,
    pub student: StudentConfig,
    /// What `distill cache` or a run with `write_through` stores; None: nothing was said of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheConfig>,
    pub data: DataConfig,
    /// What is read in place of `data.train`: the rows whose responses the teacher wrote. Never written down.
    #[serde(skip)]
    pub responses: Option<PathBuf>,
    /// None: the corpus's responses alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutConfig>,
    pub loss: LossConfig,
    pub train: TrainConfig,
    pub eval: EvalConfig,
    pub checkpoint: CheckpointConfig,
    pub output: OutputConfig,
}

impl RunConfig {
    /// Opens the devices that teacher and student ask for, `default` where they ask for none.
    pub fn devices(&self, default: DeviceChoice) -> Result<Devices> {
        let teacher = self.teacher.as_ref().map(|teacher| teacher.device.unwrap_or(teacher.kind.device(default)));
        let student = self.student.device.unwrap_or(default);
        Devices::open(teacher.unwrap_or(student), student)
    }

    /// The folder of a teacher that is one.
    pub fn local_teacher(&self) -> Option<&std::path::Path> {
        let local = self.teacher.as_ref().filter(|teacher| teacher.kind == TeacherKind::Local);
        local.map(|teacher| teacher.path.as_path())
    }

    /// How the teacher is held.
    pub fn teacher_dtype(&self) -> Dtype {
        self.teacher.as_ref().map_or(Dtype::F32, |teacher| teacher.dtype)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TeacherConfig {
    pub kind: TeacherKind,
    /// A model's folder, a GGUF file, or a cache's folder.
    pub path: PathBuf,
    /// Of a GGUF file: the folder of its tokenizer.json. None: one beside the file, or what its metadata make.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// How its frozen weights are held and multiplied; of a GGUF file, what its products round to.
    pub dtype: Dtype,
    /// None: the command's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceChoice>,
}

/// Of a teacher's word, what is stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CacheConfig {
    pub codec: CacheCodec,
    /// Tokens of a target, with `top_k`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<usize>,
    /// Draws for a target, with `sampled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draws: Option<usize>,
    pub values: CacheValues,
    /// A run stores what its live teacher says, and asks for each row once.
    pub write_through: bool,
}

impl Default for CacheConfig {
    fn default() -> Self {
        let (codec, values) = (CacheCodec::TopK, CacheValues::F16);
        Self { codec, k: Some(64), draws: None, values, write_through: false }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StudentConfig {
    #[serde(flatten)]
    pub source: StudentSource,
    /// Where it learns and the loss is computed; None: the command's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceChoice>,
}

/// Where a student's first weights come from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StudentSource {
    /// A Hugging Face folder.
    Local { path: PathBuf },
    /// Random weights in the shape of a Hugging Face config.json, with the tokenizer of another folder or of a GGUF file.
    Fresh { config: PathBuf, tokenizer: PathBuf },
    /// `layers` of `from`.
    Pruned {
        from: PathBuf,
        #[serde(flatten)]
        layers: Layers,
    },
    /// `from` as it is, with low-rank adapters that alone learn.
    Lora {
        from: PathBuf,
        rank: usize,
        alpha: f64,
        /// Names of the blocks' matrices; None: all.
        #[serde(skip_serializing_if = "Option::is_none")]
        targets: Option<Vec<String>>,
    },
}

/// Which layers a cut keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layers {
    /// In ascending order.
    These(Vec<usize>),
    /// So many, chosen by what leaving each one out costs on the first `rows` rows.
    Auto { count: usize, rows: usize },
}

impl Serialize for Layers {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut keys = serializer.serialize_map(None)?;
        match self {
            Self::These(layers) => keys.serialize_entry("layers", layers)?,
            Self::Auto { count, rows } => {
                keys.serialize_entry("layers", Self::AUTO)?;
                keys.serialize_entry("count", count)?;
                keys.serialize_entry("rows", rows)?;
            }
        }
        keys.end()
    }
}

impl Layers {
    pub const AUTO: &str = "auto";
}

impl StudentConfig {
    /// How many layers are to be chosen, and on how many rows, if they are not known yet.
    pub fn search(&self) -> Option<(usize, usize)> {
        match self.source {
            StudentSource::Pruned { layers: Layers::Auto { count, rows }, .. } => Some((count, rows)),
            _ => None,
        }
    }

    /// Replaces "auto" by the layers that were chosen.
    pub fn choose(&mut self, chosen: Vec<usize>) {
        if let StudentSource::Pruned { layers, .. } = &mut self.source {
            *layers = Layers::These(chosen);
        }
    }

    /// Takes over what was chosen for a run that is resumed, instead of choosing again.
    pub fn keep_chosen(&mut self, run: &Self) {
        if let (Some((count, _)), StudentSource::Pruned { from, .. }) = (self.search(), &self.source)
            && let StudentSource::Pruned { from: theirs, layers: Layers::These(layers) } = &run.source
            && (from, count) == (theirs, layers.len())
        {
            self.choose(layers.clone());
        }
    }
}

impl StudentSource {
    /// The adapters of a student of kind "lora".
    pub fn adaptation(&self) -> Option<Adaptation> {
        match self {
            Self::Lora { rank, alpha, targets, .. } => {
                Some(Adaptation { rank: *rank, alpha: *alpha, targets: targets.clone() })
            }
            Self::Local { .. } | Self::Fresh { .. } | Self::Pruned { .. } => None,
        }
    }
}

/// How a conversation becomes text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChatTemplate {
    /// The tokenizer's own.
    Auto,
    /// Prompt and response as they are.
    None,
    /// A Jinja file.
    File(PathBuf),
}

impl Serialize for ChatTemplate {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::None => serializer.serialize_str("none"),
            Self::File(path) => path.serialize(serializer),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataConfig {
    pub train: Vec<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<PathBuf>,
    /// Tokens kept of each row, at least 2.
    pub max_length: usize,
    pub loss_on: LossOn,
    pub chat_template: ChatTemplate,
    pub packing: bool,
    pub shuffle: bool,
    pub on_bad_record: OnBadRecord,
    /// Bad rows that "skip" passes over at the most, of data.train and of data.eval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bad: Option<u64>,
}

/// total = (1 − w) · T² · divergence + w · cross-entropy, w = `hard_label_weight`; `cross_entropy` uses neither.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LossConfig {
    /// None: a mixture.
    #[serde(flatten)]
    pub divergence: Option<DivergenceConfig>,
    pub temperature: Scheduled,
    pub hard_label_weight: Scheduled,
    /// `false` drops the T² (of tvd, the T).
    pub scale_by_temperature_squared: bool,
    /// Of a teacher that is a top_k cache or goes through one; None: bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tail: Option<LossTail>,
    /// Hidden states that are held to the teacher's besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<HiddenConfig>,
    /// Parts of the divergence, in place of a kind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mix: Vec<MixConfig>,
}

/// weight · the mean distance of hidden states is added to the loss.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HiddenConfig {
    pub layers: HiddenLayers,
    pub kind: HiddenKind,
    pub weight: f64,
}

/// Whose outputs are compared.
#[derive(Debug, Clone, PartialEq)]
pub enum HiddenLayers {
    Auto,
    /// Student's and teacher's.
    Pairs(Vec<[usize; 2]>),
}

impl Serialize for HiddenLayers {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Pairs(pairs) => pairs.serialize(serializer),
        }
    }
}

/// A kind and what it is made with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DivergenceConfig {
    pub kind: LossKind,
    /// Of jsd: the teacher's share in the mixture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// Of the skewed divergences: how much of one's own side is mixed into the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda: Option<f64>,
    /// Of jsd: divide by β (1 − β).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalize: Option<bool>,
}

/// One divergence of a weighted sum.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MixConfig {
    #[serde(flatten)]
    pub divergence: DivergenceConfig,
    pub weight: f64,
}

/// A number, or its way through the run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Scheduled {
    Constant(f64),
    Moving { from: f64, to: f64, schedule: Schedule },
}

impl Scheduled {
    /// The value of a number that does not move.
    pub fn constant(self) -> Option<f64> {
        match self {
            Self::Constant(value) => Some(value),
            Self::Moving { .. } => None,
        }
    }
}

impl std::fmt::Display for Scheduled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Constant(value) => write!(f, "{value}"),
            Self::Moving { from, to, schedule } => write!(f, "{from} to {to} ({})", schedule.word()),
        }
    }
}

impl LossConfig {
    pub const BETA: f64 = 0.5;
    pub const LAMBDA: f64 = 0.1;

    /// Whether hard labels are all there is.
    pub fn is_cross_entropy(&self) -> bool {
        self.divergence.as_ref().is_some_and(|d| d.kind == LossKind::CrossEntropy)
    }

    /// The divergences that are added up, each with its weight. None with hard labels alone.
    pub fn divergences(&self) -> impl Iterator<Item = (&DivergenceConfig, f64)> {
        let single = self.divergence.iter().filter(|d| d.kind != LossKind::CrossEntropy).map(|d| (d, 1.0));
        single.chain(self.mix.iter().map(|part| (&part.divergence, part.weight)))
    }

    /// What its divergence makes of tokens that a truncated teacher does not name.
    pub fn tail(&self) -> Tail {
        match self.tail {
            Some(LossTail::Renormalize) => Tail::Renormalize,
            Some(LossTail::Bucket) | None => Tail::Bucket,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_time: Option<MaxTime>,
    /// Rows (packs, when packing) per optimizer step.
    pub batch_size: usize,
    pub micro_batch_size: usize,
    pub learning_rate: f64,
    pub schedule: Schedule,
    pub warmup_steps: u64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    pub max_grad_norm: f64,
    /// What the student's products are rounded to; its weights, gradients and moments are f32 either way.
    pub dtype: Dtype,
    /// Keep each block's input alone and run its forward again for the backward pass.
    pub checkpoint_activations: bool,
    /// Whether a GPU may round the operands of f32 products to TF32.
    pub tf32: bool,
}

/// How long a run is asked to be, before `max_time` stops it earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    Steps(u64),
    Epochs(u64),
}

impl TrainConfig {
    /// Without steps and epochs: one epoch.
    pub fn length(&self) -> Length {
        match (self.steps, self.epochs) {
            (Some(steps), _) => Length::Steps(steps),
            (None, epochs) => Length::Epochs(epochs.unwrap_or(1)),
        }
    }
}

/// About thirty years, in seconds: far enough, and safe to add to any clock.
const LONGEST: u64 = 1_000_000_000;

/// A wall-clock limit, kept as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaxTime {
    text: String,
    duration: std::time::Duration,
}

impl MaxTime {
    /// `"90s"`, `"30m"` or `"2h"`; `None` for anything else, and for zero.
    pub fn parse(text: &str) -> Option<Self> {
        let (number, seconds) = [('s', 1), ('m', 60), ('h', 3600)]
            .into_iter()
            .find_map(|(unit, seconds)| text.strip_suffix(unit).map(|number| (number, seconds)))?;
        if !number.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let total = number.parse::<u64>().ok()?.checked_mul(seconds).filter(|total| (1..=LONGEST).contains(total))?;
        Some(Self { text: text.to_owned(), duration: std::time::Duration::from_secs(total) })
    }

    pub fn duration(&self) -> std::time::Duration {
        self.duration
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Serialize for MaxTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// Evaluation during training: also at step 0 and at the last.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalConfig {
    pub every_steps: u64,
    pub max_rows: usize,
    pub exact_match: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckpointConfig {
    pub every_steps: u64,
    pub keep_last: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_every: Option<u64>,
    pub keep_best: bool,
}

/// `dtype` is that of the saved student/; training keeps f32.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutputConfig {
    pub dir: PathBuf,
    pub dtype: Dtype,
}
