//! A student that knows nothing yet: the initialisation of GPT-2 (normal matrices, norms that multiply by 1, zero biases).

use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::model::{ModelConfig, NormKind, Weights};

/// Weights for `config`, a function of `seed` and each tensor's name alone: the order of tensors and the thread count
/// do not matter. Matrices are normal with the config's `initializer_range` as standard deviation, norms 1 (0 where
/// that is the distance from 1), biases 0.
pub fn fresh_weights(config: &ModelConfig, seed: u64) -> Result<Weights> {
    let normal = Normal::new(0.0f32, config.initializer_range() as f32)
        .map_err(|e| Error::input(format!("initializer_range: {e}")))?;
    let unit = if config.norm == NormKind::RmsFromOne { 0.0 } else { 1.0 };
    config
        .tensors()
        .into_iter()
        .map(|spec| {
            let values: Vec<f32> = if spec.decays() {
                let mut rng = ChaCha8Rng::from_seed(tensor_seed(seed, &spec.name));
                normal.sample_iter(&mut rng).take(spec.elements()).collect()
            } else {
                vec![if spec.name.ends_with("bias") { 0.0 } else { unit }; spec.elements()]
            };
            Ok((spec.name, Tensor::from_vec(values, spec.shape, &Device::Cpu)?))
        })
        .collect()
}

/// A normal matrix `[rows, columns]`, a function of `seed` and `name` alone.
pub fn random_matrix(name: &str, shape: (usize, usize), deviation: f64, seed: u64) -> Result<Tensor> {
    let normal = Normal::new(0.0f32, deviation as f32).map_err(|e| Error::input(format!("{name}: {e}")))?;
    let mut rng = ChaCha8Rng::from_seed(tensor_seed(seed, name));
    let values: Vec<f32> = normal.sample_iter(&mut rng).take(shape.0 * shape.1).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// The random numbers of one tensor.
pub(super) fn tensor_seed(seed: u64, name: &str) -> [u8; 32] {
    Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_depend_on_the_seed_and_have_the_asked_spread() {
        let config = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
            "num_attention_heads": 4, "vocab_size": 300, "rope_theta": 10000, "initializer_range": 0.05}"#;
        let config = ModelConfig::from_json(config).unwrap();
        let values = |seed| -> Vec<f32> {
            fresh_weights(&config, seed).unwrap()["model.embed_tokens.weight"].flatten_all().unwrap().to_vec1().unwrap()
        };
        let (a, b) = (values(1), values(2));
        assert_eq!(a, values(1));
        assert_ne!(a, b);
        let deviation = (a.iter().map(|x| x * x).sum::<f32>() / a.len() as f32).sqrt();
        assert!((deviation - 0.05).abs() < 0.001, "{deviation}");
    }
}
