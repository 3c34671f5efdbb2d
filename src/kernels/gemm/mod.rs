//! Matrix products on slices, f32 or rounded to bf16, always summed in f32.
//!
//! Large products run on our own kernel where the CPU has AVX-512 ([`multiply`]): the right-hand operand is packed into
//! [`Panels`], once for a frozen weight and slab by slab for any other. Elsewhere, and inside parallel tasks, the `gemm`
//! crate does them in f32.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod library;
mod multiply;
#[cfg(target_arch = "x86_64")]
mod native;
mod panels;
mod precision;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub use multiply::{Right, matmul};
pub use panels::Panels;
pub use precision::Precision;

/// A borrowed matrix: element (row, col) at `row · row_stride + col · col_stride`; one of the two strides is 1.
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
        assert!(fits(data.len(), rows, cols, row_stride), "matrix exceeds its slice");
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

    fn select_rows(self, rows: Range<usize>) -> Self {
        debug_assert!(rows.start <= rows.end && rows.end <= self.rows);
        Self { data: &self.data[(rows.start * self.row_stride).min(self.data.len())..], rows: rows.len(), ..self }
    }

    fn select_cols(self, cols: Range<usize>) -> Self {
        self.t().select_rows(cols).t()
    }

    /// Row `i` of a matrix whose rows are contiguous.
    #[inline(always)]
    fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.row_stride..][..self.cols]
    }

    /// Column `i` of a matrix whose columns are contiguous.
    #[inline(always)]
    fn column(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.col_stride..][..self.rows]
    }
}

/// Whether rows of `cols` elements that lie `row_stride` apart fit into `len` elements.
fn fits(len: usize, rows: usize, cols: usize, row_stride: usize) -> bool {
    let end = || (rows - 1).checked_mul(row_stride)?.checked_add(cols);
    rows == 0 || cols == 0 || end().is_some_and(|end| end <= len)
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
        assert!(fits(data.len(), rows, cols, row_stride), "matrix exceeds its slice");
        assert!(rows <= 1 || row_stride >= cols, "rows overlap");
        Self { data, rows, cols, row_stride }
    }

    fn zero(&mut self) {
        (0..self.rows).for_each(|row| self.data[row * self.row_stride..][..self.cols].fill(0.0));
    }

    fn select_cols(&mut self, cols: Range<usize>) -> MatMut<'_> {
        let data = &mut self.data[cols.start..];
        MatMut { data, rows: self.rows, cols: cols.len(), row_stride: self.row_stride }
    }
}
