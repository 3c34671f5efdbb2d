//! y = x Wᵀ + b, with dW and db summed in place.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::gemm::{Mat, MatMut, matmul};
use super::packed::PackedBf16;
use super::storage::{slice, with_f32};
use super::{GradSlot, math, rows_per_task};
use rayon::prelude::*;

/// A matrix `[out, in]`, or any other tensor of a model.
#[derive(Debug, Clone)]
pub enum Weight {
    /// f32; may learn.
    Dense(Tensor),
    /// A frozen matrix in bf16.
    Packed(Arc<PackedBf16>),
}

impl Weight {
    pub fn dims(&self) -> Vec<usize> {
        match self {
            Self::Dense(tensor) => tensor.dims().to_vec(),
            Self::Packed(packed) => vec![packed.outer(), packed.inner()],
        }
    }

    /// The f32 tensor; an error for what was packed.
    pub fn dense(&self) -> Result<&Tensor> {
        match self {
            Self::Dense(tensor) => Ok(tensor),
            Self::Packed(_) => bail!("a packed weight is frozen and has no f32 tensor"),
        }
    }

    /// `y ← x Wᵀ`, or `y ← y + x Wᵀ` with `accumulate`: x `[n, in]`, y `[n, out]`.
    fn project(&self, x: &[f32], y: &mut [f32], accumulate: bool) -> Result<()> {
        match self {
            Self::Dense(weight) => {
                let (outer, inner) = weight.dims2()?;
                let rows = x.len() / inner;
                with_f32(weight, |weight| {
                    let product = MatMut::new(y, rows, outer);
                    matmul(Mat::new(x, rows, inner), Mat::new(weight, outer, inner).t(), product, 1.0, accumulate);
                })
            }
            Self::Packed(weight) => {
                weight.project(x, y, accumulate);
                Ok(())
            }
        }
    }
}

/// A dense layer: weight `[out, in]`, optional bias `[out]`. Without gradient slots it is frozen.
#[derive(Debug, Clone)]
pub struct Linear {
    pub weight: Weight,
    pub bias: Option<Tensor>,
    pub weight_grad: Option<GradSlot>,
    pub bias_grad: Option<GradSlot>,
}

impl Linear {
    /// `[T, in]` to `[T, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1(self.clone())
    }
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, inner) = layout.shape().dims2()?;
        let outer = self.weight.dims()[0];
        let x = slice(storage, layout)?;
        let mut y = vec![0.0f32; rows * outer];
        if let Some(bias) = &self.bias {
            with_f32(bias, |bias| y.par_chunks_mut(outer).for_each(|row| row.copy_from_slice(bias)))?;
        }
        debug_assert_eq!(x.len(), rows * inner);
        self.weight.project(x, &mut y, self.bias.is_some())?;
        Ok((CpuStorage::F32(y), (rows, outer).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (rows, inner) = x.dims2()?;
        let outer = dy.dim(1)?;
        let dy = dy.contiguous()?;
        let dx = with_f32(&dy, |dy| -> Result<Vec<f32>> {
            if let Some(slot) = &self.weight_grad {
                let mut grad = slot.lock();
                with_f32(x, |x| {
                    let product = MatMut::new(&mut grad, outer, inner);
                    matmul(Mat::new(dy, rows, outer).t(), Mat::new(x, rows, inner), product, 1.0, true);
                })?;
            }
            if let Some(slot) = &self.bias_grad {
                let mut grad = slot.lock();
                add_column_sums(dy, &mut grad);
            }
            let mut dx = vec![0.0f32; rows * inner];
            with_f32(self.weight.dense()?, |weight| {
                let product = MatMut::new(&mut dx, rows, inner);
                matmul(Mat::new(dy, rows, outer), Mat::new(weight, outer, inner), product, 1.0, false);
            })?;
            Ok(dx)
        })??;
        Ok(Some(Tensor::from_vec(dx, (rows, inner), x.device())?))
    }
}

/// Adds the sum of all rows of `[rows, sums.len()]` to `sums`; each column in row order, so that it is reproducible.
pub(super) fn add_column_sums(rows: &[f32], sums: &mut [f32]) {
    let width = sums.len();
    let block = rows_per_task(width, rows.len() / width.max(1)).max(16);
    sums.par_chunks_mut(block).enumerate().for_each(|(b, sums)| {
        math::vectorize(
            #[inline(always)]
            || {
                for row in rows.chunks_exact(width) {
                    for (sum, x) in sums.iter_mut().zip(&row[b * block..]) {
                        *sum += x;
                    }
                }
            },
        )
    });
}
