//! The packed product on `vdpbf16ps`: 32 outputs by up to 12 rows at once, accumulated in registers over all of inner.

use std::arch::x86_64::*;

use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::{PANEL, PackedBf16};

/// Rows of a register block: 12 × 2 accumulators of 16 outputs, of the 32 registers.
const ROWS: usize = 12;
/// Rows a task takes through all panels of its share.
const ROW_BLOCK: usize = 20 * ROWS;
/// Panels a task takes.
const PANELS: usize = 8;

pub fn is_available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
}

/// Where tasks write disjoint blocks of y.
struct Output(*mut f32);
// SAFETY: tasks write disjoint elements, and the slice behind the pointer outlives them.
unsafe impl Sync for Output {}

pub fn project(weight: &PackedBf16, x: &[f32], y: &mut [f32], accumulate: bool) {
    let (outer, inner) = (weight.outer, weight.inner);
    let (rows, pairs) = (x.len() / inner, inner.div_ceil(2));
    // Rows in bf16, padded to whole pairs.
    let mut x16 = vec![bf16::ZERO; rows * pairs * 2];
    x16.par_chunks_mut(pairs * 2).zip(x.par_chunks(inner)).for_each(|(row16, row)| {
        row16[..inner].convert_from_f32_slice(row);
    });
    let out = Output(y.as_mut_ptr());
    let panels = outer.div_ceil(PANEL);
    let shares = panels.div_ceil(PANELS);
    let blocks = rows.div_ceil(ROW_BLOCK);
    (0..shares * blocks).into_par_iter().for_each(|task| {
        let out = &out;
        let (share, block) = (task % shares, task / shares);
        let block = block * ROW_BLOCK..rows.min((block + 1) * ROW_BLOCK);
        for p in share * PANELS..panels.min((share + 1) * PANELS) {
            let panel = &weight.data[p * pairs * 2 * PANEL..][..pairs * 2 * PANEL];
            let place = Place { stride: outer, columns: PANEL.min(outer - p * PANEL), accumulate };
            for row in block.clone().step_by(ROWS) {
                let n = ROWS.min(block.end - row);
                let x = &x16[row * pairs * 2..][..n * pairs * 2];
                // SAFETY: the CPU has the features (the caller checked), x holds n rows and the panel `pairs` pairs, and
                // rows row..row + n and columns of this panel lie inside y and belong to this task alone.
                unsafe {
                    let y = out.0.add(row * outer + p * PANEL);
                    match n {
                        ROWS => tile::<ROWS>(pairs, x.as_ptr(), panel.as_ptr(), y, place),
                        8.. => {
                            tile::<8>(pairs, x.as_ptr(), panel.as_ptr(), y, place);
                            rest(n - 8, pairs, x.as_ptr().add(16 * pairs), panel.as_ptr(), y.add(8 * outer), place);
                        }
                        4.. => {
                            tile::<4>(pairs, x.as_ptr(), panel.as_ptr(), y, place);
                            rest(n - 4, pairs, x.as_ptr().add(8 * pairs), panel.as_ptr(), y.add(4 * outer), place);
                        }
                        _ => rest(n, pairs, x.as_ptr(), panel.as_ptr(), y, place),
                    }
                }
            }
        }
    });
}

/// How a tile lies in y.
#[derive(Clone, Copy)]
struct Place {
    /// Elements between two rows.
    stride: usize,
    /// Outputs that exist of the panel's 32.
    columns: usize,
    /// Add to what is there.
    accumulate: bool,
}

/// Up to three rows, one at a time. The contract of [`tile`].
unsafe fn rest(n: usize, pairs: usize, x: *const bf16, panel: *const bf16, y: *mut f32, place: Place) {
    for i in 0..n {
        // SAFETY: the caller's contract, row by row.
        unsafe { tile::<1>(pairs, x.add(i * pairs * 2), panel, y.add(i * place.stride), place) }
    }
}

/// `R` rows of x against one panel. x: `R` rows of `pairs` pairs; panel: `pairs` × 32 pairs; y: `R` rows as
/// `place` says.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile<const R: usize>(pairs: usize, x: *const bf16, panel: *const bf16, y: *mut f32, place: Place) {
    // SAFETY: pointers stay inside what the caller's contract describes.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        let x = x.cast::<i32>();
        for k in 0..pairs {
            let w = panel.add(k * 2 * PANEL).cast::<i32>();
            let low: __m512bh = std::mem::transmute(_mm512_loadu_si512(w.cast()));
            let high: __m512bh = std::mem::transmute(_mm512_loadu_si512(w.add(16).cast()));
            for (r, sums) in sums.iter_mut().enumerate() {
                let pair: __m512bh = std::mem::transmute(_mm512_set1_epi32(x.add(r * pairs + k).read_unaligned()));
                sums[0] = _mm512_dpbf16_ps(sums[0], pair, low);
                sums[1] = _mm512_dpbf16_ps(sums[1], pair, high);
            }
        }
        let columns = u32::MAX >> (PANEL - place.columns);
        for (r, sums) in sums.iter().enumerate() {
            for (half, &sum) in sums.iter().enumerate() {
                let (y, mask) = (y.add(r * place.stride + 16 * half), (columns >> (16 * half)) as u16);
                let before = if place.accumulate { _mm512_maskz_loadu_ps(mask, y) } else { _mm512_setzero_ps() };
                _mm512_mask_storeu_ps(y, mask, _mm512_add_ps(before, sum));
            }
        }
    }
}
