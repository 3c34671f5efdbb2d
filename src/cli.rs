//! The command line as types: what can be typed, and nothing of what it does. A usage error exits 2, clap's own code.

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Args, Parser, Subcommand};

use crate::config::{ChatTemplate, Dtype, LossOn, Word};
use crate::device::DeviceChoice;

/// Copy what a large language model knows into a small one.
///
/// The exit code tells a script what happened: 0 done, 1 the run failed, 2 wrong usage, config or input, 3 a quality
/// gate failed, 75 training or caching was stopped early and `--resume` goes on.
#[derive(Debug, Parser)]
#[command(name = "distill", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Train(TrainArgs),
    Eval(EvalArgs),
    Generate(GenerateArgs),
    Inspect(InspectArgs),
    Init(InitArgs),
    Export(ExportArgs),
    Bench(BenchArgs),
    Cache(CacheArgs),
    Selftest(SelftestArgs),
    Verify(VerifyArgs),
}

/// Train a student on what its teacher says about a corpus
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  distill train --config run.toml
  distill train --config run.toml --output runs/b --set train.learning_rate=3e-4 --set loss.temperature=2
  distill train --config run.toml --resume           go on from the last checkpoint, or start
  distill train --config run.toml --dry-run          print the plan and stop")]
pub struct TrainArgs {
    /// What to train, in TOML
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Replace one value of the config, for example train.steps=100; may be given again
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<String>,
    /// The run's folder, instead of output.dir
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Go on from the last valid checkpoint of the run's folder (auto), or from a given one; an empty folder starts a run
    #[arg(long, value_name = "auto|PATH", num_args = 0..=1, default_missing_value = "auto")]
    pub resume: Option<Resume>,
    /// Write a checkpoint and exit with 75 once this step is done
    #[arg(long, value_name = "STEPS", value_parser = at_least::<u64, 1>)]
    pub stop_after: Option<u64>,
    /// Print the resolved plan with its arithmetic and stop
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Measure how far a student is from its teacher on held-out text
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  distill eval --teacher models/big --student runs/a/student --data held_out.jsonl --json eval.json
  distill eval --config run.toml --student runs/a/student --baseline runs/hard/student
  distill eval --config run.toml --student runs/a/student --fail-above-kl 0.3 --fail-below-agreement 0.8

Exit code 3 when a gate fails; the JSON is written first.")]
pub struct EvalArgs {
    /// Take teacher and its dtype, devices, data, max_length, loss_on, chat_template and max_rows from a config; flags win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The reference: a model folder, a GGUF file, a teacher cache or a Hugging Face id
    #[arg(long, value_name = "PATH", required_unless_present = "config")]
    pub teacher: Option<PathBuf>,
    /// Held-out rows, JSONL
    #[arg(long, value_name = "FILE", required_unless_present = "config")]
    pub data: Option<PathBuf>,
    /// The model to measure: a model folder or a Hugging Face id
    #[arg(long, value_name = "PATH")]
    pub student: PathBuf,
    /// A second student, best the same one trained on hard labels alone: adds gap_closed
    #[arg(long, value_name = "PATH")]
    pub baseline: Option<PathBuf>,
    /// Write every statistic there
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Use the first N rows that have a target
    #[arg(long, value_name = "N", value_parser = at_least::<usize, 1>)]
    pub max_rows: Option<usize>,
    /// Keep the first N tokens of each row
    #[arg(long, value_name = "N", value_parser = at_least::<usize, 2>)]
    pub max_length: Option<usize>,
    /// Which tokens of a row with a prompt count
    #[arg(long, value_name = "completion|all", hide_possible_values = true, value_parser = words::<LossOn>())]
    pub loss_on: Option<LossOn>,
    /// The tokenizer's own template, none, or a Jinja file
    #[arg(long, value_name = "auto|none|FILE")]
    pub chat_template: Option<ChatTemplate>,
    /// Fail (exit 3) when kl_mean is above X, in nats per token
    #[arg(long, value_name = "X", value_parser = non_negative)]
    pub fail_above_kl: Option<f64>,
    /// Fail (exit 3) when top1_agreement is below Y, a fraction from 0 to 1
    #[arg(long, value_name = "Y", value_parser = fraction)]
    pub fail_below_agreement: Option<f64>,
    /// Write input_ids and the student's logits of the first row there, as safetensors
    #[arg(long, value_name = "FILE")]
    pub dump_logits: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Continue a prompt with a model
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  distill generate --model runs/a/student --prompt 'What is a monad?'
  distill generate --model runs/a/student --prompt 'Once upon a time' --raw --temperature 0.8 --seed 7")]
pub struct GenerateArgs {
    /// A model folder or a Hugging Face id
    #[arg(long, value_name = "PATH")]
    pub model: PathBuf,
    /// The user's turn, or, with --raw, the text to continue
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: String,
    /// Stop after N new tokens
    #[arg(long, value_name = "N", default_value = "128", value_parser = at_least::<usize, 1>)]
    pub max_tokens: usize,
    /// 0 takes the likeliest token each time
    #[arg(long, value_name = "T", default_value = "0", value_parser = non_negative)]
    pub temperature: f64,
    /// Draw from the likeliest tokens that hold this share together
    #[arg(long, value_name = "P", default_value = "1", value_parser = nucleus)]
    pub top_p: f64,
    /// Of the random draws, when the temperature is above 0
    #[arg(long, value_name = "N", default_value = "42")]
    pub seed: u64,
    /// Continue the prompt as it is, without a chat template
    #[arg(long, conflicts_with = "chat_template")]
    pub raw: bool,
    /// The tokenizer's own template, none, or a Jinja file
    #[arg(long, value_name = "auto|none|FILE", default_value = "auto")]
    pub chat_template: ChatTemplate,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Time the steps of a run, phase by phase
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  distill bench --config run.toml
  distill bench --teacher big/config.json --student small/config.json --batch 2 --length 256
  distill bench --top-k 64 --student small/config.json")]
#[command(group = ArgGroup::new("what").required(true).args(["config", "teacher", "top_k"]))]
pub struct BenchArgs {
    /// Time the first steps of this run
    #[arg(long, value_name = "FILE", conflicts_with = "student")]
    pub config: Option<PathBuf>,
    /// Instead of a run: a model folder, a GGUF file, or a config.json for random weights in its shape
    #[arg(long, value_name = "PATH", requires = "student")]
    pub teacher: Option<PathBuf>,
    /// Instead of a teacher: K random tokens per target, of equal probability, stand in for a stored signal
    #[arg(long, value_name = "K", requires = "student", value_parser = at_least::<usize, 1>)]
    pub top_k: Option<usize>,
    /// The student, as the teacher
    #[arg(long, value_name = "PATH")]
    pub student: Option<PathBuf>,
    /// Rows per step, without --config
    #[arg(long, value_name = "N", default_value = "2", value_parser = at_least::<usize, 1>, conflicts_with = "config")]
    pub batch: usize,
    /// Tokens per row, without --config
    #[arg(long, value_name = "N", default_value = "256", value_parser = at_least::<usize, 2>, conflicts_with = "config")]
    pub length: usize,
    /// How the teacher's weights are held, with --teacher
    #[arg(long, value_name = "f32|bf16", default_value = "f32", hide_possible_values = true, value_parser = words::<Dtype>(), conflicts_with_all = ["config", "top_k"])]
    pub teacher_dtype: Dtype,
    /// What the student's products are rounded to, with --student
    #[arg(long, value_name = "f32|bf16", default_value = "f32", hide_possible_values = true, value_parser = words::<Dtype>(), conflicts_with = "config")]
    pub dtype: Dtype,
    /// Print one JSON line instead of the table
    #[arg(long)]
    pub json: bool,
    /// Steps that are timed, after one that is not
    #[arg(long, value_name = "N", default_value = "5", value_parser = at_least::<u64, 1>)]
    pub steps: u64,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Store what a teacher says about a corpus, once, and train from it with no teacher in memory
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "\
Examples:
  distill cache --config run.toml --output cache              the teacher, data and [cache] of a run
  distill train --config run.toml --set teacher.kind=cache --set teacher.path=cache
  distill cache --config run.toml --output cache --resume     go on after a stop, or add rows that are new
  distill cache --config run.toml --output part-3 --shard 3/8
  distill cache merge part-* --output cache
  distill cache stats cache --teacher models/big --student models/small")]
pub struct CacheArgs {
    #[command(subcommand)]
    pub command: Option<CacheCommand>,
    /// The run whose teacher and data are meant, in TOML; its [cache] says what is stored
    #[arg(long, value_name = "FILE", required = true)]
    pub config: Option<PathBuf>,
    /// The cache's folder
    #[arg(long, value_name = "DIR", required = true)]
    pub output: Option<PathBuf>,
    /// Replace one value of the config, for example cache.k=32; may be given again
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<String>,
    /// Go on after the last whole block, or add rows that came to the corpus; an empty folder starts a cache
    #[arg(long)]
    pub resume: bool,
    /// Do share I of N, from 0; auto takes both from SLURM's array, auto/N the I from JOB_COMPLETION_INDEX
    #[arg(long, value_name = "I/N|auto")]
    pub shard: Option<ShardChoice>,
    /// Ask the teacher for a block and say how large the cache will be and how long it will take
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
}

#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Make one cache of all shards
    Merge(MergeArgs),
    /// Say what a cache holds and, with both models, what storing costs
    Stats(StatsArgs),
}

#[derive(Debug, Args)]
pub struct MergeArgs {
    /// The folders of the shards, in any order
    #[arg(value_name = "DIR", required = true)]
    pub shards: Vec<PathBuf>,
    /// The cache's folder
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
}

#[derive(Debug, Args)]
pub struct StatsArgs {
    /// The cache's folder
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// The teacher whose cache it is, to compare loss and gradient with what it says itself
    #[arg(long, value_name = "PATH", requires = "student")]
    pub teacher: Option<PathBuf>,
    /// The student by whose logits the gradient is taken
    #[arg(long, value_name = "PATH", requires = "teacher")]
    pub student: Option<PathBuf>,
    /// Compare on N rows
    #[arg(long, value_name = "N", default_value = "64", value_parser = at_least::<usize, 1>, requires = "teacher")]
    pub rows: usize,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Check this machine's losses against their definitions, and its kernels against naive loops
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  distill selftest                  seconds; a table of what was checked, and exit 1 where a result is off
  distill selftest --device cuda:1")]
pub struct SelftestArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// `--shard`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardChoice {
    Of {
        index: u64,
        count: u64,
    },
    /// From the environment of a job array; of some schedulers the count has to be given.
    Auto {
        count: Option<u64>,
    },
}

impl FromStr for ShardChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "allowed: I/N with 0 ≤ I < N, auto, or auto/N".to_owned();
        let count = |text: &str| text.parse().ok().filter(|n| *n > 0).ok_or_else(wrong);
        match text.split_once('/') {
            None if text == "auto" => Ok(Self::Auto { count: None }),
            Some(("auto", n)) => Ok(Self::Auto { count: Some(count(n)?) }),
            Some((i, n)) => {
                let count = count(n)?;
                let index = i.parse().ok().filter(|i| *i < count).ok_or_else(wrong)?;
                Ok(Self::Of { index, count })
            }
            None => Err(wrong()),
        }
    }
}

/// Say what a model, a checkpoint, a run or a config is
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  distill inspect models/big           shape, parameters and tokenizer
  distill inspect big.Q4_K_M.gguf      the same, its quantisation and metadata
  distill inspect run.toml             the resolved plan
  distill inspect runs/a               how far a run is")]
pub struct InspectArgs {
    /// A model (folder or GGUF file), a teacher cache, a checkpoint or a run folder, or a config
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
}

/// Check that a model, a run or a cache is what was written, and made from what it says
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  distill verify runs/a                the run: its checkpoints, its student, its logs, what they were made from
  distill verify runs/a/student        a student; a checkpoint; what export or init wrote
  distill verify caches/big            a teacher cache, by its own checksums

Every file is read and held against its digest, and so are teacher, corpus, tokenizer and config where they are still
there; the order in which rows were read is computed again from the corpus. Exit code 0 when all is as recorded, 1 when
something differs, 2 when nothing was recorded. A source that is not there is said, and no failure.")]
pub struct VerifyArgs {
    /// A checkpoint, a run folder, a teacher cache, or a model folder that distill wrote
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// Write every finding there
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Write the student of a config as a Hugging Face folder, untrained
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  distill init --config run.toml --output models/cut
  distill init --config run.toml --output models/cut --set student.layers=auto --set student.count=10")]
pub struct InitArgs {
    /// The run whose student is meant, in TOML; its output.dtype says how the weights are stored
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// The folder to write, which must be absent or empty
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Replace one value of the config, for example student.layers=[0,5]; may be given again
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<String>,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Write a GGUF file as a Hugging Face folder
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  distill export big.Q4_K_M.gguf --dequantize --output models/big
  distill export big.Q4_K_M.gguf --dequantize --output models/big --dtype bf16
  distill export big.Q4_K_M.gguf --dequantize --output models/big --tokenizer models/its-tokenizer

The folder can be a student (local, pruned) and evaluates as the file does; it is as large as its dtype makes it.")]
pub struct ExportArgs {
    /// The GGUF file
    #[arg(value_name = "FILE.gguf")]
    pub file: PathBuf,
    /// Unpack the quantised weights: what the quantisation rounded away does not come back
    #[arg(long, required = true)]
    pub dequantize: bool,
    /// The folder to write, which must be absent or empty
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// How the weights are stored
    #[arg(long, value_name = "f32|bf16", default_value = "f32", hide_possible_values = true, value_parser = words::<Dtype>())]
    pub dtype: Dtype,
    /// The folder of its tokenizer.json, instead of one beside the file or the one that its metadata make
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// Where to compute; auto takes a GPU where this build and machine have one
    #[arg(long = "device", value_name = "auto|cpu|cuda[:N]", default_value = "auto")]
    pub choice: DeviceChoice,
}

/// `--resume`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The run's last valid checkpoint.
    Auto,
    /// This checkpoint.
    From(PathBuf),
}

impl FromStr for Resume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("allowed: auto, or the path of a checkpoint".into()),
            "auto" => Ok(Self::Auto),
            path => Ok(Self::From(path.into())),
        }
    }
}

impl FromStr for ChatTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("allowed: auto, none, or the path of a Jinja file".into()),
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            path => Ok(Self::File(path.into())),
        }
    }
}

/// The words of a choice that the config shares.
fn words<W: Word + Send + Sync>() -> impl TypedValueParser<Value = W> {
    PossibleValuesParser::new(W::ALL.iter().map(|w| w.word()))
        .try_map(|text| W::ALL.iter().copied().find(|w| w.word() == text).ok_or("no such word"))
}

fn key_value(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.trim().is_empty() => Ok(text.to_owned()),
        _ => Err("wanted KEY=VALUE, for example train.steps=100".into()),
    }
}

fn at_least<N: FromStr + PartialOrd + From<u8>, const LEAST: u8>(text: &str) -> Result<N, String> {
    text.parse().ok().filter(|n| *n >= N::from(LEAST)).ok_or_else(|| format!("allowed: an integer ≥ {LEAST}"))
}

fn number(text: &str, allowed: &str, is_allowed: impl Fn(f64) -> bool) -> Result<f64, String> {
    text.parse().ok().filter(|&x: &f64| x.is_finite() && is_allowed(x)).ok_or_else(|| format!("allowed: {allowed}"))
}

fn non_negative(text: &str) -> Result<f64, String> {
    number(text, "a finite number ≥ 0", |x| x >= 0.0)
}

fn nucleus(text: &str) -> Result<f64, String> {
    number(text, "a share above 0, at most 1", |x| x > 0.0 && x <= 1.0)
}

fn fraction(text: &str) -> Result<f64, String> {
    number(text, "a fraction from 0 to 1", |x| (0.0..=1.0).contains(&x))
}

#[cfg(test)]
mod tests;
