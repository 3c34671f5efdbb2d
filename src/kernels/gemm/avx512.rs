//! The micro-kernel: up to 12 rows by 32 outputs, summed in 24 of the 32 vector registers.

use std::arch::x86_64::*;

use super::panels::{PANEL, SIDE, Unit};
use super::precision::Precision;

/// Rows of a tile at most.
pub const ROWS: usize = 12;

/// The left-hand rows of a tile: 32-bit units, unit k of row r at `r · row_stride + k · unit_stride`.
#[derive(Clone, Copy)]
pub struct Rows {
    pub data: *const u32,
    pub row_stride: usize,
    pub unit_stride: usize,
}

/// Where a tile's sums go.
#[derive(Clone, Copy)]
pub struct Place {
    pub data: *mut f32,
    /// Elements between two rows.
    pub stride: usize,
    /// Outputs that exist of the panel's 32.
    pub columns: usize,
    /// Add to what is there.
    pub accumulate: bool,
}

/// `n` rows (1 to 12) against one panel.
///
/// # Safety
/// The CPU has AVX-512F, and AVX512-BF16 for bf16. `x` has `n` rows of as many units as the panel; the `n` rows and
/// their columns lie inside `place` and nobody else uses them meanwhile.
pub unsafe fn tile(precision: Precision, n: usize, x: Rows, panel: &[Unit], place: Place) {
    macro_rules! of_rows {
        ($kernel:ident: $($rows:literal)*) => {
            match n {
                // SAFETY: the caller's contract.
                $($rows => unsafe { $kernel::<$rows>(x, panel, place) },)*
                _ => unreachable!("a tile has 1 to 12 rows"),
            }
        };
    }
    match precision {
        Precision::F32 => of_rows!(tile_f32: 1 2 3 4 5 6 7 8 9 10 11 12),
        Precision::Bf16 => of_rows!(tile_bf16: 1 2 3 4 5 6 7 8 9 10 11 12),
    }
}

/// A tile of one kind: for each unit, every row's unit is broadcast and multiplied with the panel's two vectors.
macro_rules! tile_of {
    ($name:ident, $features:literal, $load:expr, $broadcast:expr, $multiply:expr) => {
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize>(x: Rows, panel: &[Unit], place: Place) {
            // SAFETY: pointers stay inside what the contract of [`tile`] describes.
            unsafe {
                let columns = u32::MAX >> (PANEL - place.columns);
                let masks = [columns as u16, (columns >> 16) as u16];
                let mut sums = [[_mm512_setzero_ps(); 2]; R];
                let mut unit = x.data;
                for weights in panel {
                    let weights = weights.0.as_ptr();
                    let (low, high) = ($load(weights), $load(weights.add(16)));
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let value = $broadcast(unit.add(r * x.row_stride));
                        sums[0] = $multiply(sums[0], value, low);
                        sums[1] = $multiply(sums[1], value, high);
                    }
                    unit = unit.wrapping_add(x.unit_stride);
                }
                for (r, sums) in sums.iter().enumerate() {
                    for (half, (&mask, &sum)) in masks.iter().zip(sums).enumerate() {
                        let y = place.data.add(r * place.stride).wrapping_add(16 * half);
                        let before =
                            if place.accumulate { _mm512_maskz_loadu_ps(mask, y) } else { _mm512_setzero_ps() };
                        _mm512_mask_storeu_ps(y, mask, _mm512_add_ps(before, sum));
                    }
                }
            }
        }
    };
}

tile_of!(
    tile_f32,
    "avx512f",
    |unit: *const u32| _mm512_load_ps(unit.cast()),
    |unit: *const u32| _mm512_set1_ps(unit.cast::<f32>().read()),
    |sum, x, w| _mm512_fmadd_ps(x, w, sum)
);
tile_of!(
    tile_bf16,
    "avx512f,avx512bf16",
    |unit: *const u32| std::mem::transmute::<__m512i, __m512bh>(_mm512_load_si512(unit.cast())),
    |unit: *const u32| std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(unit.cast::<i32>().read())),
    |sum, x, w| _mm512_dpbf16_ps(sum, x, w)
);

/// Row r of `block` becomes output `at + r` of the 16 units; `at` is 0 or 16.
///
/// # Safety
/// The CPU has AVX-512F.
#[target_feature(enable = "avx512f")]
pub unsafe fn transpose(block: &[[u32; SIDE]; SIDE], units: &mut [Unit; SIDE], at: usize) {
    assert!(at + SIDE <= PANEL);
    let row = |r: usize| {
        // SAFETY: a row is one vector long.
        unsafe { _mm512_loadu_si512(block[r].as_ptr().cast()) }
    };
    // Of four rows each: lane l of quads[g][j] holds column 4 l + j of rows 4 g to 4 g + 3.
    let mut quads = [[_mm512_setzero_si512(); 4]; 4];
    for (g, quad) in quads.iter_mut().enumerate() {
        let (a, b, c, d) = (row(4 * g), row(4 * g + 1), row(4 * g + 2), row(4 * g + 3));
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        (quad[0], quad[1]) = (_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
        let (ab, cd) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        (quad[2], quad[3]) = (_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    }
    for j in 0..4 {
        let [a, b, c, d] = [quads[0][j], quads[1][j], quads[2][j], quads[3][j]];
        let (low, high) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d));
        let (low2, high2) = (_mm512_shuffle_i32x4::<0xee>(a, b), _mm512_shuffle_i32x4::<0xee>(c, d));
        let columns = [
            _mm512_shuffle_i32x4::<0x88>(low, high),
            _mm512_shuffle_i32x4::<0xdd>(low, high),
            _mm512_shuffle_i32x4::<0x88>(low2, high2),
            _mm512_shuffle_i32x4::<0xdd>(low2, high2),
        ];
        for (l, column) in columns.into_iter().enumerate() {
            // SAFETY: `at` leaves room for a vector in the unit.
            unsafe { _mm512_storeu_si512(units[4 * l + j].0.as_mut_ptr().add(at).cast(), column) };
        }
    }
}
