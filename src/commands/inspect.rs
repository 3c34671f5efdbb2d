//! `distill inspect`: what a path is. A config file is planned like a run; folders are read, never changed.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Outcome, cache, out, responses, show_plan};
use crate::cache::is_cache;
use crate::checkpoint::{Checkpoint, find, layout};
use crate::cli::InspectArgs;
use crate::config::{self, plan::Plan};
use crate::corpus::{ChatTemplate, TextTokenizer};
use crate::device::DeviceChoice;
use crate::error::{Error, Result};
use crate::hub;
use crate::metrics::Screen;
use crate::model::gguf::Value;
use crate::model::{Gguf, ModelConfig, Rotation, weight_files};
use crate::printable::printable;
use crate::report::Summary;
use crate::train::TrainState;
use crate::units::{Bytes, Count, Rounded, Span};

pub fn run(args: &InspectArgs) -> Result<Outcome> {
    let path = hub::locate(&args.path, Path::new(""))?;
    let pointer = [layout::LATEST, layout::BEST].iter().any(|name| path.ends_with(name));
    let text = if path.is_file() && pointer {
        let folder = Checkpoint::open(&path)?.dir().to_owned();
        checkpoint(&folder)? + "\n" + &model(&folder)?
    } else if path.is_file() {
        inspect_file(&path)?
    } else if path.join(layout::STATE).is_file() {
        checkpoint(&path)? + "\n" + &model(&path)?
    } else if path.join(layout::METRICS).is_file() {
        run_folder(&path)?
    } else if path.join(layout::CONFIG).is_file() {
        model(&path)?
    } else if is_cache(&path) {
        cache::describe(&path)?
    } else if path.is_dir() {
        return Err(Error::input(format!(
            "{} is neither a model folder (config.json), a checkpoint (state.json), a run (metrics.jsonl) nor a teacher cache (header.json)",
            path.display()
        )));
    } else {
        return Err(Error::input(format!("{} does not exist", path.display())));
    };
    out::write(&text)?;
    Ok(Outcome::Done)
}

fn inspect_file(path: &Path) -> Result<String> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("toml") => {
            let screen = Screen::stderr();
            let mut config = config::load_to_read(path, &[])?;
            config.responses = responses::complete(&config).then(|| responses::file(&config));
            let devices = config.devices(DeviceChoice::Auto)?;
            show_plan::with_estimate(Plan::new(config, devices, &screen)?, &screen)
        }
        Some("gguf") => gguf(path),
        _ => Err(Error::input(format!(
            "{} is a file but no config (.toml) and no model (.gguf); inspect takes a model, a checkpoint, a run or a config",
            path.display()
        ))),
    }
}

/// How the model tells positions apart, a line for each kind of rotation.
fn positions(config: &ModelConfig) -> Vec<(&'static str, String)> {
    if config.learned_positions {
        return vec![("positions", "learned".into())];
    }
    let mut kinds: Vec<(Option<Rotation>, usize)> = vec![];
    for rotation in &config.rotations {
        match kinds.iter_mut().find(|(kind, _)| kind == rotation) {
            Some((_, layers)) => *layers += 1,
            None => kinds.push((*rotation, 1)),
        }
    }
    let all = kinds.len() == 1;
    let text = |(rotation, layers): (Option<Rotation>, usize)| {
        let what = match rotation {
            Some(Rotation { theta, scaling }) => {
                format!("theta {theta}, scaling {}", format!("{scaling:?}").to_lowercase())
            }
            None => "none".into(),
        };
        ("rope", if all { what } else { format!("{what}, in {layers} layers") })
    };
    kinds.into_iter().map(text).collect()
}

/// A model's shape, a line each.
fn shape(config: &ModelConfig) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| out += &format!("{name:<16}{text}\n");
    let sliding = config.windows.iter().flatten().count();
    let of = if sliding == config.layers { String::new() } else { format!(" in {sliding} layers") };
    let window = config.windows.iter().flatten().next().map_or(String::new(), |w| format!(", sliding window {w}{of}"));
    line("architecture", config.family.name().into());
    line("layers", format!("{} × {} wide, MLP {}", config.layers, config.hidden_size, config.intermediate_size));
    line(
        "attention",
        format!("{} heads of {}, {} key-value heads{window}", config.heads, config.head_dim, config.kv_heads),
    );
    for (name, text) in positions(config) {
        line(name, text);
    }
    line("context", format!("{} tokens", Count(config.max_position_embeddings as u64)));
    let head = if config.tied_head { "tied to the embedding" } else { "separate" };
    line("vocabulary", format!("{} rows, head {head}", Count(config.vocab_size as u64)));
    let mut groups: BTreeMap<&str, usize> = BTreeMap::new();
    for spec in config.tensors() {
        let group = ["embed_tokens", "embed_positions", "self_attn", "mlp", "lm_head"]
            .into_iter()
            .find(|g| spec.name.contains(g));
        *groups.entry(group.unwrap_or("norms")).or_default() += spec.elements();
    }
    let parts: Vec<String> = groups.iter().map(|(name, n)| format!("{name} {}", Rounded(*n as u64))).collect();
    line("parameters", format!("{} ({})", Count(config.parameters() as u64), parts.join(", ")));
    out
}

fn gguf(path: &Path) -> Result<String> {
    let file = Gguf::open(path)?;
    let mut out = shape(&file.config);
    for (dtype, count, bytes) in file.types() {
        out += &format!("{:<16}{count} tensors of {dtype}, {}\n", "weights", Bytes(bytes as u64));
    }
    match file.tokens() {
        Ok(tokens) => {
            out += &format!("{:<16}{} tokens\n", "vocabulary", Count(tokens.len() as u64));
            match file.tokenizer(None).and_then(|found| tokenizer(&found)) {
                Ok(lines) => out += &lines,
                Err(why) => out += &format!("{:<16}none: {why}\n", "tokenizer"),
            }
        }
        Err(_) => out += &format!("{:<16}none\n", "vocabulary"),
    }
    out += &format!("GGUF version {}\n", file.header.version);
    for (key, value) in &file.header.metadata {
        out += &format!("  {key:<44}{}\n", shown(value));
    }
    Ok(out)
}

/// A value on one line; long ones by their beginning or number.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 60;
    match value {
        Value::Text(text) => {
            let line: String = printable(text).replace('\n', " ").chars().take(LONGEST).collect();
            if text.chars().count() > LONGEST { line + " …" } else { line }
        }
        Value::Texts(list) => format!("{} texts", Count(list.len() as u64)),
        Value::Numbers(list) => format!("{} numbers", Count(list.len() as u64)),
        Value::Unsigned(n) => n.to_string(),
        Value::Signed(n) => n.to_string(),
        Value::Float(x) => x.to_string(),
        Value::Bool(flag) => flag.to_string(),
    }
}

fn model(folder: &Path) -> Result<String> {
    let mut out = shape(&ModelConfig::read(folder)?);
    let mut line = |name: &str, text: String| out += &format!("{name:<16}{text}\n");
    let files = weight_files(folder)?;
    let bytes: u64 = files.iter().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum();
    line("weights", format!("{} in {} file{}", Bytes(bytes), files.len(), if files.len() == 1 { "" } else { "s" }));
    if folder.join(layout::TOKENIZER).is_file() {
        out += &tokenizer(&TextTokenizer::from_dir(folder)?)?;
    } else {
        line("tokenizer", "none: tokenizer.json is missing".into());
    }
    Ok(out)
}

fn tokenizer(tokenizer: &TextTokenizer) -> Result<String> {
    let name = |id: Option<u32>| id.map_or("none".into(), |id| format!("{} ({id})", tokenizer.token(id)));
    let template = ChatTemplate::of(tokenizer.files(), tokenizer.special().clone())?;
    let template = if template.is_some() { "yes" } else { "none" };
    let (tokens, bos, eos) = (tokenizer.vocab_size() as u64, name(tokenizer.bos_id()), name(tokenizer.eos_id()));
    Ok(format!(
        "{:<16}{} tokens\n{:<16}{bos}, {eos}\n{:<16}{template}\n",
        "tokenizer",
        Count(tokens),
        "bos, eos",
        "chat template"
    ))
}

fn checkpoint(folder: &Path) -> Result<String> {
    let checkpoint = Checkpoint::open(folder)?;
    let state = TrainState::read(&checkpoint)?;
    let mut out = format!("checkpoint after step {}: every file matches its digest\n", Count(checkpoint.step()));
    out += &training(&state);
    let manifest = checkpoint.manifest();
    if let Some(tool) = &manifest.tool {
        out += &format!("written by      {} {}\n", printable(&tool.name), printable(&tool.version));
    }
    if let Some(parent) = &manifest.parent {
        out += &format!("went on from    {}, manifest {}\n", printable(&parent.folder), printable(&parent.manifest));
    }
    for (name, entry) in &checkpoint.manifest().files {
        out += &format!("  {name:<24}{:>12}  sha256 {}\n", Bytes(entry.size), entry.sha256);
    }
    Ok(out)
}

fn training(state: &TrainState) -> String {
    let mut out = format!(
        "trained         {} steps, {} target tokens, {}; epoch {}, record {}\n",
        Count(state.step),
        Count(state.target_tokens),
        Span::from_seconds(state.times.train_seconds),
        state.loader.epoch + 1,
        Count(state.loader.cursor)
    );
    if let Some(best) = state.best {
        out += &format!("best            step {} with {:.4}\n", Count(best.step), best.score);
    }
    out
}

fn run_folder(folder: &Path) -> Result<String> {
    let mut out = format!("run {}\n", folder.display());
    match Summary::read(folder) {
        Ok(summary) => {
            let speed = summary.tokens_per_second.map_or(String::new(), |s| format!(", {s:.0} tokens/s"));
            out += &format!(
                "{:?} after {} steps in {}{speed}\n",
                summary.status,
                Count(summary.steps),
                Span::from_seconds(summary.elapsed_seconds)
            );
            let figures = |eval: &crate::metrics::Eval| {
                let kl = match (eval.kl_mean, eval.bucket_kl_mean) {
                    (Some(kl), _) => format!("KL {kl:.4}, "),
                    (None, Some(kl)) => format!("KL of the stored tokens {kl:.4}, "),
                    (None, None) => String::new(),
                };
                format!("{kl}student perplexity {:.3}", eval.student_perplexity)
            };
            for (name, eval) in [("before", &summary.initial_eval), ("after", &summary.final_eval)] {
                out += &eval.as_ref().map_or(String::new(), |eval| format!("{name:<16}{}\n", figures(eval)));
            }
        }
        Err(_) => out += "no summary.json: the run has not ended\n",
    }
    for step in find::steps(folder)? {
        let dir = folder.join(layout::CHECKPOINTS).join(layout::folder_name(step));
        let best = if find::best(folder) == Some(step) { ", best" } else { "" };
        let state = match Checkpoint::open(&dir) {
            Ok(_) => "valid".to_string(),
            Err(error) => error.to_string(),
        };
        out += &format!("checkpoint      {}{best}: {state}\n", layout::folder_name(step));
    }
    Ok(out)
}
