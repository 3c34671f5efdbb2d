//! Products of the `gemm` crate: in f32, for any CPU and any size.

use gemm::Parallelism;

use super::{Mat, MatMut};

/// `c ← a · b`, or `c ← c + a · b` with `accumulate`, on the calling thread.
pub(super) fn matmul_serial(a: Mat, b: Mat, c: MatMut, accumulate: bool) {
    product(a, b, c, accumulate, Parallelism::None);
}

/// The same on all threads.
pub(super) fn matmul_parallel(a: Mat, b: Mat, c: MatMut, accumulate: bool) {
    product(a, b, c, accumulate, Parallelism::Rayon(0));
}

fn product(a: Mat, b: Mat, c: MatMut, accumulate: bool, threads: Parallelism) {
    assert!(a.cols == b.rows && a.rows == c.rows && b.cols == c.cols, "matrix shapes do not fit");
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    // SAFETY: the constructors checked that every element of the three matrices lies inside its slice, the shapes fit
    // each other, and `c` is borrowed mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            c.rows,
            c.cols,
            a.cols,
            c.data.as_mut_ptr(),
            1,
            c.row_stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}
