//! Row-major f32 matrix products over the `gemm` crate, with the bounds checked once.

use gemm::Parallelism;

/// A borrowed matrix: `rows × cols` elements at `row · row_stride + col · col_stride`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A contiguous row-major matrix.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Rows that lie `row_stride` elements apart.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(rows == 0 || cols == 0 || (rows - 1) * row_stride + cols <= data.len(), "matrix exceeds its slice");
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            data: self.data,
        }
    }
}

/// A mutable row-major matrix whose rows lie `row_stride` elements apart.
pub struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatMut<'a> {
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(rows == 0 || cols == 0 || (rows - 1) * row_stride + cols <= data.len(), "matrix exceeds its slice");
        Self { data, rows, cols, row_stride }
    }
}

/// `c ← alpha · a · b`, or `c ← c + alpha · a · b` with `accumulate`, on all threads.
pub fn matmul(a: Mat, b: Mat, c: MatMut, alpha: f32, accumulate: bool) {
    product(a, b, c, alpha, accumulate, Parallelism::Rayon(0));
}

/// [`matmul`] on the calling thread, for use inside a parallel task.
pub fn matmul_serial(a: Mat, b: Mat, c: MatMut, alpha: f32, accumulate: bool) {
    product(a, b, c, alpha, accumulate, Parallelism::None);
}

fn product(a: Mat, b: Mat, c: MatMut, alpha: f32, accumulate: bool, threads: Parallelism) {
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
            alpha,
            false,
            false,
            false,
            threads,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_views_equal_the_sum_over_the_inner_index() {
        let a: Vec<f32> = (0..12).map(|x| x as f32).collect();
        let b: Vec<f32> = (0..20).map(|x| (x as f32).sin()).collect();
        let (m, n, k) = (3, 5, 4);
        let mut c = vec![1.0; m * n];
        matmul(Mat::new(&a, m, k), Mat::new(&b, n, k).t(), MatMut::new(&mut c, m, n), 0.5, true);
        for i in 0..m {
            for j in 0..n {
                let want = 1.0 + 0.5 * (0..k).map(|l| a[i * k + l] * b[j * k + l]).sum::<f32>();
                assert!((c[i * n + j] - want).abs() < 1e-5);
            }
        }
    }
}
