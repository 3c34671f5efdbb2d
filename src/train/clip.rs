//! Clipping by the global norm of all gradients (Pascanu et al. 2013, arXiv 1211.5063).

use crate::error::Result;
use crate::kernels::sums_of_squares;
use crate::model::Parameters;

/// √Σ g² over all gradients, summed in a fixed order.
pub fn global_norm(parameters: &Parameters) -> Result<f64> {
    let gradients: Vec<_> = parameters.trainable().filter_map(|p| p.grad.as_ref()).map(|slot| slot.tensor()).collect();
    Ok(sums_of_squares(&gradients)?.iter().sum::<f64>().sqrt())
}

/// What gradients of norm `norm` are multiplied by so that their norm is at most `max_norm`, as PyTorch computes it.
pub fn scale(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}
