//! Finds a model named like `org/name` in the local Hugging Face cache. It never opens a socket: what is not there is
//! an input error with the command that downloads it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Names with these endings are files, so `data/config.json` is never taken for a model of the organisation `data`.
const FILE_ENDINGS: [&str; 6] = [".json", ".jsonl", ".jinja", ".gguf", ".safetensors", ".toml"];

/// Whether `value` has the form of a hub id: exactly `org/name`.
pub fn is_id(value: &str) -> bool {
    let part = |p: &str| {
        p.starts_with(|c: char| c.is_ascii_alphanumeric())
            && p.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
            && !p.contains("..")
            && !p.contains("--")
    };
    let ending = |e: &&str| value.len() > e.len() && value.to_ascii_lowercase().ends_with(*e);
    value.split_once('/').is_some_and(|(org, name)| part(org) && part(name)) && !FILE_ENDINGS.iter().any(ending)
}

/// What the snapshot folder `path` (or one inside it) is called there: `org/name@revision`.
pub fn id_of(path: &Path) -> Option<String> {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    parts.windows(3).rev().find_map(|parts| {
        let id = parts[0].strip_prefix("models--")?.replacen("--", "/", 1);
        (parts[1] == "snapshots" && is_id(&id)).then(|| format!("{id}@{}", parts[2]))
    })
}

/// The snapshot folder of `org/name` in the local cache.
///
/// # Errors
/// An input error with the download command when `refs/main` or its snapshot is absent.
pub fn resolve(id: &str) -> Result<PathBuf> {
    resolve_in(cache_dir().as_deref(), id)
}

/// A model as a user names it: a path relative to `base`, or, where nothing is there, a hub id.
///
/// # Errors
/// An input error when `value` is neither a local path nor in the cache, but has the form of an id. Other values are
/// returned joined to `base`, present or not: who opens them says best what is missing.
pub fn locate(value: &Path, base: &Path) -> Result<PathBuf> {
    match value.to_str() {
        Some(text) => locate_in(cache_dir().as_deref(), text, base),
        // An id is ASCII.
        None => Ok(base.join(value)),
    }
}

/// [`locate`] with the cache named.
pub fn locate_in(cache: Option<&Path>, value: &str, base: &Path) -> Result<PathBuf> {
    let local = base.join(value);
    if local.exists() || !is_id(value) {
        return Ok(local);
    }
    resolve_in(cache, value).map_err(|e| e.context(format!("nothing at {}", local.display())))
}

/// Where `hf download` keeps models: HF_HUB_CACHE, else HF_HOME/hub, else huggingface/hub in the user's cache folder.
pub fn cache_dir() -> Option<PathBuf> {
    cache_dir_from(|name| std::env::var_os(name))
}

fn cache_dir_from(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name: &str| env(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    folder("HF_HUB_CACHE").or_else(|| folder("HF_HOME").map(|d| d.join("hub"))).or_else(|| {
        let user = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|d| d.join(".cache")));
        user.map(|d| d.join("huggingface/hub"))
    })
}

/// [`resolve`] with the cache named.
pub fn resolve_in(cache: Option<&Path>, id: &str) -> Result<PathBuf> {
    if !is_id(id) {
        return Err(Error::input(format!("{id:?} is not a Hugging Face id: expected org/name")));
    }
    let absent = |wher: String| {
        Error::input(format!("{id} is not in the local Hugging Face cache ({wher}): get it with `hf download {id}`"))
    };
    let cache = cache.ok_or_else(|| absent("HF_HUB_CACHE, HF_HOME and HOME are all unset".into()))?;
    let missing = || absent(cache.display().to_string());
    let model = cache.join(format!("models--{}", id.replace('/', "--")));
    let revision = std::fs::read_to_string(model.join("refs/main")).map_err(|_| missing())?;
    let revision = revision.trim();
    // The name comes from a file: it must not lead out of the cache.
    if revision.is_empty() || !revision.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(missing());
    }
    let snapshot = model.join("snapshots").join(revision);
    if !snapshot.is_dir() {
        return Err(missing());
    }
    std::path::absolute(&snapshot).map_err(|e| Error::unreadable(&snapshot, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn cache_with(revision: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("models--org--tiny");
        fs::create_dir_all(model.join("refs")).unwrap();
        fs::create_dir_all(model.join("snapshots/abc123")).unwrap();
        fs::write(model.join("refs/main"), revision).unwrap();
        dir
    }

    #[test]
    fn an_id_has_exactly_two_plain_parts_and_is_no_file_name() {
        for id in ["org/name", "HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen2.5-0.5B", "a/b_c"] {
            assert!(is_id(id), "{id}");
        }
        for path in
            ["name", "a/b/c", "./name", "../name", "/name", "a/", "a/..", "a/b c", "data/train.jsonl", "m/c.json"]
        {
            assert!(!is_id(path), "{path}");
        }
    }

    #[test]
    fn an_id_resolves_to_the_snapshot_that_main_names() {
        let dir = cache_with("abc123\n");
        let found = resolve_in(Some(dir.path()), "org/tiny").unwrap();
        assert!(found.ends_with("models--org--tiny/snapshots/abc123"));
        assert!(found.is_absolute());
        assert_eq!(id_of(&found).unwrap(), "org/tiny@abc123");
        assert_eq!(id_of(&found.join("model.gguf")).unwrap(), "org/tiny@abc123");
        assert_eq!(id_of(dir.path()), None);
    }

    #[test]
    fn an_absent_model_is_an_input_error_with_the_download_command() {
        let dir = cache_with("abc123");
        for (cache, id) in [(Some(dir.path()), "org/other"), (None, "org/tiny")] {
            let error = resolve_in(cache, id).unwrap_err();
            assert_eq!(error.class(), crate::error::Class::Input);
            assert!(error.to_string().contains(&format!("hf download {id}")), "{error}");
        }
    }

    #[test]
    fn a_revision_that_leads_out_of_the_cache_or_to_nothing_is_refused() {
        for revision in ["../../..", "", "def456"] {
            let dir = cache_with(revision);
            assert!(resolve_in(Some(dir.path()), "org/tiny").is_err(), "{revision:?}");
        }
    }

    #[test]
    fn a_local_folder_wins_over_the_cache() {
        let (cache, base) = (cache_with("abc123"), tempfile::tempdir().unwrap());
        let from_cache = locate_in(Some(cache.path()), "org/tiny", base.path()).unwrap();
        assert!(from_cache.starts_with(cache.path()));
        fs::create_dir_all(base.path().join("org/tiny")).unwrap();
        let local = locate_in(Some(cache.path()), "org/tiny", base.path()).unwrap();
        assert_eq!(local, base.path().join("org/tiny"));
    }

    #[test]
    fn the_cache_is_where_hugging_face_keeps_it() {
        let with = |pairs: &[(&str, &str)]| {
            let get = |name: &str| pairs.iter().find(|p| p.0 == name).map(|p| OsString::from(p.1));
            cache_dir_from(get).map(|p| p.to_str().unwrap().to_owned())
        };
        assert_eq!(with(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h"), ("HOME", "/u")]).unwrap(), "/c");
        assert_eq!(with(&[("HF_HUB_CACHE", ""), ("HF_HOME", "/h"), ("HOME", "/u")]).unwrap(), "/h/hub");
        assert_eq!(with(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/u")]).unwrap(), "/x/huggingface/hub");
        assert_eq!(with(&[("HOME", "/u")]).unwrap(), "/u/.cache/huggingface/hub");
        assert_eq!(with(&[]), None);
    }
}
