//! NVIDIA GPUs through candle and cudarc: opening one, and what its driver says of it.

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::cuda_backend::cudarc::driver::{CudaContext, result, sys};
use candle_core::cuda_backend::{gemm_reduced_precision_f32, set_gemm_reduced_precision_f32};
use candle_core::{DType, Tensor};

use super::{Device, Opened};

pub const BUILT: bool = true;

/// A second handle of one GPU would be another device to candle: each is opened once.
pub fn open(n: usize) -> Result<Opened, String> {
    static OPEN: Mutex<BTreeMap<usize, Opened>> = Mutex::new(BTreeMap::new());
    let mut open = OPEN.lock().expect("nothing panics while it opens a GPU");
    if let Some(opened) = open.get(&n) {
        return Ok(opened.clone());
    }
    let opened = open_anew(n).map_err(|e| explain(n, &e.to_string()))?;
    open.insert(n, opened.clone());
    Ok(opened)
}

fn open_anew(n: usize) -> candle_core::Result<Opened> {
    let device = Device::new_cuda_with_stream(n)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: everything on this device goes through its one stream, in order, and what leaves for another is waited for
    // (`moved`).
    unsafe { cuda.disable_event_tracking() };
    // A GPU that cannot run a kernel is none.
    let one = Tensor::zeros(1, DType::F32, &device)?.affine(1.0, 1.0)?.to_vec1::<f32>()?;
    if one != [1.0] {
        candle_core::bail!("it computes 0 + 1 = {one:?}");
    }
    keep_freed_memory(n);
    let context = CudaContext::new(n).map_err(candle_core::Error::wrap)?;
    let name = context.name().map_err(candle_core::Error::wrap)?;
    let total = memory(&device).map_or(String::new(), |(_, total)| format!(", {} GiB", (total + (1 << 29)) >> 30));
    let (major, minor) = driver();
    let hardware = Some(format!("{name} with a driver for CUDA {major}.{minor}"));
    Ok(Opened { device, description: format!("cuda:{n} ({name}{total})"), hardware })
}

/// The CUDA version of the driver; 0.0 where it does not say.
fn driver() -> (i32, i32) {
    let mut version = 0;
    // SAFETY: writes one number.
    unsafe { sys::cuDriverGetVersion(&mut version) };
    (version / 1000, version % 1000 / 10)
}

/// The pool gives memory back to the driver at every synchronisation unless told to keep it. Only speed depends on it.
fn keep_freed_memory(n: usize) {
    if let Some(pool) = pool(n) {
        let threshold = u64::MAX;
        let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the attribute is a u64.
        unsafe { sys::cuMemPoolSetAttribute(pool, attribute, (&raw const threshold).cast_mut().cast()) };
    }
}

fn pool(n: usize) -> Option<sys::CUmemoryPool> {
    let mut pool = std::ptr::null_mut();
    // SAFETY: writes one handle; the device exists.
    let code = unsafe { sys::cuDeviceGetDefaultMemPool(&mut pool, n as i32) };
    (code == sys::CUresult::CUDA_SUCCESS && !pool.is_null()).then_some(pool)
}

pub fn memory(device: &Device) -> Option<(u64, u64)> {
    device.as_cuda_device().ok()?.cuda_stream().context().bind_to_thread().ok()?;
    result::mem_get_info().ok().map(|(free, total)| (free as u64, total as u64))
}

pub fn peak(device: &Device) -> Option<u64> {
    let candle_core::DeviceLocation::Cuda { gpu_id } = device.location() else { return None };
    let (mut bytes, attribute) = (0u64, sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_USED_MEM_HIGH);
    // SAFETY: the attribute is a u64.
    let code = unsafe { sys::cuMemPoolGetAttribute(pool(gpu_id)?, attribute, (&raw mut bytes).cast()) };
    (code == sys::CUresult::CUDA_SUCCESS && bytes > 0).then_some(bytes)
}

pub fn allow_tf32(allow: bool) -> bool {
    let before = gemm_reduced_precision_f32();
    set_gemm_reduced_precision_f32(allow);
    before
}

/// What the driver's error code means to a user.
fn explain(n: usize, cause: &str) -> String {
    let says = |code: &str| cause.contains(code);
    if says("STUB_LIBRARY") || says("CUDA_ERROR_34") {
        "no NVIDIA driver found".into()
    } else if says("NO_DEVICE") || says("CUDA_ERROR_100") {
        "the NVIDIA driver finds no GPU".into()
    } else if says("INVALID_DEVICE") || says("CUDA_ERROR_101") {
        match result::device::get_count() {
            Ok(count) if count > 0 => format!("there are {count} GPUs, 0 to {}, and no {n}", count - 1),
            _ => format!("there is no GPU {n}"),
        }
    } else if says("SYSTEM_DRIVER_MISMATCH") || says("UNSUPPORTED_PTX_VERSION") {
        "the NVIDIA driver is older than the CUDA this was built with".into()
    } else if says("NO_BINARY_FOR_GPU") {
        "this build has no code for that GPU (CUDA_COMPUTE_CAP=80 when building covers Ampere and later)".into()
    } else if says("SYSTEM_NOT_READY") {
        "the system is not ready for CUDA (on NVSwitch machines the fabric manager has to run)".into()
    } else if says("OUT_OF_MEMORY") {
        "its memory is full".into()
    } else if says("CUBLAS_STATUS_NOT_INITIALIZED") {
        "libcublas was not found or does not start, or the GPU's memory is full".into()
    } else if says("CURAND_STATUS") {
        "libcurand was not found or does not start".into()
    } else {
        cause.lines().next().unwrap_or(cause).to_owned()
    }
}
