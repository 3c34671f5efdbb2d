//! Which devices a command runs on.

use std::fmt;
use std::str::FromStr;

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first GPU where one works, otherwise the CPU.
    #[default]
    Auto,
    Cpu,
    /// A GPU by index.
    Cuda(usize),
}

impl DeviceChoice {
    /// What can be written.
    pub const ALLOWED: &str = "auto, cpu, cuda, or cuda:N with N from 0";
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("allowed: {}", Self::ALLOWED);
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let ordinal = text.strip_prefix("cuda:").filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
                ordinal.and_then(|n| n.parse().ok()).map(Self::Cuda).ok_or_else(wrong)
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

/// As it is written in a config.
impl serde::Serialize for DeviceChoice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An open device with what to call it.
#[derive(Debug, Clone)]
pub struct Opened {
    pub device: Device,
    /// For the plan: which it is and, of a CPU that `auto` came to in a build for GPUs, why no GPU was taken.
    pub description: String,
    /// Of a GPU, what its results depend on in their last bits.
    pub hardware: Option<String>,
}

impl Opened {
    /// The CPU.
    pub fn cpu() -> Self {
        Self { device: Device::Cpu, description: "cpu".into(), hardware: None }
    }
}

/// Opens the device, once per process and GPU. A GPU that was asked for is never replaced by the CPU.
pub fn open(choice: DeviceChoice) -> Result<Opened> {
    match choice {
        DeviceChoice::Cpu => Ok(Opened::cpu()),
        DeviceChoice::Cuda(n) => gpu::open(n).map_err(|why| {
            Error::input(format!(
                "the device cuda:{n}: {why}; --device cpu, and no teacher.device or student.device, runs without a GPU"
            ))
        }),
        DeviceChoice::Auto if !gpu::BUILT => Ok(Opened::cpu()),
        DeviceChoice::Auto => {
            Ok(gpu::open(0).unwrap_or_else(|why| Opened { description: format!("cpu ({why})"), ..Opened::cpu() }))
        }
    }
}

/// Where teacher and student compute; the loss is computed where the student is.
#[derive(Debug, Clone)]
pub struct Devices {
    pub teacher: Opened,
    pub student: Opened,
}

impl Devices {
    /// All on the CPU.
    pub fn cpu() -> Self {
        Self { teacher: Opened::cpu(), student: Opened::cpu() }
    }

    /// For the user; None: there is nothing to say but "cpu".
    pub fn describe(&self) -> Option<String> {
        let Self { teacher, student } = self;
        match teacher.device.same_device(&student.device) {
            true => (student.description != "cpu").then(|| student.description.clone()),
            false => Some(format!("teacher on {}, student on {}", teacher.description, student.description)),
        }
    }

    /// Opens each once.
    pub fn open(teacher: DeviceChoice, student: DeviceChoice) -> Result<Self> {
        let opened = open(student)?;
        Ok(Self { teacher: if teacher == student { opened.clone() } else { open(teacher)? }, student: opened })
    }
}

/// The tensor on `device`. From one GPU to another it returns only when it has arrived: the source's memory may be given to
/// others as soon as it is dropped, and its own stream does not wait for the copy.
pub fn moved(tensor: &Tensor, device: &Device) -> candle_core::Result<Tensor> {
    let there = tensor.to_device(device)?;
    if tensor.device().is_cuda() && device.is_cuda() && !tensor.device().same_device(device) {
        device.synchronize()?;
    }
    Ok(there)
}

/// Free and total memory of a GPU, in bytes; None of the CPU.
pub fn gpu_memory(device: &Device) -> Option<(u64, u64)> {
    device.is_cuda().then(|| gpu::memory(device)).flatten()
}

/// The most memory that tensors have taken on a GPU so far, in bytes; None where it is not known.
pub fn gpu_peak(device: &Device) -> Option<u64> {
    device.is_cuda().then(|| gpu::peak(device)).flatten()
}

/// Lets f32 products on GPUs round their operands to TF32, or not, for the whole process. Returns whether they could before.
pub fn allow_tf32(allow: bool) -> bool {
    gpu::allow_tf32(allow)
}

/// The first GPU, for tests that also run on one. None where there is none: they are skipped, unless `REQUIRE_CUDA` is set.
#[doc(hidden)]
pub fn for_tests() -> Option<Device> {
    match gpu::open(0) {
        Ok(opened) => Some(opened.device),
        Err(why) if gpu::BUILT && std::env::var_os("REQUIRE_CUDA").is_some() => panic!("REQUIRE_CUDA: {why}"),
        Err(_) => None,
    }
}

/// Makes tests of functions that take a device: one on the CPU and, in a build for GPUs, one on the first of them.
#[doc(hidden)]
#[macro_export]
macro_rules! on_every_device {
    ($(fn $name:ident($device:ident) $body:block)+) => {
        $(fn $name($device: &candle_core::Device) $body)+

        mod on_the_cpu {
            $(#[test] fn $name() { super::$name(&candle_core::Device::Cpu) })+
        }

        mod on_a_gpu {
            $(#[test] fn $name() {
                if let Some(device) = $crate::device::for_tests() {
                    super::$name(&device);
                }
            })+
        }
    };
}

#[cfg(feature = "cuda")]
mod gpu;

/// Without `--features cuda` there is no GPU.
#[cfg(not(feature = "cuda"))]
mod gpu {
    use super::*;

    pub const BUILT: bool = false;

    pub fn open(_: usize) -> Result<Opened, String> {
        Err("this build has no CUDA support (build with --features cuda, see cuda/README.md)".into())
    }

    pub fn memory(_: &Device) -> Option<(u64, u64)> {
        None
    }

    pub fn peak(_: &Device) -> Option<u64> {
        None
    }

    pub fn allow_tf32(_: bool) -> bool {
        false
    }
}
