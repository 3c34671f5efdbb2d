//! Reading and writing the f32 slice behind a candle tensor that lives on the CPU.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, bail};

/// The contiguous f32 elements of an op's argument.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a kernel was given a tensor that is not contiguous"),
    }
}

/// Lends the elements of a contiguous f32 CPU tensor to `f`.
pub fn with_f32<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(slice(storage, layout)?)),
        _ => bail!("a CPU kernel was given a tensor of another device"),
    }
}

/// Lends the elements of a contiguous f32 CPU tensor to `f` for writing. No graph may still need the old values:
/// candle keeps no version counter.
pub fn overwrite(tensor: &Tensor, f: impl Fn(&mut [f32])) -> Result<()> {
    struct Overwrite<F>(F);
    impl<F: Fn(&mut [f32])> InplaceOp1 for Overwrite<F> {
        fn name(&self) -> &'static str {
            "overwrite"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            let (start, end) = match layout.contiguous_offsets() {
                Some(bounds) => bounds,
                None => bail!("only a contiguous tensor can be overwritten"),
            };
            match storage {
                CpuStorage::F32(data) => self.0(&mut data[start..end]),
                other => bail!("only an f32 tensor can be overwritten, this one is {:?}", other.dtype()),
            }
            Ok(())
        }
    }
    use candle_core::backend::BackendStorage;
    tensor.inplace_op1(&Overwrite(f))
}
