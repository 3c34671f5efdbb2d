//! ARCHITECTURE.md's rules, held: imports point down, siblings are strangers, and some things happen in one place only.

use std::path::{Path, PathBuf};

/// Lowest first. A module imports only from layers below its own.
const LAYERS: [&[&str]; 9] = [
    &["error", "printable", "units", "device", "kernels", "hub"],
    &["corpus", "metrics"],
    &["signal", "model", "checkpoint"],
    &["cache"],
    &["teacher", "student", "loss"],
    &["train", "eval"],
    &["report", "selftest"],
    &["config"],
    &["commands", "cli", "main"],
];

/// Sibling edges that are meant. An error is every module's; what the user asks for is spelled in cli.
const MEANT: [(&str, &str); 3] = [("commands", "cli"), ("main", "commands"), ("main", "cli")];

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, out: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => walk(&path, out),
                false if path.extension().is_some_and(|e| e == "rs") => {
                    out.push((path.clone(), std::fs::read_to_string(&path).unwrap()));
                }
                false => {}
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut out = vec![];
    walk(&root, &mut out);
    out.into_iter().map(|(path, text)| (path.strip_prefix(&root).unwrap().to_owned(), text)).collect()
}

fn module(path: &Path) -> String {
    path.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

fn layer(module: &str) -> usize {
    LAYERS.iter().position(|l| l.contains(&module)).unwrap_or_else(|| panic!("{module} has no layer"))
}

/// The names after `crate::` or, in main, `distill::`.
fn imports(text: &str) -> impl Iterator<Item = String> {
    let code = text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let names = |prefix: &str| -> Vec<String> {
        code.split(prefix)
            .skip(1)
            .map(|rest| rest.split_at(rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())))
            // A macro is no module.
            .filter(|(_, rest)| !rest.starts_with('!'))
            .map(|(name, _)| name.to_owned())
            .filter(|name: &String| name.starts_with(|c: char| c.is_lowercase()))
            .collect()
    };
    [names("crate::"), names("use distill::")].concat().into_iter()
}

#[test]
fn imports_point_down_and_siblings_are_strangers() {
    let mut faults = vec![];
    for (path, text) in sources() {
        let from = module(&path);
        if from == "lib" {
            continue;
        }
        for to in imports(&text).filter(|to| *to != from) {
            let allowed = layer(&to) < layer(&from) || to == "error" || MEANT.contains(&(from.as_str(), to.as_str()));
            if !allowed {
                faults.push(format!("{} imports {to}", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn only_commands_the_console_and_main_print() {
    for (path, text) in sources() {
        let may = path.starts_with("commands") || path.starts_with("metrics/console") || path == Path::new("main.rs");
        let prints = ["println!(", "print!(", "eprintln!(", "eprint!("].iter().any(|p| text.contains(p));
        assert!(may || !prints, "{} prints", path.display());
    }
}

#[test]
fn unsafe_stands_only_where_it_is_explained() {
    for (path, text) in sources() {
        let blocks = text.matches("unsafe {").count() + text.matches("unsafe impl").count();
        let files = ["device/gpu.rs", "model/weights.rs", "main.rs"];
        let place = path.starts_with("kernels") || files.iter().any(|file| path == Path::new(file));
        assert!(blocks == 0 || place, "{} has unsafe code", path.display());
        assert_eq!(blocks, text.matches("// SAFETY:").count(), "{}: a block without its reason", path.display());
    }
}

#[test]
fn only_the_kernels_and_the_device_know_cuda() {
    for (path, text) in sources() {
        let may = path.starts_with("kernels") || path.starts_with("device") || path == Path::new("device.rs");
        assert!(may || !text.contains("feature = \"cuda\""), "{} asks for the feature", path.display());
    }
}

#[test]
fn no_file_is_too_long_to_read_in_one_sitting() {
    for (path, text) in sources() {
        assert!(text.lines().count() <= 600, "{} has {} lines", path.display(), text.lines().count());
    }
}
