//! The gradient of a norm's weights on the CPU, which all norms have in common.

use rayon::prelude::*;

use super::{math, rows_per_task};

/// (x − mean) · r ⊙ dy, whose columns are then summed in row order; `moments` gives a row's mean and r.
pub(super) fn normalised_times(
    x: &[f32],
    dy: &[f32],
    width: usize,
    moments: impl Fn(&[f32]) -> (f32, f32) + Sync,
) -> Vec<f32> {
    let mut products = vec![0.0f32; x.len()];
    let rows = products.par_chunks_mut(width).zip(x.par_chunks(width).zip(dy.par_chunks(width)));
    rows.with_min_len(rows_per_task(x.len() / width, width)).for_each(|(products, (x, dy))| {
        math::vectorize(
            #[inline(always)]
            || {
                let (mean, r) = moments(x);
                for (p, (x, dy)) in products.iter_mut().zip(x.iter().zip(dy)) {
                    *p = (x - mean) * r * dy;
                }
            },
        )
    });
    products
}
