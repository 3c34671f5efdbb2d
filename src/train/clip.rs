//! Clipping by the global norm of all gradients (Pascanu et al. 2013, arXiv 1211.5063).

use crate::kernels::math;
use crate::model::Parameters;
use rayon::prelude::*;

/// √Σ g² over all gradients. Fixed blocks are summed in name order, so the result does not depend on the thread count.
pub fn global_norm(parameters: &Parameters) -> f64 {
    const BLOCK: usize = 1 << 16;
    let square = |block: &[f32]| {
        math::vectorize(
            #[inline(always)]
            || math::sum_of([block], |[x]| x * x),
        )
    };
    let of_parameter = |gradient: &[f32]| gradient.par_chunks(BLOCK).map(square).collect::<Vec<f64>>().iter().sum();
    parameters
        .iter()
        .filter_map(|p| p.grad.as_ref())
        .map(|slot| -> f64 { of_parameter(&slot.lock()) })
        .sum::<f64>()
        .sqrt()
}

/// What gradients of norm `norm` are multiplied by so that their norm is at most `max_norm`, as PyTorch computes it.
pub fn scale(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}
