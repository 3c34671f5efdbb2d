//! The MLP of a block: gated (SwiGLU, GeGLU) or plain (GELU).

use candle_core::Tensor;

use super::config::Mlp as Kind;
use crate::error::{Error, Result};
use crate::kernels::{Linear, Precision, geglu, geglu_backward, gelu, gelu_backward, swiglu, swiglu_backward};

#[derive(Debug)]
pub(super) struct Mlp {
    pub kind: Kind,
    /// None: it is not gated.
    pub gate: Option<Linear>,
    pub up: Linear,
    pub down: Linear,
}

/// What the backward pass needs: `[T, F]` each.
pub(super) struct Inner {
    gate: Option<Tensor>,
    up: Tensor,
}

impl Mlp {
    /// Gate and up of the normed input.
    pub fn inner(&self, h: &Tensor, precision: Precision) -> Result<Inner> {
        let gate = self.gate.as_ref().map(|gate| gate.forward(h, precision)).transpose()?;
        Ok(Inner { gate, up: self.up.forward(h, precision)? })
    }

    /// What `down` takes.
    pub fn activated(&self, inner: &Inner) -> Result<Tensor> {
        let Inner { gate, up } = inner;
        Ok(match (self.kind, gate) {
            (Kind::SwiGlu, Some(gate)) => swiglu(gate, up)?,
            (Kind::GeGlu, Some(gate)) => geglu(gate, up)?,
            (Kind::Gelu, None) => gelu(up)?,
            _ => return Err(ungated()),
        })
    }

    /// ∂h from ∂(what `down` gave); `h` computes the normed input again, late, so that less is held at once.
    pub fn backward(
        &self,
        inner: Inner,
        dy: &Tensor,
        h: impl FnOnce() -> Result<Tensor>,
        precision: Precision,
    ) -> Result<Tensor> {
        let d_activated = self.down.backward(&self.activated(&inner)?, dy, None, precision)?;
        let Inner { gate, up } = inner;
        let (d_gate, d_up) = match (self.kind, &gate) {
            (Kind::SwiGlu, Some(gate)) => {
                let (d_gate, d_up) = swiglu_backward(gate, &up, &d_activated)?;
                (Some(d_gate), d_up)
            }
            (Kind::GeGlu, Some(gate)) => {
                let (d_gate, d_up) = geglu_backward(gate, &up, &d_activated)?;
                (Some(d_gate), d_up)
            }
            (Kind::Gelu, None) => (None, gelu_backward(&up, &d_activated)?),
            _ => return Err(ungated()),
        };
        drop((d_activated, gate, up));
        let h = h()?;
        let d_h = match (&self.gate, d_gate) {
            (Some(gate), Some(d_gate)) => Some(gate.backward(&h, &d_gate, None, precision)?),
            _ => None,
        };
        Ok(self.up.backward(&h, &d_up, d_h, precision)?)
    }
}

fn ungated() -> Error {
    Error::run("a gated MLP needs its gate, and no other has one")
}
