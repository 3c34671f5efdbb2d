//! y = x Wᵀ + b, with dW and db summed in place.

#[cfg(feature = "cuda")]
pub(super) mod cuda;

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::embedding::gather;
use super::gemm::{Mat, MatMut, Panels, Precision, matmul};
use super::storage::{overwrite, tensor, with_f32};
use super::{Adapter, GradSlot, Quantised, math, rows_per_task};

/// A matrix `[out, in]`, or any other tensor of a model.
#[derive(Debug, Clone)]
pub enum Weight {
    /// f32; may learn.
    Dense(Tensor),
    /// A frozen matrix, packed once.
    Packed(Arc<Panels>),
    /// A frozen bf16 matrix on a GPU.
    Half(Tensor),
    /// A frozen matrix as a GGUF file holds it, and what its products round to.
    Quantised(Arc<Quantised>, Precision),
}

impl Weight {
    /// A CPU tensor that will not change again, on the device it is for: a matrix is packed if our own kernel can make use
    /// of it.
    pub fn frozen(tensor: Tensor, precision: Precision, device: &Device) -> Result<Self> {
        if device.is_cuda() {
            return match (tensor.rank(), precision) {
                // Rounded here: half as much has to cross.
                (2, Precision::Bf16) => Ok(Self::Half(tensor.to_dtype(DType::BF16)?.to_device(device)?)),
                _ => Ok(Self::Dense(tensor.to_device(device)?)),
            };
        }
        match *tensor.dims() {
            // bf16 halves the memory in any case.
            [outer, inner] if precision == Precision::Bf16 || precision.is_native() => {
                let pack = |values: &[f32]| Panels::new(Mat::new(values, outer, inner), precision);
                Ok(Self::Packed(Arc::new(with_f32(&tensor, pack)?)))
            }
            _ => Ok(Self::Dense(tensor)),
        }
    }

    pub fn dims(&self) -> Vec<usize> {
        match self {
            Self::Dense(tensor) | Self::Half(tensor) => tensor.dims().to_vec(),
            Self::Packed(packed) => vec![packed.outer(), packed.inner()],
            Self::Quantised(matrix, _) => vec![matrix.outer(), matrix.inner()],
        }
    }

    pub fn device(&self) -> &Device {
        match self {
            Self::Dense(tensor) | Self::Half(tensor) => tensor.device(),
            Self::Packed(_) | Self::Quantised(..) => &Device::Cpu,
        }
    }

    /// The same on `device`, frozen; itself where it is there already.
    pub fn frozen_on(&self, device: &Device) -> Result<Self> {
        if self.device().same_device(device) {
            return Ok(self.clone());
        }
        Self::frozen(self.values()?.to_device(&Device::Cpu)?, self.precision().unwrap_or_default(), device)
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(tensor) | Self::Half(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
            Self::Packed(packed) => packed.bytes(),
            Self::Quantised(matrix, _) => matrix.bytes(),
        }
    }

    /// What its products are rounded to, if it does not leave that to whoever multiplies.
    pub fn precision(&self) -> Option<Precision> {
        match self {
            Self::Dense(_) => None,
            Self::Packed(packed) => Some(packed.precision()),
            Self::Half(_) => Some(Precision::Bf16),
            Self::Quantised(_, precision) => Some(*precision),
        }
    }

    /// The f32 tensor; an error for what was packed or rounded.
    pub fn dense(&self) -> Result<&Tensor> {
        match self {
            Self::Dense(tensor) => Ok(tensor),
            Self::Packed(_) | Self::Half(_) | Self::Quantised(..) => {
                bail!("a frozen weight that was packed or rounded has no f32 tensor")
            }
        }
    }

    /// Its values in f32 on its device, packed or not.
    pub fn values(&self) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => Ok(tensor.clone()),
            Self::Half(tensor) => tensor.to_dtype(DType::F32),
            Self::Quantised(matrix, _) => tensor(matrix.values()?, (matrix.outer(), matrix.inner())),
            Self::Packed(packed) => self.gather(&(0..packed.outer() as u32).collect::<Vec<_>>()),
        }
    }

    /// Rows of the matrix by index, in f32.
    pub fn gather(&self, indices: &[u32]) -> Result<Tensor> {
        match self {
            Self::Dense(table) | Self::Half(table) => gather(table, indices),
            Self::Packed(packed) => tensor(packed.rows(indices), (indices.len(), packed.inner())),
            Self::Quantised(matrix, _) => tensor(matrix.rows(indices)?, (indices.len(), matrix.inner())),
        }
    }

    /// x Wᵀ in f32, `[n, in]` to `[n, out]`; a packed weight has a precision of its own.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, outer) = (x.dim(0)?, self.dims()[0]);
        on_gpu!(x => cuda::logits(self, x));
        let mut y = vec![0.0f32; rows * outer];
        self.write_logits(x, &mut y)?;
        tensor(y, (rows, outer))
    }

    /// [`Self::logits`] into a buffer on the host.
    pub fn write_logits(&self, x: &Tensor, y: &mut [f32]) -> Result<()> {
        on_gpu!(x => {
            y.copy_from_slice(&self.logits(x)?.flatten_all()?.to_vec1::<f32>()?);
            Ok(())
        });
        with_f32(x, |x| self.project(x, y, Precision::F32, false))?
    }

    /// `y ← x Wᵀ`, or `y ← y + x Wᵀ` with `accumulate`: x `[n, in]`, y `[n, out]`.
    fn project(&self, x: &[f32], y: &mut [f32], precision: Precision, accumulate: bool) -> Result<()> {
        match self {
            Self::Dense(weight) => {
                let (outer, inner) = weight.dims2()?;
                let rows = x.len() / inner;
                with_f32(weight, |weight| {
                    let (x, y) = (Mat::new(x, rows, inner), MatMut::new(y, rows, outer));
                    matmul(x, Mat::new(weight, outer, inner).t(), y, precision, accumulate);
                })
            }
            Self::Packed(weight) => {
                weight.project(x, y, accumulate);
                Ok(())
            }
            Self::Quantised(matrix, precision) => matrix.project(x, y, *precision, accumulate),
            Self::Half(_) => bail!("a weight on a GPU was given rows on the CPU"),
        }
    }
}

/// A dense layer: weight `[out, in]`, optional bias `[out]`, optional low-rank correction. Without gradient slots it is
/// frozen. `precision` is what the operands of a dense weight's products are rounded to.
#[derive(Debug, Clone)]
pub struct Linear {
    pub weight: Weight,
    pub bias: Option<Tensor>,
    pub weight_grad: Option<GradSlot>,
    pub bias_grad: Option<GradSlot>,
    pub adapter: Option<Arc<Adapter>>,
}

impl Linear {
    /// A layer of `weight` alone that does not learn.
    pub fn frozen(weight: Weight) -> Self {
        Self { weight, bias: None, weight_grad: None, bias_grad: None, adapter: None }
    }

    /// `[n, in]` to `[n, out]`.
    pub fn forward(&self, x: &Tensor, precision: Precision) -> Result<Tensor> {
        self.corrected(x, self.uncorrected(x, None, precision)?, precision)
    }

    /// `residual + x Wᵀ + b`, residual `[n, out]`.
    pub fn forward_onto(&self, x: &Tensor, residual: &Tensor, precision: Precision) -> Result<Tensor> {
        self.corrected(x, self.uncorrected(x, Some(residual), precision)?, precision)
    }

    fn corrected(&self, x: &Tensor, y: Tensor, precision: Precision) -> Result<Tensor> {
        match &self.adapter {
            Some(adapter) => adapter.forward_onto(x, &y, precision),
            None => Ok(y),
        }
    }

    fn uncorrected(&self, x: &Tensor, residual: Option<&Tensor>, precision: Precision) -> Result<Tensor> {
        on_gpu!(x => cuda::forward(self, x, residual, precision));
        let (rows, outer) = (x.dim(0)?, self.weight.dims()[0]);
        match residual {
            None => self.onto(x, vec![0.0f32; rows * outer], precision, false),
            Some(residual) => self.onto(x, with_f32(residual, <[f32]>::to_vec)?, precision, true),
        }
    }

    fn onto(&self, x: &Tensor, mut y: Vec<f32>, precision: Precision, accumulate: bool) -> Result<Tensor> {
        let (rows, inner) = x.dims2()?;
        let [outer, taken] = self.weight.dims()[..] else { bail!("a linear layer's weight is a matrix") };
        if inner != taken || y.len() != rows * outer {
            bail!("rows of {inner} given to a layer of {taken} to {outer}");
        }
        if let Some(bias) = &self.bias {
            with_f32(bias, |bias| {
                y.par_chunks_mut(outer).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b))
            })?;
        }
        with_f32(x, |x| self.weight.project(x, &mut y, precision, accumulate || self.bias.is_some()))??;
        tensor(y, (rows, outer))
    }

    /// Adds the gradients of weight, bias and correction to their slots and returns ∂x, `[n, in]`; with `onto` it is added to
    /// that tensor, which nobody else may need any more.
    pub fn backward(&self, x: &Tensor, dy: &Tensor, onto: Option<Tensor>, precision: Precision) -> Result<Tensor> {
        let dx = self.backward_uncorrected(x, dy, onto, precision)?;
        match &self.adapter {
            Some(adapter) => adapter.backward(x, dy, dx, precision),
            None => Ok(dx),
        }
    }

    fn backward_uncorrected(
        &self,
        x: &Tensor,
        dy: &Tensor,
        onto: Option<Tensor>,
        precision: Precision,
    ) -> Result<Tensor> {
        let (rows, inner) = x.dims2()?;
        let outer = dy.dim(1)?;
        if self.weight.dims() != [outer, inner] || dy.dim(0)? != rows {
            bail!("gradients {:?} for inputs {:?} of a layer {:?}", dy.dims(), x.dims(), self.weight.dims());
        }
        on_gpu!(x => cuda::backward(self, x, dy, onto, precision));
        let accumulate = onto.is_some();
        let dx = match onto {
            Some(dx) => dx,
            None => tensor(vec![0.0f32; rows * inner], (rows, inner))?,
        };
        with_f32(dy, |dy| -> Result<()> {
            let dy_matrix = Mat::new(dy, rows, outer);
            if let Some(slot) = &self.weight_grad {
                with_f32(x, |x| {
                    let x = Mat::new(x, rows, inner);
                    slot.update(|grad| matmul(dy_matrix.t(), x, MatMut::new(grad, outer, inner), precision, true))
                })??;
            }
            if let Some(slot) = &self.bias_grad {
                slot.update(|grad| add_column_sums(dy, grad))?;
            }
            with_f32(self.weight.dense()?, |weight| {
                let weight = Mat::new(weight, outer, inner);
                overwrite(&dx, |dx| matmul(dy_matrix, weight, MatMut::new(dx, rows, inner), precision, accumulate))
            })?
        })??;
        Ok(dx)
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
