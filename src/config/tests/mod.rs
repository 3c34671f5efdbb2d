//! Claims about configs, each read from a file in a folder of its own.

mod defaults;
mod paths;
mod refusals;

use std::path::PathBuf;

use super::reader::Surroundings;
use super::resolve::OutputFrom;
use super::*;

/// The least config of a local student; tests add to it.
const LEAST: &str = "
[teacher]
path = \"teacher\"
[student]
kind = \"local\"
path = \"student\"
[data]
train = \"train.jsonl\"
[output]
dir = \"out\"
";

/// A folder with `conf/c.toml` and a `work` folder to stand in.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn with(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["conf", "work", "hub"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        std::fs::write(dir.path().join("conf/c.toml"), text).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn load_from(&self, output: OutputFrom<'_>, set: &[&str]) -> Result<RunConfig> {
        let around = Surroundings { working_dir: self.path("work"), hub_cache: Some(self.path("hub")) };
        let set: Vec<String> = set.iter().map(ToString::to_string).collect();
        load_in(&around, &self.path("conf/c.toml"), &set, output)
    }

    fn load(&self, set: &[&str]) -> Result<RunConfig> {
        self.load_from(OutputFrom::Config, set)
    }
}

fn load_text(text: &str, set: &[&str]) -> Result<RunConfig> {
    Place::with(text).load(set)
}

/// The problems of a config, one per line, without the header.
fn problems(text: &str, set: &[&str]) -> Vec<String> {
    let error = load_text(text, set).expect_err("the config was taken");
    assert_eq!(error.class(), crate::error::Class::Input);
    error.to_string().lines().skip(1).map(|line| line.trim().to_owned()).collect()
}

/// The one problem of a config.
fn problem(text: &str, set: &[&str]) -> String {
    let all = problems(text, set);
    assert_eq!(all.len(), 1, "{all:#?}");
    all[0].clone()
}
