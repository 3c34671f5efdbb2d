//! One trainable decoder for all Llama-like families, and the folders it is read from.

mod adapters;
mod block;
mod config;
mod decoder;
mod generate;
pub mod gguf;
mod kv_cache;
mod parameter;
mod passage;
mod rope;
mod tensors;
mod weights;

use std::path::Path;

pub use adapters::{Adaptation, Factors};
pub use config::{Family, ModelConfig};
pub use decoder::{Decoder, Keep, Trace};
pub use generate::{Finish, GenerateOptions, generate};
pub use gguf::Gguf;
pub use kv_cache::KvCache;
pub use parameter::{LowRank, Parameter, Parameters};
pub use passage::Passage;
pub use rope::RopeScaling;
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

    /// Loads a folder to be frozen, its matrices packed.
    pub fn load_frozen(folder: &Path, precision: Precision, device: &Device) -> Result<Self> {
        let config = ModelConfig::read(folder)?;
        let parameters = Parameters::frozen(load_frozen_weights(folder, &config, precision, device)?);
        Self::from_parameters(config, parameters)
    }
}
