//! A run's folder: its checkpoints, its student, and whether its logs tell of the same run.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::folder::{self, Made};
use super::{Finding, Report, cached, nothing, sources};
use crate::checkpoint::provenance::Training;
use crate::checkpoint::{find, layout};
use crate::commands::{cache, responses};
use crate::error::Result;
use crate::metrics::Screen;
use crate::report::{Status, Summary};

pub fn check(report: &mut Report, run: &Path, screen: &Screen) -> Result<()> {
    let steps = find::steps(run)?;
    let student = run.join(layout::STUDENT);
    if steps.is_empty() && !student.exists() {
        return Err(nothing(run));
    }
    let mut made = vec![];
    for &step in &steps {
        let name = layout::folder_name(step);
        let prefix = format!("{}/{name}/", layout::CHECKPOINTS);
        made.extend(folder::checkpoint(report, &run.join(layout::CHECKPOINTS).join(name), &prefix));
    }
    pointers(report, run, &steps);
    let ended = Summary::read(run).is_ok_and(|summary| matches!(summary.status, Status::Complete | Status::TimeUp));
    if student.exists() {
        let prefix = format!("{}/", layout::STUDENT);
        match made.is_empty() && !student.join(layout::PROVENANCE).exists() {
            true => {
                let why = "it is of a version that recorded none, or was damaged".to_owned();
                report.add(format!("{prefix}{}", layout::PROVENANCE), Finding::NotThere(why));
            }
            false => made.extend(folder::model(report, &student, &prefix)),
        }
    } else if ended {
        report.add(layout::STUDENT, Finding::Differs("it is missing, and the run has ended".into()));
    }
    metrics(report, run, &made, &steps);
    summary(report, run, &made);
    if let Some(checked) = responses::changed(run) {
        report.judge(layout::RESPONSES, checked.err().map(|error| error.to_string()));
    }
    let own_cache = run.join(cache::FOLDER);
    if own_cache.is_dir() {
        // A run that was killed has not finished its cache either.
        match ended || own_cache.join("index.bin").exists() {
            true => cached(report, &own_cache, &format!("{}/", cache::FOLDER)),
            false => {
                report.add(cache::FOLDER, Finding::NotThere("the run has not ended, nor the cache it writes".into()))
            }
        }
    }
    sources::check(report, &made, screen);
    Ok(())
}

/// latest and best.
fn pointers(report: &mut Report, run: &Path, steps: &[u64]) {
    for name in [layout::LATEST, layout::BEST] {
        let pointer = run.join(layout::CHECKPOINTS).join(name);
        let what = format!("{}/{name}", layout::CHECKPOINTS);
        if !pointer.exists() {
            if name == layout::LATEST && !steps.is_empty() {
                report.add(what, Finding::Differs("it is missing".into()));
            }
            continue;
        }
        let differs = match (find::follow(&pointer), std::fs::read(&pointer)) {
            (Err(damage), _) => Some(damage.to_string()),
            (Ok(folder), _) if !folder.is_dir() => Some("the checkpoint it names is missing".into()),
            // Not even white space is other than it was written.
            (Ok(folder), Ok(text)) => {
                let wanted = folder.file_name().map(|name| format!("{}\n", name.to_string_lossy()).into_bytes());
                (wanted != Some(text)).then(|| "it has bytes besides the name of a checkpoint".into())
            }
            (Ok(_), Err(cause)) => Some(cause.to_string()),
        };
        report.judge(what, differs);
    }
}

fn trainings(made: &[Made]) -> impl Iterator<Item = &Training> {
    made.iter().filter_map(|made| made.provenance.training.as_ref())
}

/// metrics.jsonl has no digest: it grows. What it says of steps has to agree with what the checkpoints say, and the checkpoints that
/// it tells of last, which no retention deletes, have to be there.
fn metrics(report: &mut Report, run: &Path, made: &[Made], steps: &[u64]) {
    let Ok(text) = std::fs::read(run.join(layout::METRICS)) else {
        return report.add(layout::METRICS, Finding::Differs("it is missing or cannot be read".into()));
    };
    let lines = text.split_inclusive(|&byte| byte == b'\n').enumerate();
    // What a kill left unfinished is no line.
    let lines = lines.filter(|(_, line)| line.ends_with(b"\n"));
    let mut tokens: Vec<Option<u64>> = vec![];
    let mut saved = BTreeSet::new();
    for (n, line) in lines {
        let Ok(event) = serde_json::from_slice::<Value>(line) else {
            return report.add(layout::METRICS, Finding::Differs(format!("line {} is no JSON", n + 1)));
        };
        if event["event"] == "train" {
            let next = tokens.len() as u64 + 1;
            if event["step"] != next {
                let why = format!("line {} is of step {}, where step {next} belongs", n + 1, event["step"]);
                return report.add(layout::METRICS, Finding::Differs(why));
            }
            tokens.push(event["tokens"].as_u64());
        } else if event["event"] == "checkpoint" {
            saved.extend(event["step"].as_u64());
        }
    }
    // A run that went back has cut its log; what it made beyond that step stands until it comes there again.
    let latest = find::pointed(&run.join(layout::CHECKPOINTS), layout::LATEST).ok().flatten();
    let counts = |training: &&Training| latest.is_none_or(|latest| training.steps <= latest);
    let wrong = trainings(made).filter(counts).find(|training| {
        let at = match training.steps.checked_sub(1) {
            None => Some(0),
            Some(at) => tokens.get(at as usize).copied().flatten(),
        };
        at != Some(training.target_tokens)
    });
    let differs = wrong.map(|training| {
        let (steps, tokens) = (training.steps, training.target_tokens);
        format!("it does not say that step {steps} came to {tokens} target tokens")
    });
    report.judge_log(layout::METRICS, differs);
    for step in saved.into_iter().rev().take(2).filter(|step| !steps.contains(step)) {
        let what = format!("{}/{}", layout::CHECKPOINTS, layout::folder_name(step));
        let why = format!("{} tells of it: deleted, or in the run that this one branched off", layout::METRICS);
        report.add(what, Finding::NotThere(why));
    }
}

/// summary.json, where a model of the same step is there to compare with.
fn summary(report: &mut Report, run: &Path, made: &[Made]) {
    if !run.join(layout::SUMMARY).exists() {
        let why = match run.join(layout::STUDENT).exists() {
            true => "deleted, or the run was cut off before it was written",
            false => "the run has not ended",
        };
        return report.add(layout::SUMMARY, Finding::NotThere(why.into()));
    }
    let summary = match Summary::read(run) {
        Ok(summary) => summary,
        Err(error) => return report.add(layout::SUMMARY, Finding::Differs(error.to_string())),
    };
    let student = made.iter().find(|made| made.dir.ends_with(layout::STUDENT));
    let of_student = student.and_then(|made| made.provenance.training.as_ref()).map(|training| training.steps);
    let ended = matches!(summary.status, Status::Complete | Status::TimeUp);
    if let Some(steps) = of_student.filter(|&steps| ended && steps != summary.steps) {
        let why = format!("it is of step {}, the student of step {steps}", summary.steps);
        return report.add(layout::SUMMARY, Finding::Differs(why));
    }
    let Some(of_step) = made
        .iter()
        .find(|made| made.provenance.training.as_ref().is_some_and(|training| training.steps == summary.steps))
    else {
        let why = format!("there is no model of step {} to compare it with", summary.steps);
        return report.add(layout::SUMMARY, Finding::NotThere(why));
    };
    let tokens = of_step.provenance.training.as_ref().map(|training| training.target_tokens);
    let rows = of_step.provenance.corpus.as_ref().and_then(|corpus| corpus.rows.as_ref());
    let same_rows = rows.is_none_or(|rows| {
        (rows.used, rows.dropped, rows.truncated, rows.rejected)
            == (summary.rows_used, summary.rows_dropped, summary.rows_truncated, summary.rows_rejected)
    });
    let same = tokens == Some(summary.tokens) && same_rows;
    let differs = (!same).then(|| format!("its counts are not those of the model of step {}", summary.steps));
    report.judge_log(layout::SUMMARY, differs);
}
