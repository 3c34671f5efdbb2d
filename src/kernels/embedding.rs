//! Rows of a table by index, and the scattered sum that is its gradient.

#[cfg(feature = "cuda")]
pub(super) mod cuda;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::rows_per_task;
use super::storage::{overwrite, tensor, with_f32};

/// `out[i] = table[indices[i]]`, in f32; table `[n, width]`. Panics on an index beyond the table.
pub fn gather(table: &Tensor, indices: &[u32]) -> Result<Tensor> {
    on_gpu!(table => cuda::gather(table, indices));
    let width = table.dim(1)?;
    let mut out = vec![0.0f32; indices.len() * width];
    let rows = rows_per_task(indices.len(), width);
    with_f32(table, |table| {
        out.par_chunks_mut(rows * width).zip(indices.par_chunks(rows)).for_each(|(out, indices)| {
            for (row, &i) in out.chunks_exact_mut(width).zip(indices) {
                row.copy_from_slice(&table[i as usize * width..(i as usize + 1) * width]);
            }
        })
    })?;
    tensor(out, (indices.len(), width))
}

/// `table[indices[i]] += rows[i]`, in order, so that repeated indices always sum alike; table and rows are `width` wide.
pub fn add_rows(table: &Tensor, indices: &[u32], rows: &Tensor) -> Result<()> {
    on_gpu!(table => cuda::add_rows(table, indices, rows));
    let width = table.dim(1)?;
    with_f32(rows, |rows| {
        overwrite(table, |table| {
            for (&i, row) in indices.iter().zip(rows.chunks_exact(width)) {
                let sums = &mut table[i as usize * width..(i as usize + 1) * width];
                for (sum, x) in sums.iter_mut().zip(row) {
                    *sum += x;
                }
            }
        })
    })?
}
