//! AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101, algorithm 2), one pass over each tensor.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::kernels::{math, overwrite};
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

/// Running means of one tensor's gradient and of its square, shaped as the tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    pub first: Vec<f32>,
    pub second: Vec<f32>,
}

/// The optimizer with its state by parameter name.
pub struct AdamW {
    config: AdamWConfig,
    moments: BTreeMap<String, Moments>,
}

impl AdamW {
    /// Starts from zero moments.
    pub fn new(config: AdamWConfig, parameters: &Parameters) -> Self {
        let zeros = |p: &Parameter| vec![0.0; p.spec().elements()];
        let trainable = parameters.iter().filter(|p| p.grad.is_some());
        let moments = trainable.map(|p| (p.name.clone(), Moments { first: zeros(p), second: zeros(p) })).collect();
        Self { config, moments }
    }

    /// The state, in name order.
    pub fn moments(&self) -> impl Iterator<Item = (&String, &Moments)> {
        self.moments.iter()
    }

    /// Takes a saved state, which must fit the parameters by name and length.
    pub fn restore(&mut self, saved: BTreeMap<String, Moments>) -> Result<()> {
        let fits = |(name, own): (&String, &Moments)| {
            saved.get(name).is_some_and(|s| s.first.len() == own.first.len() && s.second.len() == own.second.len())
        };
        if saved.len() != self.moments.len() || !self.moments.iter().all(fits) {
            return Err(Error::run("the saved optimizer state belongs to a student of another shape"));
        }
        self.moments = saved;
        Ok(())
    }

    /// Moves every weight once. `step` counts from 0; gradients are multiplied by `gradient_scale` (clipping) as they
    /// are read.
    pub fn step(&mut self, parameters: &Parameters, step: u64, learning_rate: f64, gradient_scale: f64) -> Result<()> {
        const BLOCK: usize = 1 << 16;
        let AdamWConfig { beta1, beta2, epsilon, weight_decay } = self.config;
        let t = (step + 1) as f64;
        let correction2 = (1.0 - beta2.powf(t)).sqrt();
        let step_size = (learning_rate / (1.0 - beta1.powf(t))) as f32;
        let (b1, b2, scale) = (beta1 as f32, beta2 as f32, gradient_scale as f32);
        let (inverse_correction2, epsilon) = ((1.0 / correction2) as f32, epsilon as f32);
        for parameter in parameters.iter() {
            let (Some(slot), Some(moments)) = (&parameter.grad, self.moments.get_mut(&parameter.name)) else {
                continue;
            };
            let decay = if parameter.spec().decays() { weight_decay } else { 0.0 };
            let keep = (1.0 - learning_rate * decay) as f32;
            let gradient = slot.lock();
            let moments = std::sync::Mutex::new(moments);
            overwrite(parameter.tensor()?, |weights| {
                let mut moments = moments.lock().expect("the optimizer's own lock");
                let Moments { first, second } = &mut **moments;
                let state = first.par_chunks_mut(BLOCK).zip(second.par_chunks_mut(BLOCK));
                let blocks = weights.par_chunks_mut(BLOCK).zip(gradient.par_chunks(BLOCK)).zip(state);
                blocks.for_each(|((w, g), (m, v))| {
                    math::vectorize(
                        #[inline(always)]
                        || {
                            for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                                let g = g * scale;
                                *m = b1 * *m + (1.0 - b1) * g;
                                *v = b2 * *v + (1.0 - b2) * g * g;
                                *w = *w * keep - step_size * *m / (v.sqrt() * inverse_correction2 + epsilon);
                            }
                        },
                    )
                });
            })?;
        }
        Ok(())
    }
}
