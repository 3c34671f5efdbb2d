//! A norm of any family.

use candle_core::{Device, Tensor};

use super::config::{ModelConfig, NormKind};
use super::parameter::{Parameter, Parameters};
use crate::error::Result;
use crate::kernels::{LayerNorm, RmsNorm};

#[derive(Debug)]
pub(super) enum Norm {
    Rms(RmsNorm),
    Layer(LayerNorm),
}

impl Norm {
    /// The norm whose weight is `name`.weight.
    pub fn new(config: &ModelConfig, parameters: &Parameters, name: &str) -> Result<Self> {
        let weight = parameters.get(&format!("{name}.weight"))?;
        let epsilon = config.norm_eps;
        Ok(match config.norm {
            NormKind::Rms => Self::Rms(Parameter::rms_norm(weight, 0.0, epsilon)?),
            NormKind::RmsFromOne => Self::Rms(Parameter::rms_norm(weight, 1.0, epsilon)?),
            NormKind::Layer => {
                Self::Layer(Parameter::layer_norm(weight, parameters.get(&format!("{name}.bias"))?, epsilon)?)
            }
        })
    }

    /// Where its weight is.
    pub fn device(&self) -> &Device {
        match self {
            Self::Rms(norm) => norm.weight.device(),
            Self::Layer(norm) => norm.weight.device(),
        }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Rms(norm) => norm.forward(x)?,
            Self::Layer(norm) => norm.forward(x)?,
        })
    }

    /// Adds the parameters' gradients to their slots and returns ∂x, to which `onto` is added if given.
    pub fn backward(&self, x: &Tensor, dy: &Tensor, onto: Option<&Tensor>) -> Result<Tensor> {
        Ok(match self {
            Self::Rms(norm) => norm.backward(x, dy, onto)?,
            Self::Layer(norm) => norm.backward(x, dy, onto)?,
        })
    }
}
