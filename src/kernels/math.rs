//! Vectorised row arithmetic: exponentials and reductions that the loss and attention rows share.
//!
//! Plain loops over fixed lanes without bounds checks, which compilers turn into vector code inside [`vectorize`].

pub use super::simd::vectorize;

const LANES: usize = 32;

/// Elements summed in f32 before they are added in f64: a vocabulary of 262,144 still sums to f64 accuracy.
const BLOCK: usize = 4096;

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

/// log(1 + x) for x > −1, to about 1e-7 of the larger of its value and x; −∞ at −1.
/// The exponent and a polynomial, in a form that compilers vectorise.
#[inline(always)]
pub fn ln_1p(x: f32) -> f32 {
    let y = 1.0 + x;
    // What rounding 1 + x lost, relative to it.
    let lost = (x - (y - 1.0)) / y;
    // y = m · 2^n with m in [√½, √2).
    let bits = y.to_bits().wrapping_sub(0x3f35_04f3);
    let n = ((bits as i32) >> 23) as f32;
    let m = f32::from_bits((bits & 0x007f_ffff).wrapping_add(0x3f35_04f3)) - 1.0;
    // log(1 + m) = 2 artanh(s), s = m / (2 + m): |s| < 0.172.
    let s = m / (2.0 + m);
    let z = s * s;
    let p = 2.0 / 9.0;
    let p = p * z + 2.0 / 7.0;
    let p = p * z + 2.0 / 5.0;
    let p = p * z + 2.0 / 3.0;
    let log_m = 2.0 * s + s * z * p;
    let value = n * 0.693_145_75 + (n * 1.428_606_8e-6 + log_m + lost);
    if y <= 0.0 { f32::NEG_INFINITY } else { value }
}

/// tanh x to about 2e-7 relative: Cephes' polynomial up to 0.625, 1 − 2 / (e^2x + 1) beyond, and one of the two is selected.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let z = x * x;
    let p = -5.704_988_7e-3;
    let p = p * z + 2.063_908_8e-2;
    let p = p * z - 5.373_971_6e-2;
    let p = p * z + 1.333_144_2e-1;
    let p = p * z - 3.333_328e-1;
    let near = p * z * x + x;
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 0.625 { near } else { far }
}

/// Σ f of the rows' elements side by side: each lane sums in f32, lanes and blocks in f64. Rows are of one length. f is
/// plain arithmetic: it is also called on zeros beyond the end, and what it gives there does not count.
#[inline(always)]
pub fn sum_of<const N: usize>(rows: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f64 {
    let len = rows[0].len();
    let rows = rows.map(|row| &row[..len]);
    let mut total = 0.0f64;
    let mut start = 0;
    while start < len {
        let end = len.min(start + BLOCK);
        let whole = start + (end - start) / LANES * LANES;
        let mut lanes = [0.0f32; LANES];
        for at in (start..whole).step_by(LANES) {
            let lane_rows = rows.map(|row| lanes_at(row, at));
            for l in 0..LANES {
                lanes[l] += f(lane_rows.map(|row| row[l]));
            }
        }
        total += lanes.iter().map(|&x| x as f64).sum::<f64>();
        if whole < end {
            let rest = rows.map(|row| padded(&row[whole..end]));
            let terms: [f32; LANES] = std::array::from_fn(|l| f(std::array::from_fn(|n| rest[n][l])));
            total += terms[..end - whole].iter().map(|&x| x as f64).sum::<f64>();
        }
        start = end;
    }
    total
}

/// [`sum_of`] with an `f` that also changes `out`, which is as long as the rows.
#[inline(always)]
pub fn sum_into<const N: usize>(out: &mut [f32], rows: [&[f32]; N], f: impl Fn(&mut f32, [f32; N]) -> f32) -> f64 {
    let len = out.len();
    let rows = rows.map(|row| &row[..len]);
    let mut total = 0.0f64;
    let mut start = 0;
    while start < len {
        let end = len.min(start + BLOCK);
        let whole = start + (end - start) / LANES * LANES;
        let mut lanes = [0.0f32; LANES];
        for at in (start..whole).step_by(LANES) {
            let lane_rows = rows.map(|row| lanes_at(row, at));
            let Ok(out) = <&mut [f32; LANES]>::try_from(&mut out[at..at + LANES]) else { unreachable!() };
            for l in 0..LANES {
                lanes[l] += f(&mut out[l], lane_rows.map(|row| row[l]));
            }
        }
        total += lanes.iter().map(|&x| x as f64).sum::<f64>();
        if whole < end {
            let rest = rows.map(|row| padded(&row[whole..end]));
            let mut changed = padded(&out[whole..end]);
            let mut terms = [0.0f32; LANES];
            for l in 0..LANES {
                terms[l] = f(&mut changed[l], std::array::from_fn(|n| rest[n][l]));
            }
            out[whole..end].copy_from_slice(&changed[..end - whole]);
            total += terms[..end - whole].iter().map(|&x| x as f64).sum::<f64>();
        }
        start = end;
    }
    total
}

/// The end of a row, filled up with zeros, so that it costs one vector operation and not one by one.
#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes[..rest.len()].copy_from_slice(rest);
    lanes
}

#[inline(always)]
fn lanes_at(row: &[f32], at: usize) -> &[f32; LANES] {
    match row[at..at + LANES].try_into() {
        Ok(lanes) => lanes,
        Err(_) => unreachable!(),
    }
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
    let sum = sum_of([row], |[x]| exp(x * scale - m));
    (m as f64 + sum.ln()) as f32
}

/// Turns a row into exp(x · scale − m), m the largest x · scale, and returns m and the sum of what it wrote: softmax times
/// that sum, and log Σ exp = m + log of it.
#[inline(always)]
pub fn exp_in_place(row: &mut [f32], scale: f32) -> (f32, f64) {
    let m = max(row) * scale;
    let sum = sum_into(row, [], |x, []| {
        *x = exp(*x * scale - m);
        *x
    });
    (m, sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ln_1p_is_accurate_from_minus_one_to_large_values() {
        let close = |x: f32| {
            let (got, want) = (ln_1p(x) as f64, (x as f64).ln_1p());
            assert!((got - want).abs() <= 2.5e-7 * want.abs().max(1e-30) + 1e-12, "ln_1p({x}) = {got} not {want}");
        };
        for i in 1..20_000 {
            close(-1.0 + i as f32 / 20_000.0);
            close(i as f32 / 100.0);
            close((i as f32 / 20_000.0).powi(6));
            close(-(i as f32 / 20_001.0).powi(6));
        }
        assert_eq!((ln_1p(-1.0), ln_1p(0.0)), (f32::NEG_INFINITY, 0.0));
    }

    #[test]
    fn tanh_is_accurate_from_tiny_to_saturated_values() {
        for i in -20_000..20_000 {
            for x in [i as f32 / 1000.0, i as f32 / 30_000.0, (i as f32 / 20_000.0).powi(9)] {
                let (got, want) = (tanh(x) as f64, (x as f64).tanh());
                assert!((got - want).abs() <= 2.5e-7 * want.abs(), "tanh({x}) = {got} not {want}");
            }
        }
        assert_eq!((tanh(f32::INFINITY), tanh(f32::NEG_INFINITY), tanh(0.0)), (1.0, -1.0, 0.0));
        assert!(tanh(f32::NAN).is_nan());
    }

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
