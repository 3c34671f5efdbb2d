//! Products on all threads or on one: our own kernel where it runs, the `gemm` crate elsewhere.
//!
//! On our own kernel a sum is that of its blocks' sums, in order, and the blocks follow from the inner size alone: results
//! depend neither on the number of rows nor of threads, nor on whether an operand was packed once or slab by slab.

use std::cell::Cell;

use rayon::prelude::*;

use super::super::Simd;
use super::library::{matmul_parallel, matmul_serial};
#[cfg(target_arch = "x86_64")]
use super::native;
use super::panels::Panels;
use super::precision::Precision;
use super::{Mat, MatMut};

/// The right-hand operand `[k, n]` of several f32 products on one thread, packed where our own kernel runs: for use inside
/// a parallel task.
pub enum Right<'a> {
    Packed(Panels),
    Plain(Mat<'a>),
}

impl<'a> Right<'a> {
    pub fn new(b: Mat<'a>) -> Self {
        match is_native(Precision::F32) {
            true => Self::Packed(Panels::new_serial(b.t(), Precision::F32)),
            false => Self::Plain(b),
        }
    }

    /// `c ← a · b`, or `c ← c + a · b` with `accumulate`.
    pub fn multiply(&self, a: Mat, c: MatMut, accumulate: bool) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Packed(panels) => {
                assert!(a.cols == panels.inner && c.cols == panels.outer && a.rows == c.rows, "the shapes do not fit");
                assert!(a.cols > 0, "a sum over nothing");
                if c.rows == 0 || c.cols == 0 {
                    return;
                }
                native::multiply_serial(panels, a, c, accumulate);
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Packed(_) => unreachable!("nothing is packed where nothing is native"),
            Self::Plain(b) => matmul_serial(a, *b, c, accumulate),
        }
    }
}

/// Whether our own kernel runs in this precision here.
pub fn is_native(precision: Precision) -> bool {
    match precision {
        Precision::F32 => Simd::level() >= Simd::Avx512,
        Precision::Bf16 => Simd::level() >= Simd::Avx512Bf16,
    }
}

/// Units of the inner index per block: 12 rows of them stay in the first-level cache, and a sum over more of them is split,
/// which also keeps its rounding small.
const UNITS: usize = 512;

/// Units of each block of an inner index: equal, and [`UNITS`] at most.
pub(super) fn block_units(units: usize) -> usize {
    units.div_ceil(units.div_ceil(UNITS).max(1)).max(1)
}

/// Units of a right-hand operand that is packed at once: 8 MiB, which the last-level cache holds.
const SLAB: usize = 2 << 20;

/// `c ← a · b`, or `c ← c + a · b` with `accumulate`, on all threads. a `[m, k]`, b `[k, n]`, c `[m, n]`.
///
/// bf16 rounds a and b where the CPU multiplies bf16 ([`Precision::is_native`]); elsewhere the product is the f32 one.
pub fn matmul(a: Mat, b: Mat, mut c: MatMut, precision: Precision, accumulate: bool) {
    assert!(a.cols == b.rows && a.rows == c.rows && b.cols == c.cols, "matrix shapes do not fit");
    let precision = if is_native(precision) { precision } else { Precision::F32 };
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    if !is_native(precision) {
        return matmul_parallel(a, b, c, accumulate);
    }
    thread_local!(static WORKSPACE: Cell<Panels> = Cell::default());
    let mut panels = WORKSPACE.take();
    let (inner, outer) = (b.rows, b.cols);
    if inner == 0 && !accumulate {
        c.zero();
    }
    // Few outputs: all of them at once, the inner index in pieces; otherwise the outputs in pieces.
    let width = outer.min((SLAB / inner.max(1)).max(512)).next_multiple_of(32);
    // Whole blocks, or the sums would be split elsewhere than those of an operand that was packed once.
    let block = block_units(inner.div_ceil(precision.group()));
    let depth = (SLAB / width / block).max(1) * block * precision.group();
    for from in (0..outer).step_by(width) {
        let outputs = from..outer.min(from + width);
        for k in (0..inner).step_by(depth) {
            let slab = k..inner.min(k + depth);
            panels.pack(b.t().select_rows(outputs.clone()).select_cols(slab.clone()), precision);
            let (a, c) = (a.select_cols(slab), c.select_cols(outputs.clone()));
            panels.multiply_in_blocks(a, c, block, accumulate || k > 0);
        }
    }
    WORKSPACE.set(panels);
}

impl Precision {
    /// Whether this CPU multiplies in this precision with our own kernel.
    pub fn is_native(self) -> bool {
        is_native(self)
    }
}

impl Panels {
    /// `y ← x Wᵀ`, or `y ← y + x Wᵀ` with `accumulate`: x `[rows, inner]`, y `[rows, outer]`, W this matrix. x is rounded
    /// as W is where the CPU multiplies so natively.
    pub fn project(&self, x: &[f32], y: &mut [f32], accumulate: bool) {
        assert!(self.inner > 0 && self.outer > 0, "a weight without elements");
        let rows = x.len() / self.inner;
        let (x, y) = (Mat::new(x, rows, self.inner), MatMut::new(y, rows, self.outer));
        self.multiply_in_blocks(x, y, block_units(self.units()), accumulate);
    }

    /// `block`: units of the inner index that are summed at once.
    fn multiply_in_blocks(&self, x: Mat, y: MatMut, block: usize, accumulate: bool) {
        assert!(x.cols == self.inner && y.cols == self.outer && x.rows == y.rows, "the shapes do not fit");
        if x.rows == 0 || self.outer == 0 {
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if is_native(self.precision) {
            return native::multiply(self, x, y, block, accumulate);
        }
        self.multiply_unpacked(x, y, accumulate);
    }

    /// The same through f32: unpacks a group of panels at a time.
    pub(super) fn multiply_unpacked(&self, x: Mat, mut y: MatMut, accumulate: bool) {
        const OUTPUTS: usize = 512;
        let mut unpacked = vec![0.0f32; OUTPUTS.min(self.outer) * self.inner];
        for from in (0..self.outer).step_by(OUTPUTS) {
            let outputs = from..self.outer.min(from + OUTPUTS);
            let rows = unpacked.par_chunks_mut(self.inner).zip(outputs.clone());
            rows.for_each(|(row, o)| self.row(o, row));
            let weight = Mat::new(&unpacked, outputs.len(), self.inner).t();
            matmul(x, weight, y.select_cols(outputs), Precision::F32, accumulate);
        }
    }
}
