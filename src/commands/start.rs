//! Where a training run begins: anew, or from a checkpoint that belongs to it.

use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, RunLock, atomic, latest_valid, layout};
use crate::cli::Resume;
use crate::config::{self, RunConfig};
use crate::error::{Error, Result};
use crate::metrics::Screen;

/// A verified beginning. Finding it changes nothing on the disk but what a killed save left half-way.
pub enum Start {
    Fresh,
    From(Box<Origin>),
}

/// The checkpoint to go on from.
pub struct Origin {
    pub checkpoint: Checkpoint,
    /// The run it was saved by.
    pub run_dir: PathBuf,
    /// That run is the one that goes on; otherwise this is a branch of it in a new folder.
    pub same_run: bool,
}

impl Start {
    /// What `--resume` and the state of `run_dir` come to. A config that is not the run's is refused, key by key; layers that the
    /// run has chosen are taken over.
    pub fn find(resume: Option<&Resume>, run_dir: &Path, config: &mut RunConfig, screen: &Screen) -> Result<Self> {
        let fresh = layout::is_fresh(run_dir)?;
        let checkpoint = match resume {
            None | Some(Resume::Auto) if fresh => return Ok(Self::Fresh),
            None => {
                return Err(Error::input(format!(
                    "{} is not empty: --resume goes on with the run in it, another --output starts a new one",
                    run_dir.display()
                )));
            }
            Some(Resume::Auto) => latest(run_dir, screen)?,
            Some(Resume::From(path)) if path.join(layout::CHECKPOINTS).is_dir() => {
                return Err(Error::input(format!(
                    "{0} is a run, not a checkpoint: --resume with --output {0} goes on with it, or give one of the \
                     folders in {0}/{1}",
                    path.display(),
                    layout::CHECKPOINTS
                )));
            }
            Some(Resume::From(path)) => Checkpoint::open(path)?,
        };
        let real = |path: &Path| path.canonicalize().map_err(|e| Error::unreadable(path, e));
        let folder = real(checkpoint.dir())?;
        let Some(origin) = folder.parent().and_then(Path::parent).map(Path::to_owned) else {
            return Err(Error::input(format!("{} lies in no run's folder", folder.display())));
        };
        let same_run = run_dir.exists() && real(run_dir)? == origin;
        if !same_run && !fresh {
            return Err(Error::input(format!(
                "{} belongs to another run, and {} is not empty: a branch of that run needs an --output of its own",
                checkpoint.dir().display(),
                run_dir.display()
            )));
        }
        check_config(&origin, config)?;
        Ok(Self::From(Box::new(Origin { checkpoint, run_dir: origin, same_run })))
    }
}

fn latest(run_dir: &Path, screen: &Screen) -> Result<Checkpoint> {
    // A run that is being written to may only not have come to its first checkpoint yet.
    let lock = RunLock::acquire(run_dir)?;
    // A kill while a checkpoint was being replaced has left it aside.
    atomic::recover(&run_dir.join(layout::CHECKPOINTS))?;
    drop(lock);
    let found = latest_valid(run_dir)?;
    for damage in &found.damage {
        screen.line(&format!("warning[checkpoint_damaged]: {damage}; the newest that is whole is used"));
    }
    found.checkpoint.ok_or_else(|| {
        Error::run(format!(
            "{} has no checkpoint to resume from; remove the folder or choose another --output to start anew",
            run_dir.display()
        ))
    })
}

fn check_config(origin: &Path, config: &mut RunConfig) -> Result<()> {
    let saved = origin.join("config.toml");
    if !saved.is_file() {
        return Err(Error::input(format!(
            "{} is missing, so nobody can tell whether this config is the run's; copy runs as a whole",
            saved.display()
        )));
    }
    let saved = config::load(&saved, &[], None)?;
    config.student.keep_chosen(&saved.student);
    let differences = config::resume_differences(&saved, config)?;
    if differences.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = differences.iter().map(|d| format!("\n  {d}")).collect();
    Err(Error::input(format!(
        "cannot resume {}: the config is not the run's:{}\nrestore these, or start a new run in another --output",
        origin.display(),
        list.concat()
    )))
}
