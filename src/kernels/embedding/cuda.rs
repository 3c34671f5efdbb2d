//! Rows by index on a GPU.

use candle_core::{DType, Result, Tensor};

use crate::kernels::cuda::{Grid, Module, empty, module, upload};

const MODULE: Module = module!("embedding");
const THREADS: u32 = 128;

/// The table may be bf16.
pub(in crate::kernels) fn gather(table: &Tensor, indices: &[u32]) -> Result<Tensor> {
    let width = table.dim(1)?;
    let out = empty((indices.len(), width), table.device())?;
    let kernel = if table.dtype() == DType::BF16 { "gather_bf16" } else { "gather_f32" };
    let indices = upload(indices.to_vec(), table.device())?;
    let args = [table.into(), (&indices).into(), (&out).into(), width.into()];
    MODULE.launch(kernel, Grid::new(indices.elem_count(), 1, THREADS), &args)?;
    Ok(out)
}

pub(super) fn add_rows(table: &Tensor, indices: &[u32], rows: &Tensor) -> Result<()> {
    // Rows by the index they go to, those of one index in order.
    let mut order: Vec<u32> = (0..indices.len() as u32).collect();
    order.sort_by_key(|&row| indices[row as usize]);
    let mut targets: Vec<u32> = vec![];
    let mut starts: Vec<u32> = vec![];
    for (at, &row) in order.iter().enumerate() {
        let target = indices[row as usize];
        if targets.last() != Some(&target) {
            targets.push(target);
            starts.push(at as u32);
        }
    }
    starts.push(order.len() as u32);
    let [targets, starts, order] = [targets, starts, order].map(|table_of| upload(table_of, table.device()));
    let (targets, starts, order) = (targets?, starts?, order?);
    let args = [table.into(), (&targets).into(), (&starts).into(), (&order).into(), rows.into(), table.dim(1)?.into()];
    MODULE.launch("add_rows", Grid::new(targets.elem_count(), 1, THREADS), &args)
}
