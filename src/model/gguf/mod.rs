//! GGUF files: llama.cpp's format, one file with metadata, vocabulary and quantised weights.

mod config;
mod header;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::{Device, Tensor};
use rayon::prelude::*;

pub use header::{Header, TensorInfo, Value};

use super::config::{Family, ModelConfig};
use super::decoder::Decoder;
use super::parameter::Parameters;
use super::tensors::{EMBEDDING, HEAD, TensorSpec};
use super::weights;
use crate::error::{Error, Result};
use crate::hub;
use crate::kernels::{Precision, Quantised, Weight};

/// An open file whose header was read and held against it.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    file: File,
    pub header: Header,
    pub config: ModelConfig,
}

/// Each tensor's name in a GGUF file: the part of a block's after `blk.N.`.
const BLOCK_NAMES: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The GGUF name of a Hugging Face tensor; None of one that such files do not have.
pub fn gguf_name(name: &str) -> Option<String> {
    match name {
        EMBEDDING => return Some("token_embd.weight".into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        HEAD => return Some("output.weight".into()),
        _ => {}
    }
    let (block, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    let (_, short) = BLOCK_NAMES.iter().find(|(long, _)| *long == module)?;
    Some(format!("blk.{block}.{short}.{kind}"))
}

impl Gguf {
    /// Opens a file and checks all of its header, and that its tensors are those of the model it says it is.
    pub fn open(path: &Path) -> Result<Self> {
        if !std::fs::metadata(path).map_err(|e| Error::unreadable(path, e))?.is_file() {
            return Err(Error::input(format!("{} is not a regular file", path.display())));
        }
        let file = File::open(path).map_err(|e| Error::unreadable(path, e))?;
        let size = file.metadata().map_err(|e| Error::unreadable(path, e))?.len();
        let mut head = [0; 256];
        let n = file.read_at(&mut head, 0).map_err(|e| Error::unreadable(path, e))?;
        hub::not_a_pointer(path, &head[..n])?;
        let at = |message: String| Error::input(format!("{}: {message}", path.display()));
        let header = header::read(BufReader::new(&file), size).map_err(at)?;
        let factors = match header.tensors.get("rope_freqs.weight") {
            Some(info) if info.dtype == GgmlDType::F32 => Some(floats(&read(&file, path, info)?)),
            Some(info) => return Err(at(format!("rope_freqs.weight is {:?}, not F32", info.dtype))),
            None => None,
        };
        let config = config::read(&header, factors.as_deref()).map_err(|e| e.context(path.display()))?;
        let gguf = Self { path: path.to_owned(), file, header, config };
        gguf.check_tensors()?;
        Ok(gguf)
    }

    /// Missing, unexpected and misshapen tensors, all at once.
    fn check_tensors(&self) -> Result<()> {
        let mut problems = vec![];
        let mut known = BTreeSet::from(["rope_freqs.weight".to_owned()]);
        for spec in self.config.tensors() {
            let name = gguf_name(&spec.name).unwrap_or_default();
            match self.header.tensors.get(&name) {
                None => problems.push(format!("missing: {name}")),
                Some(info) if info.shape != spec.shape => {
                    problems.push(format!("misshapen: {name} is {:?}, not {:?}", info.shape, spec.shape));
                }
                Some(_) => {}
            }
            known.insert(name);
        }
        let unexpected = self.header.tensors.keys().filter(|name| !known.contains(*name));
        problems.extend(unexpected.map(|name| format!("unexpected: {}", name.escape_debug())));
        if problems.is_empty() {
            return Ok(());
        }
        const SHOWN: usize = 8;
        let more = problems.len().saturating_sub(SHOWN);
        problems.truncate(SHOWN);
        if more > 0 {
            problems.push(format!("and {more} more"));
        }
        let list = problems.join("\n  ");
        Err(Error::input(format!("{}: the tensors do not fit its metadata:\n  {list}", self.path.display())))
    }

    /// The vocabulary, by id; an input error where the file has none.
    pub fn tokens(&self) -> Result<&[String]> {
        match self.header.metadata.get("tokenizer.ggml.tokens") {
            Some(Value::Texts(tokens)) => Ok(tokens),
            _ => Err(Error::input(format!("{} has no vocabulary (tokenizer.ggml.tokens)", self.path.display()))),
        }
    }

    /// Which row of the stored tensor is row i. Files of the llama architecture hold the rows of queries and keys in the
    /// order of an interleaved rotation; ours is that of halves.
    fn source(&self, spec: &TensorSpec) -> impl Fn(usize) -> usize + use<> {
        let d = self.config.head_dim;
        let rotated = [".q_proj.", ".k_proj."].iter().any(|part| spec.name.contains(part));
        let interleaved = rotated && self.config.family == Family::Llama;
        move |i| match interleaved {
            false => i,
            true => i / d * d + 2 * (i % d % (d / 2)) + i % d / (d / 2),
        }
    }

    /// One tensor of the model as it is held: norms and biases in f32, matrices as they are stored.
    fn weight(&self, spec: &TensorSpec, precision: Precision) -> Result<Weight> {
        let name = gguf_name(&spec.name).unwrap_or_default();
        let info = self.header.tensors.get(&name).ok_or_else(|| Error::run(format!("{name} was not read")))?;
        let bytes = read(&self.file, &self.path, info)?;
        if let Some(at) = Quantised::first_not_finite(&bytes, info.dtype) {
            let (file, at) = (self.path.display(), weights::index(at, &info.shape));
            let place = if info.dtype.block_size() > 1 { "in the block that begins at" } else { "at" };
            return Err(Error::input(format!("{file}: tensor {name} holds NaN or infinity {place} {at}")));
        }
        let source = self.source(spec);
        match *spec.shape {
            [outer, inner] => {
                let matrix = Quantised::new(&bytes, info.dtype, [outer, inner], source)?;
                Ok(Weight::Quantised(Arc::new(matrix), precision))
            }
            _ => {
                let n = spec.elements();
                let stored = Quantised::new(&bytes, info.dtype, [1, n], |i| i)?.values()?;
                let values: Vec<f32> = (0..n).map(|i| stored[source(i)]).collect();
                Ok(Weight::Dense(Tensor::from_vec(values, n, &Device::Cpu)?))
            }
        }
    }

    /// The model, frozen, its matrices quantised as they are in the file. Products round to `precision`.
    pub fn decoder(&self, precision: Precision) -> Result<Decoder> {
        let specs = self.config.tensors();
        let weights: BTreeMap<String, Weight> = specs
            .par_iter()
            .map(|spec| Ok((spec.name.clone(), self.weight(spec, precision)?)))
            .collect::<Result<_>>()?;
        Decoder::from_parameters(self.config.clone(), Parameters::frozen(weights))
    }

    /// [`Self::types`], the largest share first: "Q4_1, Q8_0, F32".
    pub fn types_in_words(&self) -> String {
        let mut types = self.types();
        types.sort_by_key(|(_, _, bytes)| std::cmp::Reverse(*bytes));
        types.into_iter().map(|(name, _, _)| name).collect::<Vec<_>>().join(", ")
    }

    /// The types its matrices are held in, with the number of tensors and bytes of each.
    pub fn types(&self) -> Vec<(String, usize, usize)> {
        let mut types: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for info in self.header.tensors.values() {
            let (count, bytes) = types.entry(format!("{:?}", info.dtype)).or_default();
            (*count, *bytes) = (*count + 1, *bytes + info.bytes);
        }
        types.into_iter().map(|(name, (count, bytes))| (name, count, bytes)).collect()
    }
}

/// A tensor's bytes.
fn read(file: &File, path: &Path, info: &TensorInfo) -> Result<Vec<u8>> {
    let mut bytes = vec![0; info.bytes];
    file.read_exact_at(&mut bytes, info.offset).map_err(|e| Error::unreadable(path, e))?;
    Ok(bytes)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
