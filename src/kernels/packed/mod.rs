//! y = x Wᵀ with a frozen weight packed once: panels of outputs, so that a product reads it front to back.
//!
//! bf16 halves the weight and, on CPUs with AVX512-BF16, doubles the speed; products are summed in f32. Elsewhere a
//! bf16 weight is multiplied through its exact f32 values.

#[cfg(target_arch = "x86_64")]
mod avx512_bf16;

use half::bf16;
use rayon::prelude::*;

/// Outputs of a panel.
const PANEL: usize = 32;

/// A weight `[outer, inner]` in bf16: panel by panel of [`PANEL`] outputs, and in a panel pair by pair of inner
/// elements, so that one output's pair lies in 32 bits. Outputs and inner elements are padded with zeros.
#[derive(Debug, Clone)]
pub struct PackedBf16 {
    outer: usize,
    inner: usize,
    data: Vec<bf16>,
}

impl PackedBf16 {
    /// Rounds `weight` (`[outer, inner]`, row-major) to nearest even.
    pub fn new(weight: &[f32], outer: usize, inner: usize) -> Self {
        assert_eq!(weight.len(), outer * inner, "the weight does not have this shape");
        let pairs = inner.div_ceil(2);
        let mut data = vec![bf16::ZERO; outer.div_ceil(PANEL) * pairs * 2 * PANEL];
        data.par_chunks_mut(pairs * 2 * PANEL).enumerate().for_each(|(p, panel)| {
            for o in 0..PANEL.min(outer - p * PANEL) {
                let row = &weight[(p * PANEL + o) * inner..][..inner];
                for (i, &w) in row.iter().enumerate() {
                    panel[(i / 2 * PANEL + o) * 2 + i % 2] = bf16::from_f32(w);
                }
            }
        });
        Self { outer, inner, data }
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<bf16>()
    }

    pub fn outer(&self) -> usize {
        self.outer
    }

    pub fn inner(&self) -> usize {
        self.inner
    }

    /// Whether this CPU multiplies bf16 itself.
    pub fn is_native() -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            avx512_bf16::is_available()
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            false
        }
    }

    /// Row `o` of the weight, in f32.
    pub fn row(&self, o: usize, out: &mut [f32]) {
        let panel = &self.data[o / PANEL * self.inner.div_ceil(2) * 2 * PANEL..];
        for (i, w) in out.iter_mut().enumerate() {
            *w = panel[(i / 2 * PANEL + o % PANEL) * 2 + i % 2].to_f32();
        }
    }

    /// Rows by index, end to end, in f32: an embedding's lookup.
    pub fn rows(&self, indices: &[u32]) -> Vec<f32> {
        let mut out = vec![0.0f32; indices.len() * self.inner];
        out.par_chunks_mut(self.inner).zip(indices).for_each(|(row, &i)| self.row(i as usize, row));
        out
    }

    /// `y ← x Wᵀ`, or `y ← y + x Wᵀ` with `accumulate`: x `[rows, inner]`, y `[rows, outer]`. x is rounded to bf16 on
    /// CPUs that multiply bf16 natively.
    pub fn project(&self, x: &[f32], y: &mut [f32], accumulate: bool) {
        let rows = x.len() / self.inner;
        assert!(x.len() == rows * self.inner && y.len() == rows * self.outer, "the shapes do not fit");
        #[cfg(target_arch = "x86_64")]
        if avx512_bf16::is_available() {
            return avx512_bf16::project(self, x, y, accumulate);
        }
        self.project_portable(x, y, accumulate);
    }

    /// The same through f32: unpacks a panel at a time.
    fn project_portable(&self, x: &[f32], y: &mut [f32], accumulate: bool) {
        use super::gemm::{Mat, MatMut, matmul};
        let rows = x.len() / self.inner;
        // A group of panels at once, so that the product is large enough to be worth its threads.
        const GROUP: usize = 16;
        let width = GROUP * PANEL;
        let mut unpacked = vec![0.0f32; width * self.inner];
        for from in (0..self.outer).step_by(width) {
            let outputs = width.min(self.outer - from);
            let rows_of = unpacked.par_chunks_mut(self.inner).take(outputs).enumerate();
            rows_of.for_each(|(o, row)| self.row(from + o, row));
            let weight = Mat::new(&unpacked, outputs, self.inner).t();
            let out = MatMut::strided(&mut y[from..], rows, outputs, self.outer);
            matmul(Mat::new(x, rows, self.inner), weight, out, 1.0, accumulate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|i| ((i.wrapping_mul(2_654_435_761) ^ seed) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// The product in f64 of the weight rounded to bf16, and of x if `round`.
    fn expected(w: &[f32], x: &[f32], outer: usize, inner: usize, round: bool) -> Vec<f64> {
        let value = |v: f32, round| if round { bf16::from_f32(v).to_f64() } else { v as f64 };
        x.chunks(inner)
            .flat_map(|x| {
                (0..outer)
                    .map(move |o| (0..inner).map(|i| value(x[i], round) * value(w[o * inner + i], true)).sum::<f64>())
            })
            .collect()
    }

    #[test]
    fn products_equal_the_rounded_weight_at_every_odd_size() {
        for (rows, outer, inner) in [(1, 1, 1), (3, 31, 5), (13, 33, 64), (40, 97, 129), (70, 600, 48)] {
            let (w, x) = (noise(outer * inner, 1), noise(rows * inner, 2));
            let packed = PackedBf16::new(&w, outer, inner);
            let check = |y: &[f32], round: bool| {
                for (got, want) in y.iter().zip(expected(&w, &x, outer, inner, round)) {
                    assert!((*got as f64 - want).abs() <= 1e-5 * (inner as f64).sqrt(), "{got} instead of {want}");
                }
            };
            let mut y = vec![f32::NAN; rows * outer];
            packed.project_portable(&x, &mut y, false);
            check(&y, false);
            y.fill(f32::NAN);
            packed.project(&x, &mut y, false);
            check(&y, PackedBf16::is_native());
            packed.project(&x, &mut y, true);
            let halves: Vec<f32> = y.iter().map(|y| y / 2.0).collect();
            check(&halves, PackedBf16::is_native());
        }
    }
}
