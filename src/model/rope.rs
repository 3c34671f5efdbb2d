//! The frequencies of rotary embeddings, with the scalings that stretch a model's context.

use std::f64::consts::PI;

use candle_core::Device;

use super::config::ModelConfig;
use crate::error::{Error, Result};
use crate::kernels::Rope;

/// How a layer rotates queries and keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotation {
    pub theta: f64,
    pub scaling: RopeScaling,
}

/// The different rotations of a model, and which of them each layer has.
#[derive(Debug)]
pub(super) struct Rotations {
    /// `[head_dim / 2]` each.
    inverse_frequencies: Vec<Vec<f32>>,
    of_layers: Vec<Option<usize>>,
}

impl Rotations {
    pub fn new(config: &ModelConfig) -> Self {
        let mut different: Vec<Rotation> = vec![];
        let of_layers = config.rotations.iter().map(|rotation| {
            let rotation = (*rotation)?;
            Some(different.iter().position(|r| *r == rotation).unwrap_or_else(|| {
                different.push(rotation);
                different.len() - 1
            }))
        });
        let of_layers = of_layers.collect();
        let frequencies = different.iter().map(|r| r.scaling.inverse_frequencies(r.theta, config.head_dim));
        Self { inverse_frequencies: frequencies.collect(), of_layers }
    }

    /// Which of [`Ropes`] layer `i` has.
    pub fn of_layer(&self, i: usize) -> Option<usize> {
        self.of_layers[i]
    }

    /// The angles of tokens at `positions`.
    pub fn at(&self, positions: &[u32], device: &Device) -> Result<Ropes> {
        let rope = |frequencies: &Vec<f32>| Ok(Rope::new(positions, frequencies, device)?);
        self.inverse_frequencies.iter().map(rope).collect::<Result<_>>().map(Ropes)
    }
}

/// The angles of some tokens, for each of a model's rotations.
pub(super) struct Ropes(Vec<Rope>);

impl Ropes {
    /// Those of a layer; None where it does not rotate.
    pub fn get(&self, rotation: Option<usize>) -> Option<&Rope> {
        rotation.map(|i| &self.0[i])
    }
}

/// How the frequencies θ^(−2i/d) are stretched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    None,
    /// All frequencies divided by `factor` (Chen et al. 2023, arXiv 2306.15595).
    Linear {
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a linear blend between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_positions: f64,
    },
}

impl RopeScaling {
    /// Reads the scaling called `kind`, its numbers through `number`. Unknown kinds are refused.
    pub(super) fn read(kind: &str, number: impl Fn(&str) -> Result<Option<f64>>, max_positions: usize) -> Result<Self> {
        let required = |key: &str| number(key)?.ok_or_else(|| Error::input(format!("{key} is missing")));
        match kind {
            "default" => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor: required("factor")? }),
            "llama3" => Ok(Self::Llama3 {
                factor: required("factor")?,
                low_freq_factor: required("low_freq_factor")?,
                high_freq_factor: required("high_freq_factor")?,
                original_max_positions: number("original_max_position_embeddings")?.unwrap_or(max_positions as f64),
            }),
            other => Err(Error::input(format!(
                "the scaling {other:?} is not supported; supported are default, linear, llama3"
            ))),
        }
    }

    /// Radians per position of each pair of a head: `[head_dim / 2]`.
    pub fn inverse_frequencies(self, theta: f64, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| {
                let frequency = theta.powf(-((2 * i) as f64) / head_dim as f64);
                let scaled = match self {
                    Self::None => frequency,
                    Self::Linear { factor } => frequency / factor,
                    Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                        let turns = original_max_positions * frequency / (2.0 * PI);
                        let keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                        frequency * (keep + (1.0 - keep) / factor)
                    }
                };
                scaled as f32
            })
            .collect()
    }
}
