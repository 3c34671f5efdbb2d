//! y = c · tanh(x / c): values within ±c, near 0 themselves (Gemma 2, arXiv 2408.00118, section 2). No kernel on GPUs.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::math;
use super::storage::overwrite;

/// Elements a parallel task takes.
const TASK: usize = 16 * 1024;

/// The bound c, above 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoftCap(pub f32);

impl SoftCap {
    /// x ← c · tanh(x · scale / c). To be called inside [`math::vectorize`].
    #[inline(always)]
    pub(super) fn apply(self, x: &mut [f32], scale: f32) {
        let inner = scale / self.0;
        for x in x {
            *x = self.0 * math::tanh(*x * inner);
        }
    }

    /// ∂y/∂x where the cap gave y.
    #[inline(always)]
    pub(super) fn slope(self, y: f32) -> f32 {
        let t = y / self.0;
        1.0 - t * t
    }

    /// Caps all of `x`, in parallel.
    pub fn forward(self, x: &mut [f32]) {
        x.par_chunks_mut(TASK).for_each(|x| {
            math::vectorize(
                #[inline(always)]
                || self.apply(x, 1.0),
            )
        });
    }

    /// Caps a tensor that nobody else holds, in place.
    pub fn forward_tensor(self, x: &Tensor) -> Result<()> {
        overwrite(x, |x| self.forward(x))
    }

    /// ∂x from ∂y, written over the capped values `y`.
    pub fn backward(self, y: &mut [f32], dy: &[f32]) {
        math::vectorize(
            #[inline(always)]
            || {
                for (y, dy) in y.iter_mut().zip(dy) {
                    *y = dy * self.slope(*y);
                }
            },
        );
    }
}
