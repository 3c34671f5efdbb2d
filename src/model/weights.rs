//! Reading a model folder's safetensors, single or sharded, as f32. The one module that maps files into memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::config::ModelConfig;
use super::stored::Stored;
use super::whole::whole;
use crate::error::{Error, Result};
use crate::hub;
use crate::kernels::{Precision, Weight, with_f32};

/// Tensors by name.
pub type Weights = BTreeMap<String, Tensor>;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The weight files of a model folder, each of them there and whole.
///
/// Input errors: there are none, a shard is missing or would lie elsewhere, a pointer, a download that broke off.
pub fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let files = named_files(folder)?;
    for file in &files {
        if !file.is_file() {
            let unfinished = file.parent().map_or(String::new(), hub::broken_off);
            return Err(Error::input(format!("the weight file {} does not exist{unfinished}", file.display())));
        }
        whole(file)?;
    }
    Ok(files)
}

fn named_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join(SINGLE);
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = folder.join(INDEX);
    if !index.is_file() {
        let (folder, unfinished) = (folder.display(), hub::broken_off(folder));
        return Err(Error::input(format!("{folder} holds neither {SINGLE} nor {INDEX}{unfinished}")));
    }
    let text = hub::read_text(&index)?;
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let parsed: Index = serde_json::from_str(&text)
        .map_err(|e| Error::input(format!("{}: not a weight index: {e}", index.display())))?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    names
        .into_iter()
        .map(|name| match Path::new(&name).file_name() {
            // A shard's name must not lead out of the folder. A link may: the hub's cache is made of them, and whoever puts one
            // there could have put a file.
            Some(file) if file == name.as_str() => Ok(folder.join(&name)),
            _ => Err(Error::input(format!("{}: the shard name {name:?} is not a plain file name", index.display()))),
        })
        .collect()
}

/// Loads exactly the tensors of `config` as f32. Missing, unexpected and misshapen tensors are all reported by name,
/// and so is a tensor that holds NaN or an infinity.
pub fn load(folder: &Path, config: &ModelConfig) -> Result<Weights> {
    load_each(folder, config, |_| true, Ok)
}

/// [`load`] of the tensors that are `wanted` by name; all of the folder's are held against `config`.
pub fn load_some(folder: &Path, config: &ModelConfig, wanted: impl Fn(&str) -> bool + Sync) -> Result<Weights> {
    load_each(folder, config, wanted, Ok)
}

/// [`load`] for a model that never learns: each matrix is packed as soon as it is read, so that no second copy of the model ever exists.
pub fn load_frozen(
    folder: &Path,
    config: &ModelConfig,
    precision: Precision,
    device: &Device,
) -> Result<BTreeMap<String, Weight>> {
    load_each(folder, config, |_| true, |tensor| Ok(Weight::frozen(tensor, precision, device)?))
}

fn load_each<T: Send>(
    folder: &Path,
    config: &ModelConfig,
    wanted: impl Fn(&str) -> bool + Sync,
    take: impl Fn(Tensor) -> Result<T> + Sync,
) -> Result<BTreeMap<String, T>> {
    let paths = weight_files(folder)?;
    let files = paths.iter().map(|file| open(file)).collect::<Result<Vec<_>>>()?;
    // By the names of `stored_tensors`: the file, and the name and shape there.
    let mut found: BTreeMap<String, Found> = BTreeMap::new();
    for (i, file) in files.iter().enumerate() {
        for (name, view) in file.tensors() {
            if let Some(stored) = config.stored_name(&name) {
                let here = Found { file: i, name, shape: view.shape().to_vec(), dtype: view.dtype() };
                if let Some(other) = found.insert(stored, here).filter(|other| other.file != i) {
                    let (a, b) = (paths[other.file].display(), paths[i].display());
                    return Err(Error::input(format!(
                        "tensor {} stands in {a} and in {b}: which is meant?",
                        other.name
                    )));
                }
            }
        }
    }
    let stored = config.stored_tensors();
    use safetensors::Dtype;
    let odd = |s: &&Found| !matches!(s.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16);
    if let Some(Found { name, dtype, .. }) = stored.iter().filter_map(|s| found.get(&s.name)).find(odd) {
        let folder = folder.display();
        return Err(Error::input(format!("{folder}: tensor {name} is {dtype}; read are F32, BF16 and F16")));
    }
    check(&stored, &found).map_err(|problems| {
        Error::input(format!("{}: the weights do not fit config.json:\n{problems}", folder.display()))
    })?;
    let read = stored.par_iter().filter(|stored| stored.parts.iter().any(|part| wanted(&part.name))).map(|stored| {
        let Found { file, name, .. } = &found[&stored.name];
        let tensor = files[*file].load(name, &Device::Cpu)?.to_dtype(DType::F32)?;
        if let Some(at) = with_f32(&tensor, |x| x.iter().position(|x| !x.is_finite()))? {
            let (file, at) = (paths[*file].display(), index(at, tensor.dims()));
            return Err(Error::input(format!("{file}: tensor {name} holds NaN or infinity at {at}")));
        }
        let parts = stored.split(tensor)?.into_iter().filter(|(name, _)| wanted(name));
        parts.map(|(name, tensor)| Ok((name, take(tensor)?))).collect::<Result<Vec<_>>>()
    });
    Ok(read.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// A tensor in a folder.
struct Found {
    file: usize,
    name: String,
    shape: Vec<usize>,
    dtype: safetensors::Dtype,
}

/// Where the element `at` of a tensor stands: `[row, column]`.
pub(super) fn index(mut at: usize, shape: &[usize]) -> String {
    let mut place: Vec<usize> = shape.iter().rev().map(|&n| (at % n.max(1), at /= n.max(1)).0).collect();
    place.reverse();
    format!("{place:?}")
}

fn open(file: &Path) -> Result<MmapedSafetensors> {
    // SAFETY: the file is mapped read-only; that nobody truncates a model while it is being read is the assumption of
    // every loader that maps files.
    unsafe { MmapedSafetensors::new(file) }.map_err(|e| {
        // Candle names the path too.
        let cause = e.to_string().replace(&format!("path: {file:?} "), "");
        Error::input(format!("{} is no valid safetensors file ({cause}): fetch it again", file.display()))
    })
}

/// Compares what is there with what the model needs; the answer lists every problem, a line each.
fn check(needed: &[Stored], found: &BTreeMap<String, Found>) -> Result<(), String> {
    let mut lines = vec![];
    let mut list = |title: &str, names: Vec<String>| {
        const SHOWN: usize = 8;
        if !names.is_empty() {
            let more = names.len().saturating_sub(SHOWN);
            let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
            lines.push(format!("  {title}: {}{tail}", names[..names.len().min(SHOWN)].join(", ")));
        }
    };
    let wanted: BTreeSet<&str> = needed.iter().map(|s| s.name.as_str()).collect();
    list("missing", wanted.iter().filter(|n| !found.contains_key(**n)).map(|n| n.to_string()).collect());
    let unexpected = found.iter().filter(|(stored, _)| !wanted.contains(stored.as_str()));
    list("unexpected", unexpected.map(|(_, f)| f.name.escape_debug().to_string()).collect());
    let misshapen = needed.iter().filter_map(|needed| {
        let Found { name, shape, .. } = found.get(&needed.name)?;
        (*shape != needed.shape).then(|| format!("{name} is {shape:?}, not {:?}", needed.shape))
    });
    list("misshapen", misshapen.collect());
    if lines.is_empty() { Ok(()) } else { Err(lines.join("\n")) }
}
