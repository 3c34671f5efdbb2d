//! Finds a model named like `org/name` in the local Hugging Face cache. It never opens a socket: what is not there is
//! an input error with the command that downloads it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Names with these endings are files, so `data/config.json` is never taken for a model of the organisation `data`.
const FILE_ENDINGS: [&str; 6] = [".json", ".jsonl", ".jinja", ".gguf", ".safetensors", ".toml"];

/// What a file begins with of which a Git checkout has the pointer alone.
const POINTER: &[u8] = b"version https://git-lfs";

/// Refuses `content`, the beginning of a file at `path`, if it is a Git LFS pointer.
///
/// # Errors
/// An input error with the command that fetches the file.
pub fn not_a_pointer(path: &Path, content: &[u8]) -> Result<()> {
    if !content.starts_with(POINTER) {
        return Ok(());
    }
    let text = String::from_utf8_lossy(content);
    let size = text.lines().find_map(|line| line.strip_prefix("size ")?.parse::<u64>().ok());
    let size = size.map_or(String::new(), |size| format!(", of {size} bytes"));
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Err(Error::input(format!(
        "{} is a Git LFS pointer and not the file itself{size}: fetch that: git -C {} lfs pull --include {name}",
        path.display(),
        folder.display()
    )))
}

/// A file of a model's folder that is read whole: a config, an index, a tokenizer.
///
/// # Errors
/// An input error that names it: it cannot be read, is no file (a device would never end), takes more than 256 MiB, or is a
/// Git LFS pointer.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    const LARGEST: u64 = 256 << 20;
    let unreadable = |e| Error::unreadable(path, e);
    let file = std::fs::metadata(path).map_err(unreadable)?;
    if !file.is_file() {
        return Err(Error::input(format!("{} is not a regular file", path.display())));
    }
    if file.len() > LARGEST {
        let (path, size) = (path.display(), file.len());
        return Err(Error::input(format!("{path} has {size} bytes; of such a file at most {LARGEST} are read")));
    }
    let content = std::fs::read(path).map_err(unreadable)?;
    not_a_pointer(path, &content)?;
    Ok(content)
}

/// [`read`] of a text.
///
/// # Errors
/// As there, and for what is no UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?).map_err(|_| Error::input(format!("{} is not UTF-8", path.display())))
}

/// The largest download in a model's folder, or in the cache that it is part of, that was not finished; in words, to end a
/// message about a file that is not there.
pub fn broken_off(folder: &Path) -> String {
    let mut places = vec![folder.to_owned(), folder.join(".cache/huggingface/download")];
    if let Some(snapshots) = folder.parent().filter(|parent| parent.ends_with("snapshots")) {
        places.push(snapshots.with_file_name("blobs"));
    }
    let files = places.iter().filter_map(|place| place.read_dir().ok()).flatten().flatten();
    let unfinished = files.filter(|file| file.path().extension().is_some_and(|e| e == "incomplete"));
    let sizes = unfinished.filter_map(|file| Some((file.metadata().ok()?.len(), file.path())));
    sizes.max().map_or(String::new(), |(size, path)| {
        let path = path.display();
        format!(": a download broke off: {path} has {size} bytes: the command that began it goes on with it")
    })
}

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
    fn a_pointer_is_no_file_and_the_command_that_fetches_it_is_named() {
        let pointer = b"version https://git-lfs.example/spec/v1\noid sha256:4d7a\nsize 269060552\n";
        assert_eq!(
            not_a_pointer(Path::new("m/model.safetensors"), pointer).unwrap_err().to_string(),
            "m/model.safetensors is a Git LFS pointer and not the file itself, of 269060552 bytes: fetch that: git -C m lfs pull \
             --include model.safetensors"
        );
        let said = not_a_pointer(Path::new("x.gguf"), &pointer[..30]).unwrap_err().to_string();
        assert!(said.ends_with("not the file itself: fetch that: git -C . lfs pull --include x.gguf"), "{said}");
        assert!(not_a_pointer(Path::new("x"), b"version 1").is_ok() && not_a_pointer(Path::new("x"), b"").is_ok());
    }

    #[test]
    fn a_file_that_would_never_end_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let refused = || read_text(&path).unwrap_err().to_string().replace(&path.display().to_string(), "X");
        assert_eq!(refused(), "cannot read X: No such file or directory (os error 2)");
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert_eq!(refused(), "X is not a regular file");
        fs::remove_file(&path).unwrap();
        fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(refused(), "X has 1099511627776 bytes; of such a file at most 268435456 are read");
        fs::write(&path, b"\xff").unwrap();
        assert_eq!(refused(), "X is not UTF-8");
    }

    #[test]
    fn a_download_that_broke_off_is_found_where_it_is_kept() {
        let dir = cache_with("abc123");
        let folder = resolve_in(Some(dir.path()), "org/tiny").unwrap();
        assert_eq!(broken_off(&folder), "");
        for place in [folder.join("x"), folder.join(".cache/huggingface/download/y"), folder.join("../../blobs/z")] {
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            let file = place.with_extension("incomplete");
            fs::write(&file, [0; 2048]).unwrap();
            let said = broken_off(&folder);
            let name = file.file_name().unwrap().to_str().unwrap();
            assert!(
                said.starts_with(": a download broke off: ") && said.contains(&format!("{name} has 2048 bytes")),
                "{said}"
            );
            fs::remove_file(file).unwrap();
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
