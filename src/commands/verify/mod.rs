//! `distill verify`: is it what was written, and was it made from what it says? Reads, and changes nothing.

mod folder;
mod order;
mod run;
mod sources;

use std::path::Path;

use serde_json::json;

use super::{Outcome, out};
use crate::cache;
use crate::checkpoint::{atomic, find, layout};
use crate::cli::VerifyArgs;
use crate::error::{Error, Result};
use crate::metrics::Screen;
use crate::printable::printable;
use crate::units::Count;

/// What became of one thing that was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    AsRecorded,
    /// A log, which grows and has no digest: it says what the models say. What else stands in it is not known.
    Agrees,
    /// And how.
    Differs(String),
    /// It cannot be told, and why.
    NotThere(String),
}

/// Everything that was looked at, in order.
#[derive(Debug, Default)]
pub struct Report {
    /// A file by its name inside the path that was given, or a source by what it is to it.
    pub checks: Vec<(String, Finding)>,
}

impl Report {
    fn add(&mut self, what: impl Into<String>, finding: Finding) {
        self.checks.push((what.into(), finding));
    }

    /// As recorded, unless it differs in some way.
    fn judge(&mut self, what: impl Into<String>, differs: Option<String>) {
        self.add(what, differs.map_or(Finding::AsRecorded, Finding::Differs));
    }

    /// Of a log: it agrees with the models, unless it differs in some way.
    fn judge_log(&mut self, what: &str, differs: Option<String>) {
        self.add(what, differs.map_or(Finding::Agrees, Finding::Differs));
    }

    /// What differs, and how.
    pub fn differing(&self) -> impl Iterator<Item = (&str, &str)> {
        self.checks.iter().filter_map(|(what, finding)| match finding {
            Finding::Differs(why) => Some((what.as_str(), why.as_str())),
            Finding::AsRecorded | Finding::Agrees | Finding::NotThere(_) => None,
        })
    }

    fn count(&self, which: fn(&Finding) -> bool) -> u64 {
        self.checks.iter().filter(|(_, finding)| which(finding)).count() as u64
    }

    fn as_recorded(&self) -> u64 {
        self.count(|finding| *finding == Finding::AsRecorded)
    }

    fn agree(&self) -> u64 {
        self.count(|finding| *finding == Finding::Agrees)
    }

    fn not_there(&self) -> u64 {
        self.count(|finding| matches!(finding, Finding::NotThere(_)))
    }

    fn table(&self) -> String {
        let width = self.checks.iter().map(|(what, _)| what.chars().count()).max().unwrap_or(0).min(60);
        let line = |(what, finding): &(String, Finding)| {
            let text = match finding {
                Finding::AsRecorded => "as recorded".to_owned(),
                Finding::Agrees => "agrees with the models; it has no digest".to_owned(),
                Finding::Differs(why) => format!("DIFFERS: {why}"),
                Finding::NotThere(why) => format!("not there: {why}"),
            };
            format!("{:<width$}  {}\n", printable(what), printable(&text))
        };
        let lines: String = self.checks.iter().map(line).collect();
        let (agree, differing) = (self.agree(), self.differing().count() as u64);
        format!(
            "{lines}{} as recorded{}, {} not there, {} differ\n",
            Count(self.as_recorded()),
            if agree == 0 { String::new() } else { format!(", {} agree", Count(agree)) },
            Count(self.not_there()),
            Count(differing)
        )
    }

    fn json(&self, path: &Path) -> Result<Vec<u8>> {
        let check = |(what, finding): &(String, Finding)| match finding {
            Finding::AsRecorded => json!({ "what": what, "finding": "as_recorded" }),
            Finding::Agrees => json!({ "what": what, "finding": "agrees" }),
            Finding::Differs(why) => json!({ "what": what, "finding": "differs", "why": why }),
            Finding::NotThere(why) => json!({ "what": what, "finding": "not_there", "why": why }),
        };
        let json = json!({
            "path": path.display().to_string(),
            "as_recorded": self.as_recorded(),
            "agree": self.agree(),
            "not_there": self.not_there(),
            "differ": self.differing().count(),
            "checks": self.checks.iter().map(check).collect::<Vec<_>>(),
        });
        Ok((format!("{json:#}") + "\n").into_bytes())
    }
}

pub fn run(args: &VerifyArgs) -> Result<Outcome> {
    let report = check(&args.path, &Screen::stderr())?;
    out::write(&report.table())?;
    if let Some(file) = &args.json {
        atomic::write_file(file, &report.json(&args.path)?)?;
    }
    let names: Vec<&str> = report.differing().map(|(what, _)| what).collect();
    match &names[..] {
        [] => Ok(Outcome::Done),
        [one] => Err(Error::run(format!("{one} is not what was recorded"))),
        [first, rest @ ..] => {
            Err(Error::run(format!("{first} and {} more are not what was recorded", Count(rest.len() as u64))))
        }
    }
}

/// Holds what is at `path` against what was recorded of it.
///
/// Input errors: nothing was recorded there.
pub fn check(path: &Path, screen: &Screen) -> Result<Report> {
    let mut report = Report::default();
    let has = |name: &str| path.join(name).exists();
    if [layout::LATEST, layout::BEST].iter().any(|name| path.ends_with(name)) && path.is_file() {
        let folder = find::follow(path).map_err(|damage| Error::run(damage.to_string()))?;
        return check(&folder, screen);
    }
    if has(layout::MANIFEST) || has(layout::STATE) {
        let made = folder::checkpoint(&mut report, path, "");
        sources::check(&mut report, &made.into_iter().collect::<Vec<_>>(), screen);
    } else if has(layout::CHECKPOINTS) || has(layout::METRICS) {
        run::check(&mut report, path, screen)?;
    } else if has(layout::PROVENANCE) {
        let made = folder::model(&mut report, path, "");
        sources::check(&mut report, &made.into_iter().collect::<Vec<_>>(), screen);
    } else if is_cache(path) {
        cached(&mut report, path, "");
    } else {
        return Err(nothing(path));
    }
    Ok(report)
}

/// Whether something of a cache is in `dir`: a damaged one is one still.
fn is_cache(dir: &Path) -> bool {
    cache::FILES.iter().filter(|name| dir.join(name).is_file()).count() >= 2
}

fn cached(report: &mut Report, dir: &Path, prefix: &str) {
    for (name, wrong) in cache::examine(dir) {
        report.judge(format!("{prefix}{name}"), wrong);
    }
}

fn nothing(path: &Path) -> Error {
    let shown = path.display();
    Error::input(match path {
        _ if !path.exists() => format!("{shown} does not exist"),
        _ if path.join(layout::CONFIG).exists() => format!(
            "{shown} is a model without {}: distill did not write it, or a version did that recorded nothing; there is \
             nothing to verify",
            layout::PROVENANCE
        ),
        _ => format!(
            "there is nothing to verify in {shown}: it is no checkpoint ({}), no run ({}), no model that distill wrote ({}) \
             and no teacher cache",
            layout::MANIFEST,
            layout::METRICS,
            layout::PROVENANCE
        ),
    })
}
