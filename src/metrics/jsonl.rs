//! metrics.jsonl: one event per line, appended and readable at once (`tail -f`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Event, Sink};
use crate::error::{Error, Result};

/// An open metrics.jsonl.
pub struct Jsonl {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines.
    length: u64,
}

impl Jsonl {
    /// Starts the file of a new run.
    ///
    /// Errors (exit 1): it exists already, or cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        Self::open(File::options().append(true).create_new(true), path)
    }

    /// Goes on with the file of a run resumed from the checkpoint of `step`: see [`resume_at`]. An absent one is started.
    pub fn resume(path: &Path, step: u64, evaluated: bool) -> Result<Self> {
        resume_at(path, step, evaluated)?;
        Self::open(File::options().append(true).create(true), path)
    }

    fn open(options: &OpenOptions, path: &Path) -> Result<Self> {
        let open = || -> io::Result<Self> {
            let file = options.open(path)?;
            // A flush makes the content durable, this the name.
            sync_parent(path)?;
            let length = file.metadata()?.len();
            Ok(Self { path: path.to_owned(), file, length })
        };
        open().map_err(|cause| Error::unwritable(path, cause))
    }
}

impl Sink for Jsonl {
    fn record(&mut self, event: &Event) -> Result<()> {
        let mut line = serde_json::to_vec(event).expect("an event is plain data");
        line.push(b'\n');
        if let Err(cause) = self.file.write_all(&line) {
            // A disk that fills midway must not leave half a line for the next one to be glued to.
            let _ = self.file.set_len(self.length);
            return Err(Error::unwritable(&self.path, cause));
        }
        self.length += line.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.file.sync_data().map_err(|cause| Error::unwritable(&self.path, cause))
    }
}

/// Cuts the metrics of a run back to `step`, which it is resumed from: keeps the bytes of the events with a step up to
/// it, drops later ones, a torn last line and whatever else is no event. Unless the step was `evaluated` when it was saved, its
/// evaluation is dropped too: the resumed run makes it again. The file is replaced durably and at once; an absent one stays
/// absent.
pub fn resume_at(path: &Path, step: u64, evaluated: bool) -> Result<()> {
    let source = match File::open(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(|cause| Error::run(format!("cannot read {}: {cause}", path.display())))?,
    };
    // The store removes a leftover of this name when it opens the run.
    let temporary = path.with_file_name(".tmp-metrics.jsonl");
    let rewrite = || -> io::Result<()> {
        let (mut source, mut target) = (BufReader::new(source), BufWriter::new(File::create(&temporary)?));
        let mut line = vec![];
        while source.read_until(b'\n', &mut line)? > 0 {
            let stays = |head: Head| head.step < step || (head.step == step && (evaluated || head.event != "eval"));
            if line.ends_with(b"\n") && head_of(&line).is_some_and(stays) {
                target.write_all(&line)?;
            }
            line.clear();
        }
        target.into_inner()?.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_parent(path)
    };
    rewrite().map_err(|cause| {
        let _ = fs::remove_file(&temporary);
        Error::unwritable(path, cause)
    })
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[derive(Deserialize)]
struct Head {
    event: String,
    step: u64,
}

/// What a line is about, if it is an event; of any kind, so that a newer version's events survive.
fn head_of(line: &[u8]) -> Option<Head> {
    serde_json::from_slice(line).ok()
}

#[cfg(test)]
mod tests {
    use super::super::Warning;
    use super::*;

    fn warning(step: u64) -> Event {
        Event::Warning(Warning { step, code: "c".into(), message: "m".into() })
    }

    #[test]
    fn a_line_is_in_the_file_as_soon_as_it_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut sink = Jsonl::create(&path).unwrap();
        for step in 1..=3 {
            sink.record(&warning(step)).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap().lines().count() as u64, step);
        }
        sink.flush().unwrap();
        assert!(Jsonl::create(&path).is_err());
    }

    #[test]
    fn resuming_keeps_exactly_the_bytes_of_the_lines_up_to_the_step() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let kept = "{\"event\":\"eval\",\"step\":0,\"kl_mean\":1.50}\n{\"event\": \"train\",  \"step\":1}\n\
                    {\"event\":\"train\",\"step\":2}\n{\"event\":\"from a later version\",\"step\":2,\"x\":[]}\n";
        let dropped = "{\"event\":\"train\",\"step\":3}\nnot json\n{\"event\":\"train\"}\n\n{\"step\":1}\n[1]\n";
        let torn = "{\"event\":\"warning\",\"step\":2,\"mess";
        fs::write(&path, [kept.as_bytes(), dropped.as_bytes(), b"\xFF\xFE\n", torn.as_bytes()].concat()).unwrap();
        let mut sink = Jsonl::resume(&path, 2, true).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), kept);
        sink.record(&warning(3)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.strip_prefix(kept).unwrap().trim_end(), serde_json::to_string(&warning(3)).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_evaluation_that_a_checkpoint_was_saved_before_is_dropped_for_it_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let [before, own] = [1, 2].map(|step| format!("{{\"event\":\"eval\",\"step\":{step}}}\n"));
        let trained = "{\"event\":\"train\",\"step\":2}\n";
        fs::write(&path, [&before, trained, &own].concat()).unwrap();
        resume_at(&path, 2, true).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), [&before, trained, &own].concat());
        resume_at(&path, 2, false).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), [&before, trained].concat());
    }

    #[test]
    fn a_torn_line_that_is_whole_json_is_dropped_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        fs::write(&path, "{\"event\":\"train\",\"step\":1}\n{\"event\":\"train\",\"step\":2}").unwrap();
        resume_at(&path, 2, true).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"event\":\"train\",\"step\":1}\n");
    }

    #[test]
    fn an_absent_file_is_started() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        resume_at(&path, 5, true).unwrap();
        assert!(!path.exists());
        Jsonl::resume(&path, 5, true).unwrap().record(&warning(6)).unwrap();
        assert!(path.exists());
    }
}
