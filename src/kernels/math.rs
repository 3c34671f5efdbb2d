//! Vectorised row arithmetic: exponentials and reductions that the loss and attention rows share.
//!
//! Plain loops over fixed lanes, compiled for the widest instruction set of the machine through `pulp`'s dispatch.

const LANES: usize = 32;

/// Elements summed in f32 before they are added in f64: a vocabulary of 262,144 still sums to f64 accuracy.
const BLOCK: usize = 4096;

/// Runs `f` compiled for the widest vector instructions this CPU has. `f` must be `#[inline(always)]` all the way down.
#[inline(always)]
pub fn vectorize<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// e^x to about 1e-7 relative; 0 below −87 (so −∞ gives exactly 0), and no larger than e^88 above.
/// Cephes' range reduction and polynomial, in a form that compilers vectorise.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer in the low mantissa bits
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_6e-1;
    let p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    let scale = f32::from_bits((shifted.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_add(127)) << 23);
    if x < -87.0 { 0.0 } else { y * scale }
}

/// Folds `f(i, element)` over a row in fixed lanes, then the lanes into an f64.
#[inline(always)]
pub fn sum_by(len: usize, f: impl Fn(usize) -> f32) -> f64 {
    let mut total = 0.0f64;
    let mut start = 0;
    while start < len {
        let end = (start + BLOCK).min(len);
        let mut lanes = [0.0f32; LANES];
        let mut i = start;
        while i + LANES <= end {
            for (l, lane) in lanes.iter_mut().enumerate() {
                *lane += f(i + l);
            }
            i += LANES;
        }
        total += lanes.iter().map(|&x| x as f64).sum::<f64>();
        while i < end {
            total += f(i) as f64;
            i += 1;
        }
        start = end;
    }
    total
}

/// [`sum_by`] of an `f` that also changes `out[i]`.
#[inline(always)]
pub fn sum_into(out: &mut [f32], f: impl Fn(usize, &mut f32) -> f32) -> f64 {
    let mut total = 0.0f64;
    for (b, block) in out.chunks_mut(BLOCK).enumerate() {
        let start = b * BLOCK;
        let whole = block.len() / LANES * LANES;
        let (lanes_part, rest) = block.split_at_mut(whole);
        let mut lanes = [0.0f32; LANES];
        for (c, chunk) in lanes_part.chunks_exact_mut(LANES).enumerate() {
            for (l, (lane, x)) in lanes.iter_mut().zip(chunk).enumerate() {
                *lane += f(start + c * LANES + l, x);
            }
        }
        total += lanes.iter().map(|&x| x as f64).sum::<f64>();
        for (i, x) in rest.iter_mut().enumerate() {
            total += f(start + whole + i, x) as f64;
        }
    }
    total
}

/// The largest element; −∞ for an empty row. NaN elements are passed over.
#[inline(always)]
pub fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = row.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    lanes.into_iter().fold(rest, f32::max)
}

/// log Σ exp(x · scale) of a row: +∞, −∞ or NaN exactly when the row leaves no finite answer.
#[inline(always)]
pub fn log_sum_exp(row: &[f32], scale: f32) -> f32 {
    let m = max(row) * scale;
    if !m.is_finite() {
        return m;
    }
    // The maximum passes a NaN over, the sum does not.
    let sum = sum_by(row.len(), |i| exp(row[i] * scale - m));
    (m as f64 + sum.ln()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_and_zero_at_minus_infinity() {
        for i in -8600..8700 {
            let x = i as f32 / 100.0;
            let want = (x as f64).exp();
            assert!(((exp(x) as f64 - want) / want).abs() < 3e-7, "exp({x}) = {} not {want}", exp(x));
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn log_sum_exp_equals_the_f64_sum_at_any_length() {
        for len in [1, 7, 31, 32, 33, 4096, 5000, 50_000] {
            let row: Vec<f32> = (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
            for scale in [1.0, 0.25] {
                let want = row.iter().map(|&x| (x as f64 * scale as f64).exp()).sum::<f64>().ln();
                assert!((vectorize(|| log_sum_exp(&row, scale)) as f64 - want).abs() < 1e-6 * want.abs().max(1.0));
            }
        }
    }

    #[test]
    fn log_sum_exp_shows_rows_without_a_finite_answer() {
        for at in 0..100 {
            let mut row = vec![0.5; 100];
            row[at] = f32::NAN;
            assert!(vectorize(|| log_sum_exp(&row, 1.0)).is_nan() && log_sum_exp(&row, 1.0).is_nan());
        }
        assert_eq!(log_sum_exp(&[0.0, f32::INFINITY], 1.0), f32::INFINITY);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY; 3], 1.0), f32::NEG_INFINITY);
        assert!((log_sum_exp(&[f32::NEG_INFINITY, 2.0], 1.0) - 2.0).abs() < 1e-6);
    }
}
