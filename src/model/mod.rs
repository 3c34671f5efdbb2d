//! One trainable decoder for all families, and the folders it is read from.

mod adapters;
mod block;
mod config;
mod decoder;
mod generate;
pub mod gguf;
mod kv_cache;
mod mlp;
mod norm;
mod parameter;
mod passage;
mod rope;
mod sample;
mod stored;
mod tensors;
mod weights;
#[cfg(test)]
mod weights_tests;
mod whole;

use std::path::Path;

pub use adapters::{Adaptation, Factors};
pub use config::{Family, Mlp, ModelConfig, NormKind};
pub use decoder::{Decoder, Keep, Trace};
pub use generate::{Finish, Prompt, generate, seed_of};
pub use gguf::Gguf;
pub use kv_cache::KvCache;
pub use parameter::{LowRank, Parameter, Parameters};
pub use passage::Passage;
pub use rope::{RopeScaling, Rotation};
pub use sample::{Sampler, Sampling};
pub use stored::Stored;
pub use tensors::TensorSpec;
use weights::load_frozen as load_frozen_weights;
pub use weights::{Weights, load as load_weights, load_some as load_some_weights, weight_files};

use candle_core::Device;

use crate::error::Result;
use crate::kernels::{Precision, Weight};

impl Decoder {
    /// Loads a Hugging Face model folder: config.json and its safetensors, onto `device`.
    pub fn load(folder: &Path, trainable: bool, device: &Device) -> Result<Self> {
        let config = ModelConfig::read(folder)?;
        let weights = load_weights(folder, &config)?;
        Self::new(config, weights, trainable, device)
    }

    /// Freezes `weights`, their matrices packed.
    pub fn frozen(config: ModelConfig, weights: Weights, precision: Precision, device: &Device) -> Result<Self> {
        let freeze = |(name, tensor)| Ok((name, Weight::frozen(tensor, precision, device)?));
        let parameters = Parameters::frozen(weights.into_iter().map(freeze).collect::<Result<_>>()?);
        Self::from_parameters(config, parameters)
    }

    /// A frozen copy as it is now, merged with its adapters, its matrices packed: what generates many tokens is worth packing.
    pub fn packed(&self) -> Result<Self> {
        let weight = |p: &Parameter| {
            let values = p.weight.values()?;
            let merged = match &p.adapter {
                Some(adapter) => adapter.layer()?.merged(&values)?,
                None => values,
            };
            Ok((p.name.clone(), merged))
        };
        let weights = self.parameters().iter().map(weight).collect::<Result<_>>()?;
        Self::frozen(self.config().clone(), weights, Precision::F32, self.device())
    }

    /// Loads a folder to be frozen, its matrices packed.
    pub fn load_frozen(folder: &Path, precision: Precision, device: &Device) -> Result<Self> {
        let config = ModelConfig::read(folder)?;
        let parameters = Parameters::frozen(load_frozen_weights(folder, &config, precision, device)?);
        Self::from_parameters(config, parameters)
    }
}
