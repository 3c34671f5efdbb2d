//! Writing a model as a Hugging Face folder that transformers loads as it is.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::checkpoint::{Dtype, Entry, Unsynced, Values, layout, write_safetensors};
use crate::corpus::TextTokenizer;
use crate::error::{Error, Result};
use crate::kernels::Weight;
use crate::model::Decoder;

/// What stands beside the weights: the tokenizer's files and the generation defaults. Held in memory, so that a source
/// folder that goes away during a run takes nothing with it.
#[derive(Debug, Clone)]
pub struct Companions(Vec<(&'static str, Arc<[u8]>)>);

impl Companions {
    /// Those of a tokenizer. A missing generation_config.json is made from its BOS and EOS ids.
    pub fn of(tokenizer: &TextTokenizer) -> Result<Self> {
        let mut companions: Vec<_> = tokenizer.files().own().map(|(name, content)| (name, content.clone())).collect();
        if !companions.iter().any(|(name, _)| *name == layout::GENERATION_CONFIG) {
            let mut config = serde_json::Map::new();
            if let Some(bos) = tokenizer.bos_id() {
                config.insert("bos_token_id".into(), bos.into());
            }
            match tokenizer.eos_ids() {
                [] => {}
                [one] => drop(config.insert("eos_token_id".into(), (*one).into())),
                several => drop(config.insert("eos_token_id".into(), several.into())),
            }
            let text = serde_json::to_vec_pretty(&config).map_err(|e| Error::run(e.to_string()))?;
            companions.push((layout::GENERATION_CONFIG, text.into()));
        }
        Ok(Self(companions))
    }

    /// SHA-256 over names and contents.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        for (name, content) in &self.0 {
            hasher.update(name);
            hasher.update(content.len().to_le_bytes());
            hasher.update(content);
        }
        hasher.finalize().into()
    }
}

/// Writes config.json, model.safetensors and the companions into the existing folder `dir`. Weights that are packed or
/// quantised are unpacked one at a time, and those with an adapter are merged with it.
///
/// Errors (exit 1): the disk.
pub fn write_model(dir: &Path, model: &Decoder, companions: &Companions, dtype: Dtype) -> Result<Unsynced> {
    let name = match dtype {
        Dtype::F32 => "float32",
        Dtype::Bf16 => "bfloat16",
    };
    let write = |name: &str, content: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, content).map_err(|e| Error::unwritable(&path, e))
    };
    write(layout::CONFIG, model.config().to_json(name).as_bytes())?;
    for (name, content) in &companions.0 {
        write(name, content)?;
    }
    let weight = |name: &str| {
        let parameter = model.parameters().get(name)?;
        let adapter = parameter.adapter.as_ref().map(|adapter| adapter.layer()).transpose()?;
        Ok::<_, Error>((&parameter.weight, adapter))
    };
    let stored = model.config().stored_tensors().into_iter().map(|stored| {
        let weights = stored.parts.iter().map(|part| weight(&part.name)).collect::<Result<Vec<_>>>()?;
        Ok((stored, weights))
    });
    let stored = stored.collect::<Result<Vec<_>>>()?;
    let entries = stored.iter().map(|(stored, weights)| {
        let values = match &weights[..] {
            _ if stored.conv1d => Values::Conv1d(weights),
            [(weight, Some(adapter)), ..] => Values::Adapted(weight, adapter),
            [(Weight::Dense(tensor), None)] => Values::Tensor(tensor),
            _ => Values::Weight(weights[0].0),
        };
        Entry { name: &stored.name, shape: &stored.shape, values }
    });
    write_safetensors(&dir.join(layout::MODEL), entries, dtype, &BTreeMap::new())
}
