//! Checkpoints and models: every file against its digest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{Finding, Report};
use crate::checkpoint::{Damage, FileEntry, Manifest, Provenance, layout};

/// A folder whose own record is intact, and what it says that it was made from.
pub struct Made {
    /// As its files are called in the report.
    pub prefix: String,
    pub dir: PathBuf,
    pub provenance: Provenance,
    /// Whether every file of it is as recorded.
    pub intact: bool,
}

/// A checkpoint, by its manifest. None where there is no provenance, or none to be trusted.
pub fn checkpoint(report: &mut Report, dir: &Path, prefix: &str) -> Option<Made> {
    let manifest = match Manifest::read_in(dir) {
        Ok(manifest) => manifest,
        Err(damage) => {
            report.add(named(prefix, &damage), Finding::Differs(damage.to_string()));
            return None;
        }
    };
    report.add(format!("{prefix}{}", layout::MANIFEST), Finding::AsRecorded);
    let intact = files(report, dir, prefix, &manifest.files, layout::MANIFEST);
    parent(report, dir, prefix, &manifest);
    if !manifest.files.contains_key(layout::PROVENANCE) {
        let why = format!("manifest format {} is of a version that recorded none", manifest.format);
        report.add(format!("{prefix}{}", layout::PROVENANCE), Finding::NotThere(why));
        return None;
    }
    let provenance = match Provenance::read(dir) {
        Ok(provenance) => provenance,
        Err(damage) => {
            // A damaged one is on the list already.
            if intact {
                report.add(named(prefix, &damage), Finding::Differs(damage.to_string()));
            }
            return None;
        }
    };
    let steps = provenance.training.as_ref().map(|training| training.steps);
    if steps != Some(manifest.step) {
        let why = format!("it is of step {steps:?}, the checkpoint of step {}", manifest.step);
        report.add(format!("{prefix}{}", layout::PROVENANCE), Finding::Differs(why));
        return None;
    }
    Some(Made { prefix: prefix.into(), dir: dir.to_owned(), provenance, intact })
}

/// What a checkpoint went on from, where that still stands beside it.
fn parent(report: &mut Report, dir: &Path, prefix: &str, manifest: &Manifest) {
    let Some(parent) = &manifest.parent else { return };
    let what = format!("{prefix}parent {}", parent.folder);
    let beside = layout::parse_folder_name(&parent.folder).map(|_| dir.with_file_name(&parent.folder));
    let finding = match beside.filter(|beside| beside.is_dir()).map(|beside| Manifest::read_in(&beside)) {
        None => Finding::NotThere("deleted since, or in another run".into()),
        // What is wrong with it is its own matter.
        Some(Err(_)) => Finding::NotThere("the checkpoint there cannot be read".into()),
        Some(Ok(found)) if found.as_parent() == *parent => Finding::AsRecorded,
        // The run went back to an earlier step and came by there again.
        Some(Ok(_)) => Finding::NotThere("another checkpoint of that step has replaced it".into()),
    };
    report.add(what, finding);
}

/// A model's folder that stands by itself, by its provenance.
pub fn model(report: &mut Report, dir: &Path, prefix: &str) -> Option<Made> {
    let provenance = match Provenance::read(dir) {
        Ok(provenance) => provenance,
        Err(damage) => {
            report.add(named(prefix, &damage), Finding::Differs(damage.to_string()));
            return None;
        }
    };
    report.add(format!("{prefix}{}", layout::PROVENANCE), Finding::AsRecorded);
    let intact = match &provenance.files {
        Some(listed) => files(report, dir, prefix, listed, layout::PROVENANCE),
        None => {
            // Taken out of a checkpoint: its manifest had the digests.
            let why = "missing: this folder was a checkpoint, whose files it lists";
            report.add(format!("{prefix}{}", layout::MANIFEST), Finding::Differs(why.into()));
            false
        }
    };
    Some(Made { prefix: prefix.into(), dir: dir.to_owned(), provenance, intact })
}

/// Every file that is listed, and every one that is not. Whether all is as recorded.
fn files(report: &mut Report, dir: &Path, prefix: &str, listed: &BTreeMap<String, FileEntry>, itself: &str) -> bool {
    let check = |(name, entry): (&String, &FileEntry)| (name.clone(), entry.damage(dir.join(name)));
    let checked: Vec<(String, Option<Damage>)> = listed.par_iter().map(check).collect();
    let mut intact = true;
    for (name, damage) in checked {
        intact &= damage.is_none();
        report.judge(format!("{prefix}{name}"), damage.map(|damage| damage.to_string()));
    }
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut added: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name != itself && !listed.contains_key(name))
        .collect();
    added.sort();
    for name in added {
        intact = false;
        report.add(format!("{prefix}{name}"), Finding::Differs("it was added: nothing was recorded of it".into()));
    }
    intact
}

fn named(prefix: &str, damage: &Damage) -> String {
    let name = damage.file().file_name().unwrap_or_default();
    format!("{prefix}{}", name.to_string_lossy())
}
