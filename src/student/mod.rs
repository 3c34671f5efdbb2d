//! Students: where the weights that learn come from, and the Hugging Face folder they go to.

mod folder;
mod fresh;
mod lora;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::Tensor;

pub use folder::{Companions, write_model};
pub use fresh::{fresh_weights, random_matrix};
pub use lora::{fresh_adapters, read_adapters, write_adapters};

use crate::error::{Error, Result};
use crate::model::{Decoder, ModelConfig, Weights, load_some_weights};

/// The config and weights of `model` with only the blocks `layers`, in that order. The weights are copies: training
/// them leaves `model` alone.
pub fn pruned(model: &Decoder, layers: &[usize]) -> Result<(ModelConfig, Weights)> {
    let cut = cut(model.config(), layers)?;
    let copies = sources(&cut, layers).map(|(name, source)| {
        let tensor: Tensor = model.parameters().get(&source)?.weight.values()?.copy()?;
        Ok((name, tensor))
    });
    let weights = copies.collect::<Result<_>>()?;
    Ok((cut, weights))
}

/// [`pruned`] of a model folder, of which only the tensors that are kept are read.
pub fn pruned_folder(folder: &Path, layers: &[usize]) -> Result<(ModelConfig, Weights)> {
    let whole = ModelConfig::read(folder)?;
    let cut = cut(&whole, layers)?;
    let kept: BTreeSet<String> = sources(&cut, layers).map(|(_, source)| source).collect();
    let mut read = load_some_weights(folder, &whole, |name| kept.contains(name))?;
    let renamed = sources(&cut, layers).map(|(name, source)| {
        let tensor = read.remove(&source).ok_or_else(|| Error::run(format!("{source} was not read")))?;
        Ok((name, tensor))
    });
    let weights = renamed.collect::<Result<_>>()?;
    Ok((cut, weights))
}

fn cut(config: &ModelConfig, layers: &[usize]) -> Result<ModelConfig> {
    if let Some(beyond) = layers.iter().find(|&&i| i >= config.layers) {
        return Err(Error::input(format!(
            "student.layers names layer {beyond}; the model it is cut from has layers 0 to {}",
            config.layers - 1
        )));
    }
    Ok(config.with_layers(layers))
}

/// Each tensor of the cut model with the one it comes from.
fn sources(cut: &ModelConfig, layers: &[usize]) -> impl Iterator<Item = (String, String)> {
    let blocks = block_names(layers);
    cut.tensors().into_iter().map(move |spec| {
        let source = source_name(&spec.name, &blocks);
        (spec.name, source)
    })
}

/// New block prefix → old block prefix.
fn block_names(layers: &[usize]) -> BTreeMap<String, String> {
    let prefix = |i: usize| format!("model.layers.{i}.");
    layers.iter().enumerate().map(|(new, &old)| (prefix(new), prefix(old))).collect()
}

fn source_name(name: &str, blocks: &BTreeMap<String, String>) -> String {
    blocks
        .iter()
        .find_map(|(new, old)| name.strip_prefix(new.as_str()).map(|rest| format!("{old}{rest}")))
        .unwrap_or_else(|| name.to_owned())
}
