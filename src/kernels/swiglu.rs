//! silu(gate) ⊙ up (Shazeer 2020, arXiv 2002.05202), with the sigmoid computed again in the backward pass.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::math;
use super::storage::{slice, with_f32};

/// Elements a parallel task takes.
const TASK: usize = 16 * 1024;

/// gate and up: `[T, F]` each.
#[derive(Debug, Clone)]
pub struct SwiGlu;

impl SwiGlu {
    pub fn forward(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        gate.apply_op2(up, Self)
    }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + math::exp(-x))
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (slice(s1, l1)?, slice(s2, l2)?);
        let mut y = vec![0.0f32; gate.len()];
        y.par_chunks_mut(TASK).zip(gate.par_chunks(TASK)).zip(up.par_chunks(TASK)).for_each(|((y, gate), up)| {
            math::vectorize(
                #[inline(always)]
                || {
                    for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
                        *y = g * sigmoid(g) * u;
                    }
                },
            )
        });
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let mut dgate = vec![0.0f32; gate.elem_count()];
        let mut dup = vec![0.0f32; gate.elem_count()];
        with_f32(gate, |gate| {
            with_f32(up, |up| {
                with_f32(&dy, |dy| {
                    let outputs = dgate.par_chunks_mut(TASK).zip(dup.par_chunks_mut(TASK));
                    let inputs = gate.par_chunks(TASK).zip(up.par_chunks(TASK)).zip(dy.par_chunks(TASK));
                    outputs.zip(inputs).for_each(|((dgate, dup), ((gate, up), dy))| {
                        math::vectorize(
                            #[inline(always)]
                            || {
                                let inputs = gate.iter().zip(up).zip(dy);
                                for ((dgate, dup), ((g, u), dy)) in dgate.iter_mut().zip(dup).zip(inputs) {
                                    let s = sigmoid(*g);
                                    *dup = dy * g * s;
                                    *dgate = dy * u * s * (1.0 + g * (1.0 - s));
                                }
                            },
                        )
                    });
                })
            })
        })???;
        let tensor = |data| Tensor::from_vec(data, gate.shape(), gate.device());
        Ok((Some(tensor(dgate)?), Some(tensor(dup)?)))
    }
}
