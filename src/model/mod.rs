//! One trainable decoder for all Llama-like families, and the folders it is read from.

mod block;
mod config;
mod decoder;
mod generate;
mod kv_cache;
mod parameter;
mod rope;
mod tensors;
mod weights;

use std::path::Path;

pub use config::{Family, ModelConfig};
pub use decoder::{Decoder, Keep, Trace};
pub use generate::{Finish, GenerateOptions, generate};
pub use kv_cache::KvCache;
pub use parameter::{Parameter, Parameters};
pub use rope::RopeScaling;
pub use tensors::TensorSpec;
use weights::load_packed as load_packed_weights;
pub use weights::{Weights, load as load_weights, weight_files};

use crate::error::Result;

impl Decoder {
    /// Loads a Hugging Face model folder: config.json and its safetensors.
    pub fn load(folder: &Path, trainable: bool) -> Result<Self> {
        let config = ModelConfig::read(folder)?;
        let weights = load_weights(folder, &config)?;
        Self::new(config, weights, trainable)
    }

    /// Freezes `weights` with their matrices in bf16.
    pub fn packed(config: ModelConfig, weights: Weights) -> Result<Self> {
        let pack = |(name, tensor)| Ok((name, weights::pack(tensor)?));
        Self::from_parameters(config, Parameters::frozen(weights.into_iter().map(pack).collect::<Result<_>>()?))
    }

    /// Loads a folder to be frozen, its matrices in bf16.
    pub fn load_packed(folder: &Path) -> Result<Self> {
        let config = ModelConfig::read(folder)?;
        let weights = load_packed_weights(folder, &config)?;
        Self::from_parameters(config, Parameters::frozen(weights))
    }
}
