//! Students: where the weights that learn come from, and the Hugging Face folder they go to.

mod folder;
mod fresh;

use std::collections::BTreeMap;

use candle_core::Tensor;

pub use folder::{Companions, write_model};
pub use fresh::fresh_weights;

use crate::error::{Error, Result};
use crate::model::{Decoder, ModelConfig, Weights};

/// The config and weights of `model` with only the blocks `layers`, in that order. The weights are copies: training
/// them leaves `model` alone.
pub fn pruned(model: &Decoder, layers: &[usize]) -> Result<(ModelConfig, Weights)> {
    let config = model.config();
    if let Some(beyond) = layers.iter().find(|&&i| i >= config.layers) {
        return Err(Error::input(format!(
            "student.layers names layer {beyond}; the model it is cut from has layers 0 to {}",
            config.layers - 1
        )));
    }
    let cut = config.with_layers(layers);
    let sources = block_names(layers);
    let copies = cut.tensors().into_iter().map(|spec| {
        let source = source_name(&spec.name, &sources);
        let tensor: Tensor = model.parameters().get(&source)?.weight.values()?.copy()?;
        Ok((spec.name, tensor))
    });
    Ok((cut.clone(), copies.collect::<Result<_>>()?))
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
