//! What stands on the disk under a model's, a tokenizer's or a cache's name, by every byte.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use sha2::{Digest, Sha256};

use super::license;
use crate::cache::{Header, Reader};
use crate::checkpoint::provenance::Source;
use crate::checkpoint::{FileEntry, layout};
use crate::commands::fingerprints::folder_files;
use crate::corpus::{TextTokenizer, TokenizerFiles};
use crate::error::{Error, Result};
use crate::hub;
use crate::model::Gguf;
use crate::model::gguf::Value;
use crate::units::hex;

/// Digests of files, each read once.
#[derive(Debug, Default)]
pub struct Digests(Mutex<HashMap<PathBuf, FileEntry>>);

impl Digests {
    pub fn of(&self, path: &Path) -> io::Result<FileEntry> {
        let known = || self.0.lock().map_err(|_| io::Error::other("a thread that read files has panicked"));
        if let Some(entry) = known()?.get(path) {
            return Ok(entry.clone());
        }
        // Not under the lock: several files may be read at once.
        let entry = FileEntry::of(path)?;
        known()?.insert(path.to_owned(), entry.clone());
        Ok(entry)
    }

    fn entries(&self, paths: &[PathBuf]) -> Result<BTreeMap<String, FileEntry>> {
        let entry = |path: &PathBuf| {
            let entry = self.of(path).map_err(|e| Error::unreadable(path, e))?;
            Ok((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), entry))
        };
        paths.iter().map(entry).collect()
    }

    /// SHA-256 over the digests of `files`, in this order: of a model, or of a corpus.
    pub fn over(&self, files: &[PathBuf]) -> Result<String> {
        let mut hasher = Sha256::new();
        for path in files {
            let entry = self.of(path).map_err(|e| Error::unreadable(path, e))?;
            let byte = |at: usize| u8::from_str_radix(&entry.sha256[at..at + 2], 16);
            let digest = (0..entry.sha256.len()).step_by(2).map(byte).collect::<Result<Vec<u8>, _>>();
            hasher.update(digest.map_err(|e| Error::run(e.to_string()))?);
        }
        Ok(hex(&hasher.finalize()))
    }
}

/// A model's folder: weights, config, tokenizer, the text of its licence, and where it says that it comes from.
pub fn folder(kind: &str, dir: &Path, digests: &Digests) -> Result<Source> {
    let model = folder_files(dir)?;
    let license = license::of(dir, None);
    let text = license.iter().filter_map(|license| license.text.as_deref());
    let beside = TokenizerFiles::NAMES.into_iter().chain([WEIGHTS_INDEX, layout::PROVENANCE]).chain(text);
    let beside = beside.map(|name| dir.join(name)).filter(|path| path.is_file());
    let files: Vec<PathBuf> = model.iter().cloned().chain(beside).collect();
    Ok(Source {
        kind: kind.into(),
        path: dir.to_owned(),
        hub: hub::id_of(dir),
        weights: Some(digests.over(&model)?),
        license,
        files: digests.entries(&files)?,
        ..Source::default()
    })
}

const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// A GGUF file, and the text of a licence beside it.
pub fn gguf(path: &Path, digests: &Digests) -> Result<Source> {
    let own = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let told = match Gguf::open(path)?.header.metadata.get("general.license") {
        Some(Value::Text(id)) => Some((id.clone(), own.as_str())),
        _ => None,
    };
    let dir = path.parent().unwrap_or(Path::new(""));
    let license = license::of(dir, told);
    let text = license.as_ref().and_then(|license| license.text.as_deref()).map(|name| dir.join(name));
    let files: Vec<PathBuf> = std::iter::once(path.to_owned()).chain(text).collect();
    Ok(Source {
        kind: "gguf".into(),
        path: path.to_owned(),
        hub: hub::id_of(path),
        weights: Some(digests.over(&files[..1])?),
        license,
        files: digests.entries(&files)?,
        ..Source::default()
    })
}

/// A teacher's cache: who spoke, and what of it the run reads. Rows may come to it later.
pub fn cache(path: &Path, cache: &Reader, rows: &[u8; 32]) -> Result<Source> {
    let header = cache.header();
    Ok(Source {
        kind: "cache".into(),
        path: path.to_owned(),
        weights: Some(header.teacher.weights.clone()),
        vocabulary: Some(header.teacher.tokenizer.clone()),
        identity: Some(cache_identity(header)?),
        rows: Some(hex(rows)),
        ..Source::default()
    })
}

/// What a cache is, whichever rows are in it.
pub fn cache_identity(header: &Header) -> Result<String> {
    let mut bare = header.clone();
    bare.parts.clear();
    Ok(hex(&Sha256::digest(bare.to_bytes()?)))
}

/// A file alone, such as the config.json of a fresh student.
pub fn file(kind: &str, path: &Path, digests: &Digests) -> Result<Source> {
    let files = digests.entries(&[path.to_owned()])?;
    Ok(Source { kind: kind.into(), path: path.to_owned(), files, ..Source::default() })
}

/// A tokenizer, as it was read: the files of its folder, or the GGUF file that it was made from.
pub fn tokenizer(tokenizer: &TextTokenizer, digests: &Digests) -> Result<Source> {
    let origin = &std::path::absolute(tokenizer.origin()).map_err(|e| Error::unreadable(tokenizer.origin(), e))?;
    let files = tokenizer.files();
    let vocabulary = Some(hex(&tokenizer.vocabulary_digest()));
    if !origin.is_dir() {
        return Ok(Source { vocabulary, ..file("gguf", origin, digests)? });
    }
    // What the folder lacked came from the teacher's file.
    let own = files.own().filter(|(name, _)| origin.join(name).is_file());
    let entry = |content: &[u8]| FileEntry { size: content.len() as u64, sha256: hex(&Sha256::digest(content)) };
    let files = own.map(|(name, content)| (name.to_owned(), entry(content))).collect();
    let (kind, path, hub) = ("folder".into(), origin.clone(), hub::id_of(origin));
    Ok(Source { kind, path, hub, vocabulary, files, ..Source::default() })
}
