//! What the elements of a product are rounded to, and how they lie in units of 32 bits.

use super::Mat;

/// How a product's operands are held; sums are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Precision {
    #[default]
    F32,
    /// Rounded to nearest even.
    Bf16,
}

impl Precision {
    /// Elements of the inner index in a unit of 32 bits.
    pub(super) fn group(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
        }
    }
}

/// x rounded to bf16, in the upper half of 32 bits. NaN stays NaN.
#[inline(always)]
pub(super) fn round_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    if x.is_nan() { 0x7fc0_0000 } else { rounded }
}

/// Two neighbours of the inner index in one unit, the first in the lower half.
#[inline(always)]
pub(super) fn pair(first: f32, second: f32) -> u32 {
    round_bf16(first) >> 16 | round_bf16(second)
}

// Plain loops below: `for_each` on an iterator is a call that the vector instructions of the caller do not reach.

/// f32 units.
#[inline(always)]
pub(super) fn copy_bits(to: &mut [u32], from: &[f32]) {
    for (to, x) in to.iter_mut().zip(from) {
        *to = x.to_bits();
    }
}

/// Neighbours in `from` become pairs; an odd last one is paired with 0.
#[inline(always)]
pub(super) fn pair_up(to: &mut [u32], from: &[f32]) {
    let (pairs, odd) = from.as_chunks::<2>();
    for (to, &[first, second]) in to.iter_mut().zip(pairs) {
        *to = pair(first, second);
    }
    if let ([last], Some(to)) = (odd, to.last_mut()) {
        *to = pair(*last, 0.0);
    }
}

/// Pairs of the two neighbouring columns that make unit `u` of a matrix whose columns are contiguous; an odd last one is
/// paired with 0.
#[inline(always)]
pub(super) fn pair_columns(to: &mut [u32], from: Mat, u: usize) {
    let first = from.column(2 * u);
    if 2 * u + 1 < from.cols {
        for ((to, first), second) in to.iter_mut().zip(first).zip(from.column(2 * u + 1)) {
            *to = pair(*first, *second);
        }
    } else {
        for (to, first) in to.iter_mut().zip(first) {
            *to = pair(*first, 0.0);
        }
    }
}

/// The two of a [`pair`].
#[inline(always)]
pub(super) fn unpair(unit: u32) -> [f32; 2] {
    [f32::from_bits(unit << 16), f32::from_bits(unit & 0xffff_0000)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_equals_the_half_crates() {
        let mut x = 1u32;
        for i in 0..1_000_000u32 {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223 ^ i);
            let value = f32::from_bits(x);
            let want = half::bf16::from_f32(value).to_f32();
            let got = f32::from_bits(round_bf16(value));
            assert!(got == want || (got.is_nan() && want.is_nan()), "{value}: {got} instead of {want}");
            assert_eq!(unpair(pair(1.5, -2.0)), [1.5, -2.0]);
        }
        assert_eq!(f32::from_bits(round_bf16(f32::INFINITY)), f32::INFINITY);
    }
}
