//! Which device a command runs on.

use candle_core::Device;

use crate::error::{Error, Result};

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best there is.
    Auto,
    Cpu,
    /// A GPU by index.
    Cuda(usize),
}

/// Opens the device. This build has the CPU alone; asking for a GPU is refused, never replaced.
pub fn open(choice: DeviceChoice) -> Result<Device> {
    match choice {
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(n) => Err(Error::input(format!(
            "--device cuda:{n}: this version has no CUDA support; use --device cpu (or auto)"
        ))),
    }
}
