//! Seeded numbers, numerical derivatives and distances.

/// Reproducible values between −`spread` and `spread`.
pub fn noise(n: usize, spread: f32, seed: u32) -> Vec<f32> {
    let mut x = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        spread * ((x >> 8) as f32 / (1u32 << 23) as f32 - 1.0)
    };
    (0..n).map(|_| next()).collect()
}

pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| x as f64).collect()
}

/// ∂f/∂x by central differences.
pub fn gradient(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut at = x.to_vec();
    (0..x.len())
        .map(|i| {
            at[i] = x[i] + STEP;
            let above = f(&at);
            at[i] = x[i] - STEP;
            let below = f(&at);
            at[i] = x[i];
            (above - below) / (2.0 * STEP)
        })
        .collect()
}

/// The largest difference; NaN where an element is none or the lengths differ.
pub fn distance(got: &[f32], want: &[f64]) -> f64 {
    if got.len() != want.len() {
        return f64::NAN;
    }
    got.iter().zip(want).map(|(&g, w)| (g as f64 - w).abs()).fold(0.0, |m, d| if d <= m { m } else { d })
}

/// [`distance`] relative to the largest element of `want`.
pub fn relative_distance(got: &[f32], want: &[f64]) -> f64 {
    distance(got, want) / want.iter().fold(f64::MIN_POSITIVE, |m, w| m.max(w.abs()))
}
