//! Starts a backward pass with a given output gradient (candle only starts from a scalar's 1).

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), ().into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

/// Backpropagates `gradient` (shaped as `output`) through the graph behind `output`.
pub fn backward_from(output: &Tensor, gradient: &Tensor) -> Result<GradStore> {
    output.apply_op1(Seed(gradient.detach()))?.backward()
}
