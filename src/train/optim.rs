//! AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101, algorithm 2), one pass over each tensor.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::kernels::AdamWUpdate;
use crate::model::{Parameter, Parameters};

/// The constants of AdamW.
#[derive(Debug, Clone, Copy)]
pub struct AdamWConfig {
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    /// Of matrices; norms and biases do not decay.
    pub weight_decay: f64,
}

/// Running means of one tensor's gradient and of its square, shaped as the tensor and on its device.
#[derive(Debug, Clone)]
pub struct Moments {
    pub first: Tensor,
    pub second: Tensor,
}

/// The optimizer with its state by parameter name. A clone is the same state: a step changes it too.
#[derive(Clone)]
pub struct AdamW {
    config: AdamWConfig,
    moments: BTreeMap<String, Moments>,
}

impl AdamW {
    /// Starts from zero moments.
    pub fn new(config: AdamWConfig, parameters: &Parameters) -> Result<Self> {
        let zeros = |p: &Parameter| -> Result<Moments> {
            let first = p.tensor()?.zeros_like()?;
            Ok(Moments { second: first.zeros_like()?, first })
        };
        let moments = parameters.trainable().map(|p| Ok((p.name.clone(), zeros(p)?))).collect::<Result<_>>()?;
        Ok(Self { config, moments })
    }

    /// The state, in name order.
    pub fn moments(&self) -> impl Iterator<Item = (&String, &Moments)> {
        self.moments.iter()
    }

    /// Takes a saved state, which must fit the parameters by name and length, from any device.
    pub fn restore(&mut self, mut saved: BTreeMap<String, Moments>) -> Result<()> {
        let unfit = || Error::run("the saved optimizer state belongs to a student of another shape");
        if saved.len() != self.moments.len() {
            return Err(unfit());
        }
        for (name, own) in &mut self.moments {
            let theirs = saved.remove(name).ok_or_else(unfit)?;
            for (own, theirs) in [(&mut own.first, theirs.first), (&mut own.second, theirs.second)] {
                if own.elem_count() != theirs.elem_count() {
                    return Err(unfit());
                }
                *own = theirs.reshape(own.shape())?.to_device(own.device())?;
            }
        }
        Ok(())
    }

    /// Moves every weight once. `step` counts from 0; gradients are multiplied by `gradient_scale` (clipping) as they
    /// are read.
    pub fn step(&mut self, parameters: &Parameters, step: u64, learning_rate: f64, gradient_scale: f64) -> Result<()> {
        let AdamWConfig { beta1, beta2, epsilon, weight_decay } = self.config;
        let t = (step + 1) as f64;
        for parameter in parameters.trainable() {
            let (Some(slot), Some(moments)) = (&parameter.grad, self.moments.get(&parameter.name)) else { continue };
            let decay = if parameter.spec().decays() { weight_decay } else { 0.0 };
            let update = AdamWUpdate {
                beta1: beta1 as f32,
                beta2: beta2 as f32,
                gradient_scale: gradient_scale as f32,
                step_size: (learning_rate / (1.0 - beta1.powf(t))) as f32,
                inverse_correction2: (1.0 / (1.0 - beta2.powf(t)).sqrt()) as f32,
                epsilon: epsilon as f32,
                keep: (1.0 - learning_rate * decay) as f32,
            };
            update.apply(parameter.tensor()?, slot.tensor(), &moments.first, &moments.second)?;
        }
        Ok(())
    }
}
