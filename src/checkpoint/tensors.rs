//! Safetensors files, written as a stream of reproducible bytes and read back as f32.
//!
//! The `safetensors` crate's own writer sorts metadata by a hash map; here the same tensors give the same bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use half::bf16;
use serde::{Deserialize, Serialize};

use super::atomic::Unsynced;
use crate::error::{Error, Result};
use crate::kernels::{Adapter, Weight, with_f32};

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    F32,
    /// Rounded to nearest, ties to even.
    Bf16,
}

impl Dtype {
    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
        }
    }
}

/// Where a tensor's numbers are, in row-major order.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    /// On any device; one tensor at a time is copied.
    Tensor(&'a Tensor),
    /// However it is held; one at a time is unpacked.
    Weight(&'a Weight),
    /// Merged with its adapter, one at a time.
    Adapted(&'a Weight, &'a Adapter),
    /// The outputs of several linear layers side by side, matrices as `[in, out]`: GPT-2's `Conv1D`, or its bias. One at a time
    /// is unpacked, and merged with its adapter.
    Conv1d(&'a [(&'a Weight, Option<Adapter>)]),
}

/// One tensor to be written.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    pub name: &'a str,
    pub shape: &'a [usize],
    pub values: Values<'a>,
}

#[derive(Serialize, Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// Writes `entries`, sorted by name and stored as `dtype`, with the metadata `{"format": "pt"}` that transformers
/// requires and `metadata` besides. Memory: 64 KiB, and one tensor unless they are slices.
///
/// Errors (exit 1): the disk (the path is named); two entries of one name; a shape that does not fit its values.
pub fn write_safetensors<'a>(
    path: &Path,
    entries: impl IntoIterator<Item = Entry<'a>>,
    dtype: Dtype,
    metadata: &BTreeMap<String, String>,
) -> Result<Unsynced> {
    let mut entries: Vec<Entry> = entries.into_iter().collect();
    entries.sort_by_key(|entry| entry.name);
    let header = header(&entries, dtype, metadata)?;
    let unwritable = |cause| Error::unwritable(path, cause);
    let mut file = BufWriter::with_capacity(1 << 16, File::create(path).map_err(unwritable)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(unwritable)?;
    file.write_all(&header).map_err(unwritable)?;
    for entry in &entries {
        let written = match entry.values {
            Values::F32(values) => write_f32(&mut file, values, dtype),
            Values::Bf16(values) => write_bf16(&mut file, values, dtype),
            Values::Tensor(tensor) => write_tensor(&mut file, tensor, dtype)?,
            Values::Weight(weight) => write_tensor(&mut file, &weight.values()?, dtype)?,
            Values::Adapted(weight, adapter) => write_tensor(&mut file, &adapter.merged(&weight.values()?)?, dtype)?,
            Values::Conv1d(layers) => write_tensor(&mut file, &conv1d(layers)?, dtype)?,
        };
        written.map_err(unwritable)?;
    }
    let file = file.into_inner().map_err(|error| unwritable(error.into_error()))?;
    Ok(Unsynced::of(path, file))
}

/// The JSON header, padded with spaces so that the numbers start at a multiple of 8.
fn header(entries: &[Entry], dtype: Dtype, metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut meta = metadata.clone();
    meta.insert("format".into(), "pt".into());
    let mut header = serde_json::Map::new();
    let json = |value| serde_json::to_value(value).expect("a header entry is plain data");
    header.insert("__metadata__".into(), serde_json::to_value(meta).expect("strings are plain data"));
    let mut start = 0;
    for entry in entries {
        let count = match entry.values {
            Values::F32(values) => values.len(),
            Values::Bf16(values) => values.len(),
            Values::Tensor(tensor) => tensor.elem_count(),
            Values::Weight(weight) | Values::Adapted(weight, _) => weight.dims().iter().product(),
            Values::Conv1d(layers) => layers.iter().map(|(weight, _)| weight.dims().iter().product::<usize>()).sum(),
        };
        let Entry { name, shape, .. } = entry;
        if shape.iter().try_fold(1, |n: usize, &d| n.checked_mul(d)) != Some(count) {
            return Err(Error::run(format!("tensor {name:?} has shape {shape:?} but {count} values")));
        }
        let end = start + (count * dtype.size()) as u64;
        let info = Info { dtype: dtype.name().to_owned(), shape: shape.to_vec(), data_offsets: (start, end) };
        if header.insert((*name).to_owned(), json(info)).is_some() {
            return Err(Error::run(format!("two tensors are named {name:?}")));
        }
        start = end;
    }
    let mut header = serde_json::to_vec(&header).expect("a header is plain data");
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

/// Several layers' matrices `[out, in]` or biases `[out]` as one `[in, Σ out]` or `[Σ out]`.
fn conv1d(layers: &[(&Weight, Option<Adapter>)]) -> Result<Tensor> {
    let values = layers.iter().map(|(weight, adapter)| {
        let values = weight.values()?;
        Ok(match adapter {
            Some(adapter) => adapter.merged(&values)?,
            None => values,
        })
    });
    let all = Tensor::cat(&values.collect::<Result<Vec<_>>>()?, 0)?;
    Ok(if all.rank() == 2 { all.t()?.contiguous()? } else { all })
}

/// The inner result is the disk's.
fn write_tensor(file: &mut impl Write, tensor: &Tensor, dtype: Dtype) -> Result<std::io::Result<()>> {
    let flat = tensor.detach().flatten_all()?;
    Ok(match (tensor.dtype(), tensor.device()) {
        (DType::F32, Device::Cpu) => with_f32(&flat, |values| write_f32(file, values, dtype))?,
        (DType::BF16, _) => write_bf16(file, &flat.to_vec1()?, dtype),
        _ => write_f32(file, &flat.to_dtype(DType::F32)?.to_vec1()?, dtype),
    })
}

fn write_f32(file: &mut impl Write, values: &[f32], dtype: Dtype) -> std::io::Result<()> {
    match dtype {
        Dtype::F32 => write_all(file, values, |v| v.to_le_bytes()),
        Dtype::Bf16 => write_all(file, values, |v| bf16::from_f32(*v).to_le_bytes()),
    }
}

fn write_bf16(file: &mut impl Write, values: &[bf16], dtype: Dtype) -> std::io::Result<()> {
    match dtype {
        Dtype::F32 => write_all(file, values, |v| v.to_f32().to_le_bytes()),
        Dtype::Bf16 => write_all(file, values, |v| v.to_le_bytes()),
    }
}

/// Converts in blocks: a write per number would cost more than the disk.
fn write_all<T, const N: usize>(
    file: &mut impl Write,
    values: &[T],
    bytes: impl Fn(&T) -> [u8; N],
) -> std::io::Result<()> {
    let mut block = Vec::with_capacity(1 << 16);
    for chunk in values.chunks((1 << 16) / N) {
        block.clear();
        block.extend(chunk.iter().flat_map(&bytes));
        file.write_all(&block)?;
    }
    Ok(())
}

/// Tensors by name: shape and row-major values.
pub type Arrays = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Reads every tensor of an F32 or BF16 file as (shape, row-major values), by name. Holds the values once.
///
/// Errors (exit 1): the file cannot be read, is malformed, or holds another dtype. Allocation is bounded by its length.
pub fn read_safetensors_f32(path: &Path) -> Result<Arrays> {
    let unreadable = |cause: std::io::Error| Error::run(format!("cannot read {}: {cause}", path.display()));
    let malformed = |what: String| Error::run(format!("{} is no valid safetensors file: {what}", path.display()));
    let mut file = File::open(path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(unreadable)?;
    let size = u64::from_le_bytes(size);
    if size > length.saturating_sub(8) {
        return Err(malformed(format!("its header claims {size} bytes of {length}")));
    }
    let mut header = vec![0; size as usize];
    file.read_exact(&mut header).map_err(unreadable)?;
    let mut header: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&header).map_err(|cause| malformed(cause.to_string()))?;
    header.remove("__metadata__");
    let mut infos = vec![];
    for (name, value) in header {
        let info: Info = serde_json::from_value(value).map_err(|cause| malformed(format!("{name:?}: {cause}")))?;
        infos.push((info.data_offsets, name, info));
    }
    infos.sort_by_key(|(offsets, ..)| *offsets);
    let (mut position, mut tensors) = (0, BTreeMap::new());
    for (offsets, name, info) in infos {
        let dtype = match info.dtype.as_str() {
            "F32" => Dtype::F32,
            "BF16" => Dtype::Bf16,
            other => return Err(malformed(format!("{name:?} is {other}, expected F32 or BF16"))),
        };
        let count = info.shape.iter().try_fold(1, |n: usize, &d| n.checked_mul(d));
        let bytes = count.and_then(|n| n.checked_mul(dtype.size())).map(|n| n as u64);
        if offsets.0 != position || offsets.1.checked_sub(offsets.0) != bytes || offsets.1 > length - 8 - size {
            return Err(malformed(format!("{name:?} does not fit: shape {:?} at {offsets:?}", info.shape)));
        }
        position = offsets.1;
        let values = read_values(&mut file, count.unwrap_or(0), dtype).map_err(unreadable)?;
        tensors.insert(name, (info.shape, values));
    }
    match length - 8 - size - position {
        0 => Ok(tensors),
        rest => Err(malformed(format!("{rest} bytes belong to no tensor"))),
    }
}

fn read_values(file: &mut File, count: usize, dtype: Dtype) -> std::io::Result<Vec<f32>> {
    let mut values = Vec::with_capacity(count);
    let mut block = vec![0; 1 << 16];
    while values.len() < count {
        let n = ((count - values.len()) * dtype.size()).min(block.len());
        file.read_exact(&mut block[..n])?;
        match dtype {
            Dtype::F32 => values.extend(block[..n].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
            Dtype::Bf16 => values.extend(block[..n].as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
        }
    }
    Ok(values)
}

#[cfg(test)]
#[path = "tensors_tests.rs"]
mod tests;
