//! Every file of a checkpoint, damaged in every way: refused by name, and the one before it used.

mod common;

use std::path::Path;

use common::Bench;
use common::runs::{self, Kind, RESUME, assert_same_end};
use distill::checkpoint::{Checkpoint, latest_valid, manifest};

const DAMAGES: [&str; 6] =
    ["first bit flipped", "a bit flipped", "cut to half", "last page zeroed", "deleted", "swapped"];

/// Damages `file`; "swapped" exchanges it with the next file of the folder.
fn damage(folder: &Path, file: &str, how: &str, next: &str) {
    let path = folder.join(file);
    let mut bytes = std::fs::read(&path).unwrap();
    let length = bytes.len();
    match how {
        "first bit flipped" => bytes[0] ^= 1,
        "a bit flipped" => bytes[length * 2 / 3] ^= 16,
        "cut to half" => bytes.truncate(length / 2),
        // What a power cut leaves of a file whose size was on the disk before its content; one that ends in zeros already
        // (moments that did not move) is zeroed from further up.
        "last page zeroed" => {
            let from = length.saturating_sub(4096);
            let from = if bytes[from..].iter().all(|&b| b == 0) { 0 } else { from };
            bytes[from..].fill(0);
        }
        "deleted" => return std::fs::remove_file(&path).unwrap(),
        "swapped" => {
            let other = folder.join(next);
            let theirs = std::fs::read(&other).unwrap();
            std::fs::write(&other, &bytes).unwrap();
            bytes = theirs;
        }
        _ => unreachable!(),
    }
    std::fs::write(&path, bytes).unwrap();
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// Runs of 6 steps that left checkpoints of steps 3 and 6.
fn bench(kind: Kind) -> Bench {
    let bench = runs::bench(kind, 2, "steps = 6", "");
    let text = String::from_utf8(bench.read("run.toml")).unwrap();
    bench.write("run.toml", text.replace("[checkpoint]\n", "[checkpoint]\nkeep_best = false\n"));
    bench.expect(&["train", "--config", "run.toml", "--output", "run"], 0);
    bench
}

#[test]
fn a_checkpoint_damaged_in_any_file_and_any_way_is_refused_by_name_and_the_one_before_it_used() {
    let mut table = String::new();
    for kind in [Kind::Local, Kind::Lora] {
        let bench = bench(kind);
        let run = bench.path("damaged");
        let latest = run.join("checkpoints/step-00000006");
        let mut files: Vec<String> = common::files(&bench.path("run/checkpoints/step-00000006")).into_keys().collect();
        files.extend(["times.json".into(), "manifest.json".into()]);
        for (i, file) in files.iter().enumerate() {
            for how in DAMAGES {
                let next = &files[(i + 1) % files.len()];
                copy(&bench.path("run"), &run);
                damage(&latest, file, how, next);
                let said = Checkpoint::open(&latest).unwrap_err().to_string();
                let named = |name: &String| said.contains(&latest.join(name).display().to_string());
                assert!(named(file) || (how == "swapped" && named(next)), "{file}, {how}: {said}");
                let found = latest_valid(&run).unwrap();
                assert_eq!(found.checkpoint.unwrap().step(), 3, "{file}, {how}");
                assert_eq!(found.damage.len(), 1);
                let shown = said.split(&format!("{}/", latest.display())).last().unwrap().split("; --resume").next();
                table += &format!("{kind:?} | {file} | {how} | {}\n", shown.unwrap());
            }
        }
    }
    println!("{table}");
}

#[test]
fn a_run_whose_latest_checkpoint_is_damaged_goes_on_from_the_one_before_and_ends_the_same() {
    let bench = bench(Kind::Local);
    for file in ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"] {
        copy(&bench.path("run"), &bench.path("damaged"));
        damage(&bench.path("damaged/checkpoints/step-00000006"), file, "a bit flipped", "");
        let output = bench.expect(&[&RESUME[..], &["--output", "damaged"]].concat(), 0);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("warning[checkpoint_damaged]") && said.contains(file), "{said}");
        assert!(said.contains("resuming after step 3"), "{said}");
        assert_same_end(&bench, "run", "damaged", file);
    }
}

#[test]
fn a_run_with_no_valid_checkpoint_fails_and_is_left_as_it_was() {
    let bench = bench(Kind::Local);
    for (step, file) in [("3", "model.safetensors"), ("6", "state.json")] {
        damage(&bench.path(&format!("run/checkpoints/step-0000000{step}")), file, "deleted", "");
    }
    let before = bench.read("run/metrics.jsonl");
    let said = String::from_utf8(bench.expect(&[&RESUME[..], &["--output", "run"]].concat(), 1).stderr).unwrap();
    assert!(said.contains("step-00000003/model.safetensors is missing"), "{said}");
    assert!(said.contains("step-00000006/state.json is missing"), "{said}");
    assert_eq!(bench.read("run/metrics.jsonl"), before);
}

#[test]
fn every_checkpoint_is_a_whole_model() {
    for kind in [Kind::Local, Kind::Lora] {
        let bench = bench(kind);
        let [saved, student] =
            ["run/checkpoints/step-00000006", "run/student"].map(|dir| common::model_files(&bench.path(dir)));
        for (name, content) in &student {
            assert!(saved.get(name) == Some(content), "{kind:?}: {name} is not that of the student's folder");
        }
        manifest::verify(&bench.path("run/checkpoints/step-00000006")).unwrap();
    }
}
