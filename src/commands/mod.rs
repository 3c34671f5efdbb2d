//! One file per subcommand: the only layer that sees both sides of every seam, and, with the console, the only that prints.

mod bench;
mod build;
mod cache;
mod choose;
mod eval;
mod export;
mod fingerprints;
mod generate;
mod init;
mod inspect;
mod out;
mod preflight;
mod provenance;
mod responses;
mod selftest;
mod show_plan;
mod signals;
mod start;
mod train;
pub mod verify;

use crate::cli::Command;
use crate::error::{Error, Result};
use crate::kernels::Simd;

/// How a command that did not fail ended: its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Exit 0.
    Done,
    /// A quality gate failed: exit 3.
    GateFailed,
    /// Training stopped early and can be resumed: exit 75 (EX_TEMPFAIL).
    Stopped,
}

/// Runs one subcommand.
pub fn run(command: Command) -> Result<Outcome> {
    if let Ok(name) = std::env::var(Simd::VARIABLE)
        && Simd::named(&name).is_none()
    {
        let variable = Simd::VARIABLE;
        return Err(Error::input(format!("{variable} = {name:?} is none of portable, avx2, avx512, avx512bf16")));
    }
    let resumable = match &command {
        Command::Train(args) => !args.dry_run,
        Command::Cache(args) => args.command.is_none(),
        _ => false,
    };
    if !resumable {
        signals::quit()?;
    }
    match command {
        Command::Train(args) => train::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Cache(args) => cache::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Init(args) => init::run(&args),
        Command::Selftest(args) => selftest::run(&args),
        Command::Verify(args) => verify::run(&args),
    }
}
