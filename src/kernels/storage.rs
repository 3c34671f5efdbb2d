//! Reading and writing the f32 slice behind a candle tensor that lives on the CPU.

use std::cell::Cell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Shape, Storage, Tensor, bail};

/// Lends the elements of a contiguous f32 CPU tensor to `f`.
pub fn with_f32<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(storage), Some((start, end))) => Ok(f(&storage.as_slice::<f32>()?[start..end])),
        (Storage::Cpu(_), None) => bail!("a kernel was given a tensor that is not contiguous"),
        _ => bail!("a CPU kernel was given a tensor of another device"),
    }
}

/// [`with_f32`] of several tensors.
pub(super) fn with_all<const N: usize, R>(tensors: [&Tensor; N], f: impl FnOnce([&[f32]; N]) -> R) -> Result<R> {
    let guards = tensors.map(Tensor::storage_and_layout);
    let mut slices = [[].as_slice(); N];
    for ((storage, layout), slice) in guards.iter().zip(&mut slices) {
        *slice = match (&**storage, layout.contiguous_offsets()) {
            (Storage::Cpu(storage), Some((start, end))) => &storage.as_slice::<f32>()?[start..end],
            _ => bail!("a CPU kernel was given a tensor of another device, or one that is not contiguous"),
        };
    }
    Ok(f(slices))
}

/// A CPU tensor that takes `data` over.
pub(super) fn tensor(data: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, shape.into(), &candle_core::Device::Cpu)
}

/// What a gradient is added to: a copy of `onto`, or as many zeros as `x` has elements.
pub(super) fn started(onto: Option<&Tensor>, x: &Tensor) -> Result<Vec<f32>> {
    match onto {
        Some(onto) => with_f32(onto, <[f32]>::to_vec),
        None => Ok(vec![0.0; x.elem_count()]),
    }
}

/// Lends the elements of a contiguous f32 CPU tensor to `f` for writing. No graph may still need the old values:
/// candle keeps no version counter.
pub fn overwrite<R>(tensor: &Tensor, f: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    /// What is to be done, and then what it returned: candle lends the storage to a shared reference.
    struct Overwrite<F, R>(Cell<Option<F>>, Cell<Option<R>>);
    impl<R, F: FnOnce(&mut [f32]) -> R> InplaceOp1 for Overwrite<F, R> {
        fn name(&self) -> &'static str {
            "overwrite"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            let (start, end) = match layout.contiguous_offsets() {
                Some(bounds) => bounds,
                None => bail!("only a contiguous tensor can be overwritten"),
            };
            match (storage, self.0.take()) {
                (CpuStorage::F32(data), Some(f)) => self.1.set(Some(f(&mut data[start..end]))),
                (other, _) => bail!("only an f32 tensor can be overwritten, this one is {:?}", other.dtype()),
            }
            Ok(())
        }
    }
    use candle_core::backend::BackendStorage;
    let op = Overwrite(Cell::new(Some(f)), Cell::new(None));
    tensor.inplace_op1(&op)?;
    op.1.into_inner().ok_or_else(|| candle_core::Error::msg("a CPU kernel was given a tensor of another device"))
}
