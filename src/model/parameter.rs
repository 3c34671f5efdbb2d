//! A named tensor that may learn.

use std::sync::Arc;

use candle_core::Tensor;

use super::tensors::TensorSpec;
use crate::error::Result;
use crate::kernels::{Adapter, GradSlot, LayerNorm, Linear, RmsNorm, Weight};

/// A weight under its name in [`super::ModelConfig::tensors`], with the slot its gradient is summed in (None: frozen).
///
/// A dense tensor is changed in place by the optimizer, so every clone of it follows. A packed one never changes.
#[derive(Debug, Clone)]
pub struct Parameter {
    pub name: String,
    pub weight: Weight,
    pub grad: Option<GradSlot>,
    /// What is added to a frozen matrix.
    pub adapter: Option<Box<LowRank>>,
}

/// The trainable factors of a correction s B A.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// `[rank, in]`
    pub a: Parameter,
    /// `[out, rank]`
    pub b: Parameter,
    pub scale: f64,
}

impl LowRank {
    /// The factors as the layer they are.
    pub fn layer(&self) -> Result<Adapter> {
        let (down, up) = (Parameter::linear(&self.a, None)?, Parameter::linear(&self.b, None)?);
        Ok(Adapter { down, up, scale: self.scale })
    }
}

impl Parameter {
    pub fn new(name: String, tensor: Tensor, trainable: bool) -> Result<Self> {
        let grad = trainable.then(|| GradSlot::of(&tensor)).transpose()?;
        Ok(Self { name, weight: Weight::Dense(tensor), grad, adapter: None })
    }

    /// The f32 tensor; an error for a packed parameter.
    pub fn tensor(&self) -> Result<&Tensor> {
        Ok(self.weight.dense()?)
    }

    pub fn spec(&self) -> TensorSpec {
        TensorSpec { name: self.name.clone(), shape: self.weight.dims() }
    }

    pub(super) fn linear(weight: &Self, bias: Option<&Self>) -> Result<Linear> {
        Ok(Linear {
            weight: weight.weight.clone(),
            bias: bias.map(|b| b.tensor().cloned()).transpose()?,
            weight_grad: weight.grad.clone(),
            bias_grad: bias.and_then(|b| b.grad.clone()),
            adapter: weight.adapter.as_ref().map(|adapter| adapter.layer().map(Arc::new)).transpose()?,
        })
    }

    pub(super) fn rms_norm(weight: &Self, offset: f32, epsilon: f64) -> Result<RmsNorm> {
        Ok(RmsNorm { weight: weight.tensor()?.clone(), offset, epsilon, weight_grad: weight.grad.clone() })
    }

    pub(super) fn layer_norm(weight: &Self, bias: &Self, epsilon: f64) -> Result<LayerNorm> {
        Ok(LayerNorm {
            weight: weight.tensor()?.clone(),
            bias: bias.tensor()?.clone(),
            epsilon,
            weight_grad: weight.grad.clone(),
            bias_grad: bias.grad.clone(),
        })
    }
}

/// A model's parameters in name order, which fixes the order of every pass over them.
#[derive(Debug, Clone, Default)]
pub struct Parameters(pub(super) std::collections::BTreeMap<String, Parameter>);

impl Parameters {
    /// Takes the weights; all of them learn, or none.
    pub fn new(weights: super::weights::Weights, trainable: bool) -> Result<Self> {
        let parameter = |(name, tensor): (String, Tensor)| Ok((name.clone(), Parameter::new(name, tensor, trainable)?));
        weights.into_iter().map(parameter).collect::<Result<_>>().map(Self)
    }

    /// Takes frozen weights in whatever form they are held.
    pub fn frozen(weights: std::collections::BTreeMap<String, Weight>) -> Self {
        let parameter =
            |(name, weight): (String, Weight)| (name.clone(), Parameter { name, weight, grad: None, adapter: None });
        Self(weights.into_iter().map(parameter).collect())
    }

    /// These and more.
    pub fn with<'a>(&self, more: impl IntoIterator<Item = &'a Parameter>) -> Self {
        let mut all = self.clone();
        all.0.extend(more.into_iter().map(|parameter| (parameter.name.clone(), parameter.clone())));
        all
    }

    /// Bytes the weights take, without gradients.
    pub fn bytes(&self) -> u64 {
        self.iter().map(|p| p.weight.bytes() as u64).sum()
    }

    /// The model's own, without the factors of adapters.
    pub fn iter(&self) -> impl Iterator<Item = &Parameter> {
        self.0.values()
    }

    /// What learns: tensors of the model, or the factors of their adapters.
    pub fn trainable(&self) -> impl Iterator<Item = &Parameter> {
        self.iter()
            .flat_map(|p| std::iter::once(p).chain(p.adapter.iter().flat_map(|adapter| [&adapter.a, &adapter.b])))
            .filter(|p| p.grad.is_some())
    }

    /// Adds trainable factors, A and B with their names, to the matrix `name`.
    pub(super) fn adapt(&mut self, name: &str, [a, b]: [(String, Tensor); 2], scale: f64) -> Result<()> {
        let factor = |(name, tensor)| Parameter::new(name, tensor, true);
        let adapter = LowRank { a: factor(a)?, b: factor(b)?, scale };
        match self.0.get_mut(name) {
            Some(parameter) => parameter.adapter = Some(Box::new(adapter)),
            None => return Err(crate::Error::run(format!("the model has no tensor {name}"))),
        }
        Ok(())
    }

    pub fn get(&self, name: &str) -> Result<&Parameter> {
        self.0.get(name).ok_or_else(|| crate::Error::run(format!("the model has no tensor {name}")))
    }

    /// Forgets all gradients of the last step.
    pub fn clear_gradients(&self) -> Result<()> {
        self.trainable().filter_map(|p| p.grad.as_ref()).try_for_each(|slot| Ok(slot.clear()?))
    }
}
