//! Low-rank adapters of a frozen decoder (LoRA: Hu et al. 2021, arXiv 2106.09685): which matrices have them, and their names.

use std::collections::BTreeSet;

use candle_core::Device;

use super::config::ModelConfig;
use super::decoder::Decoder;
use super::parameter::Parameters;
use super::tensors::TensorSpec;
use super::weights::Weights;
use crate::device::moved;
use crate::error::{Error, Result};

/// What is adapted: W becomes W + (α / rank) B A, A `[rank, in]` and B `[out, rank]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Adaptation {
    pub rank: usize,
    pub alpha: f64,
    /// The last names of matrices in the blocks, such as `q_proj`; None: all of them.
    pub targets: Option<Vec<String>>,
}

/// A and B of one matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// The matrix.
    pub of: TensorSpec,
    pub a: TensorSpec,
    pub b: TensorSpec,
}

impl Adaptation {
    /// α / rank.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// The factors of every matrix that is adapted, as PEFT names them, in the model's order.
    ///
    /// # Errors
    /// An input error for a target that no block has, with those it has, and for a rank that a matrix does not have room for.
    pub fn factors(&self, config: &ModelConfig) -> Result<Vec<Factors>> {
        let specs = config.tensors();
        let matrices: Vec<(&TensorSpec, &str)> = specs.iter().filter_map(|s| Some((s, projection(s)?))).collect();
        let known: BTreeSet<&str> = matrices.iter().map(|(_, name)| *name).collect();
        if let Some(unknown) = self.targets.iter().flatten().find(|name| !known.contains(name.as_str())) {
            let known: Vec<&str> = known.into_iter().collect();
            return Err(Error::input(format!(
                "student.targets names {unknown:?}, which no block of the model has; its blocks' matrices are {}",
                known.join(", ")
            )));
        }
        let wanted = |name: &str| self.targets.as_ref().is_none_or(|targets| targets.iter().any(|t| t == name));
        matrices.into_iter().filter(|(_, name)| wanted(name)).map(|(spec, name)| self.of_matrix(spec, name)).collect()
    }

    fn of_matrix(&self, spec: &TensorSpec, name: &str) -> Result<Factors> {
        let [outer, inner] = spec.shape[..] else { return Err(Error::run(format!("{} is no matrix", spec.name))) };
        if self.rank > outer.min(inner) {
            return Err(Error::input(format!(
                "student.rank = {}, but {name} is {outer} × {inner}: a rank of more than {} adds nothing to it",
                self.rank,
                outer.min(inner)
            )));
        }
        let stem = spec.name.strip_suffix(".weight").unwrap_or(&spec.name);
        let factor = |letter: char, shape: [usize; 2]| TensorSpec {
            name: format!("base_model.model.{stem}.lora_{letter}.weight"),
            shape: shape.to_vec(),
        };
        Ok(Factors { of: spec.clone(), a: factor('A', [self.rank, inner]), b: factor('B', [outer, self.rank]) })
    }

    /// Parameters that learn.
    ///
    /// # Errors
    /// As [`Self::factors`].
    pub fn parameters(&self, config: &ModelConfig) -> Result<usize> {
        Ok(self.factors(config)?.iter().map(|f| f.a.elements() + f.b.elements()).sum())
    }
}

/// The last name of a block's matrix, `q_proj` of `model.layers.3.self_attn.q_proj.weight`; None of any other tensor. A block's
/// tensors are those with a number in their name, whatever a family calls them.
fn projection(spec: &TensorSpec) -> Option<&str> {
    let parts: Vec<&str> = spec.name.split('.').collect();
    let in_a_block = parts.iter().any(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    match parts[..] {
        [.., name, "weight"] if in_a_block && spec.shape.len() == 2 => Some(name),
        _ => None,
    }
}

impl Decoder {
    /// A decoder of which only the low-rank factors in `adapters` learn, on `device`: `weights` are those of `config`, frozen.
    ///
    /// # Errors
    /// Those of [`Adaptation::factors`]; a run error where `adapters` are not exactly the factors.
    pub fn adapted(
        config: ModelConfig,
        weights: Weights,
        adaptation: &Adaptation,
        mut adapters: Weights,
        device: &Device,
    ) -> Result<Self> {
        let there = weights.into_iter().map(|(name, tensor)| Ok((name, moved(&tensor, device)?)));
        let mut parameters = Parameters::new(there.collect::<Result<_>>()?, false)?;
        for Factors { of, a, b } in adaptation.factors(&config)? {
            let mut take = |spec: &TensorSpec| match adapters.remove(&spec.name) {
                Some(tensor) if tensor.dims() == spec.shape => Ok(moved(&tensor, device)?),
                Some(tensor) => {
                    let (name, found, wanted) = (&spec.name, tensor.dims(), &spec.shape);
                    Err(Error::run(format!("the adapter {name} is {found:?}, not {wanted:?}")))
                }
                None => Err(Error::run(format!("the adapter {} is missing", spec.name))),
            };
            let factors = [(a.name.clone(), take(&a)?), (b.name.clone(), take(&b)?)];
            parameters.adapt(&of.name, factors, adaptation.scale())?;
        }
        match adapters.keys().next() {
            Some(other) => Err(Error::run(format!("{other} is no adapter of this model and these student.targets"))),
            None => Self::from_parameters(config, parameters),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ModelConfig {
        ModelConfig::from_json(
            r#"{"model_type": "qwen3", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 4,
            "num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 50, "rope_theta": 1e4}"#,
        )
        .unwrap()
    }

    fn adaptation(rank: usize, targets: Option<&[&str]>) -> Adaptation {
        let targets = targets.map(|names| names.iter().map(ToString::to_string).collect());
        Adaptation { rank, alpha: 32.0, targets }
    }

    #[test]
    fn every_matrix_of_the_blocks_is_adapted_by_default_and_nothing_else() {
        let all = adaptation(2, None).factors(&config()).unwrap();
        assert_eq!(all.len(), 2 * 7);
        assert!(all.iter().all(|f| f.of.name.contains(".layers.") && f.of.name.ends_with("_proj.weight")));
        let one = adaptation(2, Some(&["v_proj"])).factors(&config()).unwrap();
        assert_eq!(one[1].a.name, "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight");
        assert_eq!((&one[1].a.shape[..], &one[1].b.shape[..]), (&[2, 16][..], &[4, 2][..]));
        assert_eq!(adaptation(2, Some(&["v_proj"])).parameters(&config()).unwrap(), 2 * (2 * 16 + 4 * 2));
    }

    #[test]
    fn an_unknown_target_is_refused_with_what_there_is_and_so_is_a_rank_without_room() {
        for unknown in ["query", "embed_tokens", "lm_head", "q_norm", "norm", ""] {
            let said = adaptation(2, Some(&["q_proj", unknown])).factors(&config()).unwrap_err().to_string();
            let known = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj";
            assert!(said.contains(&format!("{unknown:?}")) && said.contains(known), "{said}");
        }
        let said = adaptation(5, None).factors(&config()).unwrap_err().to_string();
        assert!(said.contains("student.rank = 5, but k_proj is 4 × 16"), "{said}");
    }
}
