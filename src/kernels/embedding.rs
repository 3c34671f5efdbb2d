//! Rows of a table by index, and the scattered sum that is its gradient.

use rayon::prelude::*;

use super::rows_per_task;

/// `out[i] = table[indices[i]]`; rows are `width` long. Panics on an index beyond the table.
pub fn gather_rows(table: &[f32], width: usize, indices: &[u32]) -> Vec<f32> {
    let mut out = vec![0.0f32; indices.len() * width];
    let rows = rows_per_task(indices.len(), width);
    out.par_chunks_mut(rows * width).zip(indices.par_chunks(rows)).for_each(|(out, indices)| {
        for (row, &i) in out.chunks_exact_mut(width).zip(indices) {
            row.copy_from_slice(&table[i as usize * width..(i as usize + 1) * width]);
        }
    });
    out
}

/// `table[indices[i]] += rows[i]`, in order, so that repeated indices always sum alike.
pub fn add_rows(table: &mut [f32], width: usize, indices: &[u32], rows: &[f32]) {
    for (&i, row) in indices.iter().zip(rows.chunks_exact(width)) {
        let sums = &mut table[i as usize * width..(i as usize + 1) * width];
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += x;
        }
    }
}
