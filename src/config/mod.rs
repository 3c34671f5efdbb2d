//! A TOML file and the command line become a [`RunConfig`]: every default filled in, every value in its range, every
//! path absolute. All problems are reported at once. Nothing is opened here but the config itself; whether the parts fit
//! together is for the plan.

pub mod cached;
mod disk;
mod hidden;
mod loss;
mod memory;
pub mod objective;
pub mod plan;
mod problem;
mod raw;
mod reader;
mod resolve;
mod resume;
mod rollout;
mod schema;
#[cfg(test)]
mod tests;
mod tokenizer;
mod types;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

pub use resume::{Difference, identity, resume_differences};
pub use rollout::RolloutConfig;
pub use types::*;

use crate::checkpoint::atomic;
use crate::error::{Error, Result};
use crate::hub;
use problem::Problems;
use reader::{Reader, Surroundings, absolute};
use resolve::OutputFrom;

/// Far above any config; a file beyond it is something else.
const LARGEST_FILE: u64 = 1 << 20;

/// The config of a run.
///
/// `overrides` are `KEY=VALUE` texts of `--set`, the last of a key wins. Paths in the file resolve against its folder,
/// those of `overrides` and `output` against the working directory. `output` replaces `output.dir`.
///
/// # Errors
/// An input error that lists every problem on a line of its own.
pub fn load(path: &Path, overrides: &[String], output: Option<&Path>) -> Result<RunConfig> {
    let around = surroundings()?;
    let output = output.map(|dir| absolute(&around.working_dir, dir));
    load_in(&around, path, overrides, output.as_deref().map_or(OutputFrom::Config, OutputFrom::CommandLine))
}

/// [`load`] for commands that write no run: `output.dir` may be absent and is then empty.
pub fn load_to_read(path: &Path, overrides: &[String]) -> Result<RunConfig> {
    load_in(&surroundings()?, path, overrides, OutputFrom::Either)
}

fn surroundings() -> Result<Surroundings> {
    let working_dir = std::env::current_dir().map_err(|e| Error::unreadable(Path::new("."), e))?;
    Ok(Surroundings { working_dir, hub_cache: hub::cache_dir() })
}

fn load_in(around: &Surroundings, path: &Path, overrides: &[String], output: OutputFrom<'_>) -> Result<RunConfig> {
    let file = absolute(&around.working_dir, path);
    let text = read(&file)?;
    let mut problems = Problems::default();
    let mut tree = raw::parse(&text, &mut problems);
    // What follows a syntax error was read by guesswork.
    if !problems.is_empty() {
        return Err(problems.into_error(path));
    }
    for text in overrides {
        raw::apply_override(&mut tree, text, &mut problems);
    }
    schema::check(&tree, &mut problems);
    let folder = file.parent().map(PathBuf::from).unwrap_or_default();
    let mut reader = Reader::new(&tree, &folder, around, problems);
    let config = resolve::run_config(&mut reader, output);
    config.ok_or_else(|| reader.problems.into_error(path))
}

fn read(path: &Path) -> Result<String> {
    let mut bytes = vec![];
    File::open(path)
        .and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes))
        .map_err(|e| Error::unreadable(path, e))?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(Error::input(format!("{} is larger than 1 MiB: not a config", path.display())));
    }
    String::from_utf8(bytes).map_err(|e| {
        let good = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|&&b| b == b'\n').count();
        Error::input(format!("{}:{line}: not valid UTF-8; a config is TOML text", path.display()))
    })
}

/// The config as TOML that [`load`] reads back to the same value.
///
/// # Errors
/// An input error where a path is not UTF-8, which TOML cannot hold.
pub fn to_toml(config: &RunConfig) -> Result<String> {
    let text = toml::to_string(config).map_err(|e| Error::input(format!("the config cannot be written: {e}")))?;
    let version = env!("CARGO_PKG_VERSION");
    Ok(format!(
        "# The resolved config of this run, written by distill {version}: every default filled in, paths absolute.\n{text}"
    ))
}

/// Writes the resolved config whole or not at all.
///
/// # Errors
/// Those of [`to_toml`], and a run error where the file cannot be written.
pub fn save(config: &RunConfig, path: &Path) -> Result<()> {
    atomic::write_file(path, to_toml(config)?.as_bytes())
}
