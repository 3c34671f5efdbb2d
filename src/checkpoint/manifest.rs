//! manifest.json: what a checkpoint consists of, and the check that it still does.
//!
//! A safetensors file that lost its last pages to a power cut keeps its length and passes its own check. Only a digest
//! tells, so every file has one, and the manifest has one of itself.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::layout::{self, MANIFEST};
use crate::error::{Error, Result};
use crate::units::hex;

/// The manifest's format, raised when its meaning changes. Format 1 has neither tool nor parent.
pub const FORMAT: u32 = 2;

/// Size and digest of every file of a checkpoint but manifest.json itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    /// Optimizer steps done when it was written.
    pub step: u64,
    /// What wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<Tool>,
    /// What the run went on from; absent of its first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// By file name.
    pub files: BTreeMap<String, FileEntry>,
    /// SHA-256 of the manifest with this field empty.
    digest: String,
}

/// A program and its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    pub name: String,
    pub version: String,
}

impl Tool {
    /// This program.
    pub fn this() -> Self {
        Self { name: env!("CARGO_PKG_NAME").into(), version: env!("CARGO_PKG_VERSION").into() }
    }
}

/// The checkpoint before in the line that led to this one: the one saved before it, or the one that the run was resumed
/// from. It depends on where a run was interrupted, so it is no part of what makes two checkpoints the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// Its folder's name.
    pub folder: String,
    /// The digest that its manifest has of itself, or, of format 1, had.
    pub manifest: String,
}

/// One file as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// In bytes.
    pub size: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
}

impl FileEntry {
    /// A file as it is now.
    pub fn of(path: &Path) -> io::Result<Self> {
        hash_file(path).map(|(size, sha256)| Self { size, sha256 })
    }

    /// Whether `file` is still that; reads no more of it than it takes to tell.
    pub fn damage(&self, file: PathBuf) -> Option<Damage> {
        let check = || -> io::Result<Option<Damage>> {
            let found = fs::metadata(&file)?.len();
            if found != self.size {
                return Ok(Some(Damage::Size { file: file.clone(), expected: self.size, found }));
            }
            let (_, sha256) = hash_file(&file)?;
            let same = sha256 == self.sha256;
            Ok((!same).then(|| Damage::Digest { file: file.clone(), expected: self.size }))
        };
        check().unwrap_or_else(|cause| Some(unreadable(&file, cause)))
    }
}

/// What is wrong with a checkpoint. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error("{} is missing", .0.display())]
    Missing(PathBuf),
    #[error("{} has {found} bytes, {expected} were written", .file.display())]
    Size { file: PathBuf, expected: u64, found: u64 },
    #[error("{} has {expected} bytes as written, but its content changed (SHA-256)", .file.display())]
    Digest { file: PathBuf, expected: u64 },
    #[error("{} was altered or is incomplete: {reason}", .file.display())]
    Manifest { file: PathBuf, reason: String },
    #[error("{} belongs to step {found}", .file.display())]
    Step { file: PathBuf, found: u64 },
    #[error("{} has format {found}; this version reads up to {FORMAT}", .file.display())]
    Format { file: PathBuf, found: u64 },
    #[error("{} has format {found}, which a newer version of distill wrote", .file.display())]
    NewerProvenance { file: PathBuf, found: u64 },
    #[error("{} cannot be read: {cause}", .file.display())]
    Unreadable { file: PathBuf, cause: io::Error },
    #[error("{} names no checkpoint: {text:?}", .file.display())]
    Pointer { file: PathBuf, text: String },
}

impl Damage {
    /// The file that is damaged.
    pub fn file(&self) -> &Path {
        match self {
            Self::Missing(file) => file,
            Self::Size { file, .. }
            | Self::Digest { file, .. }
            | Self::Manifest { file, .. }
            | Self::Step { file, .. }
            | Self::Format { file, .. }
            | Self::NewerProvenance { file, .. }
            | Self::Unreadable { file, .. }
            | Self::Pointer { file, .. } => file,
        }
    }
}

impl Manifest {
    /// Describes the files in `dir` as they are now. Reads them all, in constant memory.
    ///
    /// Errors: a file cannot be read, or `dir` holds something that is no file, or nothing.
    pub fn of(dir: &Path, step: u64, parent: Option<Parent>) -> Result<Self> {
        let files = describe(dir, MANIFEST)?;
        let (tool, digest) = (Some(Tool::this()), String::new());
        Ok(Self { format: FORMAT, step, tool, parent, files, digest }.sealed())
    }

    /// Whether `other` describes the same checkpoint: the same files at the same step, wherever the run came from.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.step, &self.files) == (other.step, &other.files)
    }

    /// As the parent of the checkpoint that follows.
    pub fn as_parent(&self) -> Parent {
        Parent { folder: layout::folder_name(self.step), manifest: self.digest.clone() }
    }

    /// Reads and checks manifest.json of `dir`, not yet the files it lists.
    pub fn read(dir: &Path) -> Result<Self, Damage> {
        let file = dir.join(MANIFEST);
        let bytes = fs::read(&file).map_err(|cause| unreadable(&file, cause))?;
        let altered = |reason: &str| Damage::Manifest { file: file.clone(), reason: reason.to_owned() };
        let json: serde_json::Value = serde_json::from_slice(&bytes).map_err(|cause| altered(&cause.to_string()))?;
        match json["format"].as_u64() {
            Some(found) if found > FORMAT.into() => return Err(Damage::Format { file, found }),
            _ => {}
        }
        let manifest: Self = serde_json::from_value(json).map_err(|cause| altered(&cause.to_string()))?;
        if manifest.tool.is_none() && manifest.format > 1 {
            return Err(altered("it does not say what wrote it"));
        }
        // Compared as bytes: no altered byte, not even white space, goes unnoticed.
        if manifest.clone().sealed().to_bytes() != bytes {
            return Err(altered("its own digest does not match"));
        }
        // A name from disk never leads out of the folder.
        match manifest.files.keys().find(|name| Path::new(name).file_name() != Some(name.as_ref())) {
            Some(name) => Err(altered(&format!("{name:?} is no file name"))),
            None => Ok(manifest),
        }
    }

    /// [`Self::read`], and it belongs to the folder it lies in.
    pub fn read_in(dir: &Path) -> Result<Self, Damage> {
        let manifest = Self::read(dir)?;
        let named = dir.file_name().and_then(|name| layout::parse_folder_name(name.to_str()?));
        match named.is_some_and(|step| step != manifest.step) {
            true => Err(Damage::Step { file: dir.join(MANIFEST), found: manifest.step }),
            false => Ok(manifest),
        }
    }

    /// The bytes of manifest.json.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("a manifest is plain data");
        bytes.push(b'\n');
        bytes
    }

    fn sealed(mut self) -> Self {
        self.digest.clear();
        self.digest = hex(&Sha256::digest(self.to_bytes()));
        self
    }
}

/// Size and digest of every file in `dir` but `itself`, by name. Reads them all, in constant memory, one after the other: beside a
/// training, in whose pool a task of this size would stand in the way.
///
/// Errors: a file cannot be read, or `dir` holds something that is no file, or nothing.
pub fn describe(dir: &Path, itself: &str) -> Result<BTreeMap<String, FileEntry>> {
    let failed = |cause: io::Error| Error::run(format!("cannot read back {}: {cause}", dir.display()));
    let mut names = vec![];
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        match entry.file_name().into_string() {
            Ok(name) if name == itself => {}
            Ok(name) if entry.path().is_file() => names.push(name),
            _ => return Err(Error::run(format!("{} is no plain file", entry.path().display()))),
        }
    }
    if names.is_empty() {
        return Err(Error::run(format!("nothing was written to {}", dir.display())));
    }
    let describe = |name: String| {
        let path = dir.join(&name);
        let entry = FileEntry::of(&path)
            .map_err(|cause| Error::run(format!("cannot read back {}: {cause}", path.display())))?;
        Ok((name, entry))
    };
    names.into_iter().map(describe).collect()
}

/// Checks every file of the checkpoint `dir` against its manifest, sizes first. Reads them all, in constant memory.
///
/// A file that the manifest does not list is no damage: notes beside a checkpoint must not cost the training it holds.
pub fn verify(dir: &Path) -> Result<Manifest, Damage> {
    if !dir.is_dir() {
        return Err(Damage::Missing(dir.to_owned()));
    }
    let manifest = Manifest::read_in(dir)?;
    for (name, entry) in &manifest.files {
        let file = dir.join(name);
        let found = fs::metadata(&file).map_err(|cause| unreadable(&file, cause))?.len();
        if found != entry.size {
            return Err(Damage::Size { file, expected: entry.size, found });
        }
    }
    // In name order, so that the same damage always gives the same message.
    match manifest.files.iter().find_map(|(name, entry)| entry.damage(dir.join(name))) {
        Some(damage) => Err(damage),
        None => Ok(manifest),
    }
}

/// SHA-256 of a file in lower-case hexadecimal, and its size in bytes.
pub fn hash_file(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let (mut hasher, mut size) = (Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((size, hex(&hasher.finalize()))),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                size += n as u64;
            }
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
}

pub(super) fn unreadable(file: &Path, cause: io::Error) -> Damage {
    match cause.kind() {
        io::ErrorKind::NotFound => Damage::Missing(file.to_owned()),
        _ => Damage::Unreadable { file: file.to_owned(), cause },
    }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
