//! Launching our kernels on candle's CUDA tensors, and the products that cuBLAS does. Besides `device`, only this module and
//! each op's own `cuda.rs` know that there is CUDA.

use std::ffi::c_void;

use candle_core::cuda_backend::cudarc::cublas::{result::gemm_ex, sys as cublas};
use candle_core::cuda_backend::cudarc::driver::{CudaStream, DevicePtr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaStorage, gemm_reduced_precision_f32};
use candle_core::{DType, Device, Result, Shape, Storage, Tensor, bail};

use super::Precision;

/// The kernels of one .cu file.
pub(super) struct Module {
    pub name: &'static str,
    /// What build.rs compiled it to.
    pub ptx: &'static str,
}

/// The [`Module`] of `src/kernels/NAME/NAME.cu`.
macro_rules! module {
    ($name:literal) => {
        crate::kernels::cuda::Module { name: $name, ptx: include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")) }
    };
}
pub(super) use module;

/// How a kernel is spread: blocks in two dimensions, threads of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub blocks: (usize, usize),
    pub threads: u32,
}

impl Grid {
    pub fn new(x: usize, y: usize, threads: u32) -> Self {
        Self { blocks: (x, y), threads }
    }

    /// A warp for each of `rows` rows, four to a block.
    pub fn of_warps(rows: usize) -> Self {
        Self::new(rows.div_ceil(4), 1, 4 * 32)
    }

    /// For loops over `n` elements that step by the whole grid.
    pub fn over(n: usize) -> Self {
        const THREADS: usize = 256;
        const BLOCKS: usize = 4096;
        Self::new(n.div_ceil(THREADS).min(BLOCKS), 1, THREADS as u32)
    }
}

/// Rows of `x` that are as wide as `weight`, and that width.
pub(super) fn rows_and_width(weight: &Tensor, x: &Tensor) -> Result<(usize, usize)> {
    let width = weight.dim(0)?;
    Ok((x.elem_count() / width, width))
}

/// One argument of a kernel, of exactly the type that the kernel declares: the driver copies bytes.
#[derive(Clone, Copy)]
pub(super) enum Arg<'a> {
    /// The address of its first element; contiguous.
    Tensor(&'a Tensor),
    /// `unsigned`
    U32(u32),
    /// `size_t`
    Size(u64),
    /// `float`
    F32(f32),
}

impl<'a> From<&'a Tensor> for Arg<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Self::Tensor(tensor)
    }
}

impl From<f32> for Arg<'_> {
    fn from(x: f32) -> Self {
        Self::F32(x)
    }
}

impl From<usize> for Arg<'_> {
    /// Counts fit 32 bits: memory would not hold more rows, and offsets are computed in 64.
    fn from(n: usize) -> Self {
        Self::U32(n as u32)
    }
}

impl From<bool> for Arg<'_> {
    fn from(flag: bool) -> Self {
        Self::U32(flag.into())
    }
}

impl Module {
    /// Runs the kernel `name`. What it writes to are tensors that nobody else holds, or that are meant to change.
    pub fn launch(&self, name: &str, grid: Grid, args: &[Arg]) -> Result<()> {
        enum Bytes {
            Eight(u64),
            Four(u32),
            Float(f32),
        }
        let Some(Arg::Tensor(first)) = args.first() else { bail!("a kernel's first argument is a tensor") };
        if grid.blocks.0 == 0 || grid.blocks.1 == 0 {
            return Ok(());
        }
        let device = first.device().as_cuda_device()?;
        let stream = device.cuda_stream();
        let bytes = |arg: &Arg| {
            Ok(match *arg {
                Arg::Tensor(tensor) if !tensor.device().same_device(first.device()) => {
                    bail!("kernel {name} was given tensors of two devices")
                }
                Arg::Tensor(tensor) => Bytes::Eight(address(tensor, &stream)?),
                Arg::U32(n) => Bytes::Four(n),
                Arg::Size(n) => Bytes::Eight(n),
                Arg::F32(x) => Bytes::Float(x),
            })
        };
        let values = args.iter().map(bytes).collect::<Result<Vec<_>>>()?;
        let function = device.get_or_load_custom_func(name, self.name, self.ptx)?;
        let mut builder = function.builder();
        for value in &values {
            match value {
                Bytes::Eight(n) => builder.arg(n),
                Bytes::Four(n) => builder.arg(n),
                Bytes::Float(x) => builder.arg(x),
            };
        }
        let config = LaunchConfig {
            grid_dim: (grid.blocks.0 as u32, grid.blocks.1 as u32, 1),
            block_dim: (grid.threads, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the arguments are those the kernel declares, which its op's tests hold; its tensors live until the
        // stream has run it, because memory is freed in the stream's order.
        unsafe { builder.launch(config) }.map_err(candle_core::Error::wrap)?;
        Ok(())
    }
}

/// Where a contiguous tensor's first element lies in the GPU's memory.
fn address(tensor: &Tensor, stream: &CudaStream) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cuda(storage), true) = (&*storage, layout.is_contiguous()) else {
        bail!("a CUDA kernel was given a tensor that is not contiguous or of another device")
    };
    fn base<T: candle_core::cuda_backend::CudaDType>(storage: &CudaStorage, stream: &CudaStream) -> Result<u64> {
        Ok(storage.as_cuda_slice::<T>()?.device_ptr(stream).0)
    }
    let base = match tensor.dtype() {
        DType::F32 => base::<f32>(storage, stream)?,
        DType::BF16 => base::<half::bf16>(storage, stream)?,
        DType::F16 => base::<half::f16>(storage, stream)?,
        DType::U32 => base::<u32>(storage, stream)?,
        other => bail!("a CUDA kernel was given a tensor of {other:?}"),
    };
    Ok(base + (layout.start_offset() * tensor.dtype().size_in_bytes()) as u64)
}

/// An f32 tensor that a kernel is about to fill.
pub(super) fn empty(shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    // SAFETY: every element is written before it is read, which the ops' tests hold (the emulator starts with NaN).
    unsafe { Tensor::empty(shape.into(), DType::F32, device) }
}

/// A small table for a kernel.
pub(super) fn upload(values: Vec<u32>, device: &Device) -> Result<Tensor> {
    let len = values.len();
    Tensor::from_vec(values, len, device)
}

/// One operand of a product, possibly transposed, rounded to what the product is to be in.
pub(super) struct Operand {
    tensor: Tensor,
    transposed: bool,
}

impl Operand {
    pub fn new(tensor: &Tensor, precision: Precision) -> Result<Self> {
        let dtype = match precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        };
        Ok(Self { tensor: tensor.to_dtype(dtype)?, transposed: false })
    }

    pub fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    fn dims(&self) -> Result<(usize, usize)> {
        let (rows, cols) = self.tensor.dims2()?;
        Ok(if self.transposed { (cols, rows) } else { (rows, cols) })
    }
}

/// `out ← a b`, or `out ← out + a b`; sums and out in f32. f32 operands are multiplied as such, unless `train.tf32` allows
/// less.
pub(super) fn multiply(a: &Operand, b: &Operand, out: &Tensor, accumulate: bool) -> Result<()> {
    let ((m, k), (k2, n)) = (a.dims()?, b.dims()?);
    if k != k2 || out.dims2()? != (m, n) {
        bail!("a product of {m} × {k} and {k2} × {n} into {:?}", out.dims());
    }
    if m == 0 || n == 0 || k == 0 {
        return if accumulate { Ok(()) } else { out.zero_set() };
    }
    let device = out.device().as_cuda_device()?;
    let stream = device.cuda_stream();
    let of_dtype = |t: &Tensor| match t.dtype() {
        DType::BF16 => cublas::cudaDataType::CUDA_R_16BF,
        _ => cublas::cudaDataType::CUDA_R_32F,
    };
    let compute = match (a.tensor.dtype(), gemm_reduced_precision_f32()) {
        (DType::F32, true) => cublas::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
        _ => cublas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
    };
    let operation = |x: &Operand| match x.transposed {
        true => cublas::cublasOperation_t::CUBLAS_OP_T,
        false => cublas::cublasOperation_t::CUBLAS_OP_N,
    };
    let leading = |x: &Operand| Ok::<_, candle_core::Error>(x.tensor.dim(1)? as i32);
    let (one, beta) = (1.0f32, if accumulate { 1.0f32 } else { 0.0 });
    let pointer = |t: &Tensor| Ok::<_, candle_core::Error>(address(t, &stream)? as *const c_void);
    stream.context().bind_to_thread().map_err(candle_core::Error::wrap)?;
    // cuBLAS counts columns first: it is asked for outᵀ = bᵀ aᵀ.
    // SAFETY: shapes and leading dimensions are those of contiguous tensors, checked above.
    unsafe {
        gemm_ex(
            *device.cublas_handle().handle(),
            operation(b),
            operation(a),
            n as i32,
            m as i32,
            k as i32,
            (&raw const one).cast(),
            pointer(&b.tensor)?,
            of_dtype(&b.tensor),
            leading(b)?,
            pointer(&a.tensor)?,
            of_dtype(&a.tensor),
            leading(a)?,
            (&raw const beta).cast(),
            address(out, &stream)? as *mut c_void,
            cublas::cudaDataType::CUDA_R_32F,
            n as i32,
            compute,
            cublas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .map_err(candle_core::Error::wrap)
}
