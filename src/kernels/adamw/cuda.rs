//! AdamW and sums of squares on a GPU.

use candle_core::{Result, Tensor};

use super::AdamWUpdate;
use crate::kernels::cuda::{Arg, Grid, Module, empty, module};

const MODULE: Module = module!("adamw");

pub(super) fn apply(update: &AdamWUpdate, [w, g, m, v]: [&Tensor; 4]) -> Result<()> {
    let n = w.elem_count();
    let args = [
        w.into(),
        g.into(),
        m.into(),
        v.into(),
        Arg::Size(n as u64),
        update.beta1.into(),
        update.beta2.into(),
        update.gradient_scale.into(),
        update.step_size.into(),
        update.inverse_correction2.into(),
        update.epsilon.into(),
        update.keep.into(),
    ];
    MODULE.launch("adamw", Grid::over(n), &args)
}

/// Partial sums of all tensors cross to the host at once, which adds them in order.
pub(super) fn sums_of_squares(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    const BLOCKS: usize = 512;
    let partial = empty((tensors.len(), BLOCKS), tensors[0].device())?;
    for (i, tensor) in tensors.iter().enumerate() {
        let (sums, n) = (partial.narrow(0, i, 1)?, tensor.elem_count() as u64);
        MODULE.launch(
            "sum_of_squares",
            Grid::new(BLOCKS, 1, 256),
            &[(*tensor).into(), (&sums).into(), Arg::Size(n)],
        )?;
    }
    let sums = partial.to_vec2::<f32>()?;
    Ok(sums.iter().map(|row| row.iter().map(|&x| x as f64).sum()).collect())
}
