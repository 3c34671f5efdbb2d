//! Parses the command line, runs the command, and turns its end into an exit code. The only place that prints an error.

use std::process::ExitCode;

use clap::Parser;
use distill::cli::Cli;
use distill::commands::{self, Outcome};
use distill::error::Class;
use distill::printable::lines;

fn main() -> ExitCode {
    calm_candle_threads();
    keep_freed_memory();
    fail_at_quotas();
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(usage) => return say(&usage),
    };
    match commands::run(command) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::GateFailed) => ExitCode::from(3),
        Ok(Outcome::Stopped) => ExitCode::from(75),
        Err(error) => {
            eprintln!("error: {}", lines(error.to_string().trim_end()));
            ExitCode::from(match error.class() {
                Class::Input => 2,
                Class::Run => 1,
            })
        }
    }
}

/// Help in colour, where it is asked for; an argument that is wrong may be a file's name.
fn say(usage: &clap::Error) -> ExitCode {
    match usage.use_stderr() {
        false => drop(usage.print()),
        true => eprint!("{}", lines(&usage.render().to_string())),
    }
    ExitCode::from(usage.exit_code() as u8)
}

/// Candle's own pool spins between operations and takes the cores from the matrix products.
fn calm_candle_threads() {
    const LIMIT: &str = "CANDLE_BARRIER_POOL_SPIN_LIMIT";
    if std::env::var_os(LIMIT).is_none() {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var(LIMIT, "0") };
    }
}

/// By default a write beyond a limit of file sizes (`ulimit -f`, some quotas) kills the process; as an error like a full disk's
/// it is named, and nothing is lost.
fn fail_at_quotas() {
    #[cfg(unix)]
    // SAFETY: ignores a signal; no other thread runs yet.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// A step allocates the same activations as the one before. By default glibc gives their memory back to the system in
/// between and the next step pays for every page again: 100,000 faults and a twelfth of the time of README's step. Whoever
/// sets glibc's own variables decides alone.
fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if !["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES"]
        .iter()
        .any(|name| std::env::var_os(name).is_some())
    {
        // SAFETY: sets numbers of the allocator; no other thread runs yet.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
            libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
            libc::mallopt(libc::M_TOP_PAD, 64 << 20);
        }
    }
}
