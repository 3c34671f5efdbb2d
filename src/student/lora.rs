//! The first values of low-rank adapters, and the file they are kept in (LoRA: Hu et al. 2021, arXiv 2106.09685).

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Uniform};

use super::fresh::tensor_seed;
use crate::checkpoint::{Checkpoint, Dtype, Entry, Unsynced, Values, layout, read_safetensors_f32, write_safetensors};
use crate::error::{Error, Result};
use crate::model::{Adaptation, Decoder, Factors, ModelConfig, TensorSpec, Weights};

/// Adapters that change nothing yet, a function of `seed` and each tensor's name alone: A is uniform in ±1/√in, as the
/// paper's own implementation draws it, and B is 0.
///
/// # Errors
/// Those of [`Adaptation::factors`].
pub fn fresh_adapters(config: &ModelConfig, adaptation: &Adaptation, seed: u64) -> Result<Weights> {
    let random = |spec: TensorSpec| -> Result<(String, Tensor)> {
        let bound = 1.0 / (spec.shape[1] as f32).sqrt();
        let uniform = Uniform::new(-bound, bound).map_err(|e| Error::run(format!("{}: {e}", spec.name)))?;
        let rng = ChaCha8Rng::from_seed(tensor_seed(seed, &spec.name));
        let values: Vec<f32> = uniform.sample_iter(rng).take(spec.elements()).collect();
        Ok((spec.name, Tensor::from_vec(values, spec.shape, &Device::Cpu)?))
    };
    let zero = |spec: TensorSpec| -> Result<(String, Tensor)> {
        Ok((spec.name, Tensor::zeros(spec.shape, candle_core::DType::F32, &Device::Cpu)?))
    };
    let factors = adaptation.factors(config)?;
    factors.into_iter().flat_map(|Factors { a, b, .. }| [random(a), zero(b)]).collect()
}

/// Writes adapters.safetensors: the factors of `model` alone, in f32, under the names that PEFT gives them.
///
/// Errors (exit 1): the disk.
pub fn write_adapters(dir: &Path, model: &Decoder) -> Result<Unsynced> {
    let adapters = model.parameters().iter().filter_map(|p| p.adapter.as_deref());
    let factors: Vec<_> =
        adapters.flat_map(|adapter| [&adapter.a, &adapter.b]).map(|p| (p.spec(), &p.weight)).collect();
    let entries = factors.iter().map(|(spec, weight)| Entry {
        name: &spec.name,
        shape: &spec.shape,
        values: Values::Weight(weight),
    });
    write_safetensors(&dir.join(layout::ADAPTERS), entries, Dtype::F32, &BTreeMap::new())
}

/// The adapters of a verified checkpoint.
pub fn read_adapters(checkpoint: &Checkpoint) -> Result<Weights> {
    let read = read_safetensors_f32(&checkpoint.file(layout::ADAPTERS))?;
    read.into_iter().map(|(name, (shape, values))| Ok((name, Tensor::from_vec(values, shape, &Device::Cpu)?))).collect()
}
