//! What a teacher says about a batch: the seam between teachers and losses.
//!
//! A live teacher gives hidden states and its head, so that logits exist only chunk by chunk inside the loss driver.

use std::sync::Arc;

use candle_core::Tensor;

use crate::error::Result;
use crate::kernels::{Mat, MatMut, PackedBf16, matmul, with_f32};

/// Projects hidden states to logits. How the weight is held (dense, packed, quantised) is the implementor's affair.
pub trait Head: Send + Sync {
    /// V, the number of logits of a row.
    fn vocab_size(&self) -> usize;
    /// D, the width of a hidden state.
    fn width(&self) -> usize;
    /// Writes the logits of `hidden` (`[n, D]`) into `logits` (`[n, V]`).
    fn project(&self, hidden: &[f32], logits: &mut [f32]) -> Result<()>;
}

/// An f32 weight `[V, D]`.
pub struct DenseHead(pub Tensor);

impl Head for DenseHead {
    fn vocab_size(&self) -> usize {
        self.0.dims()[0]
    }

    fn width(&self) -> usize {
        self.0.dims()[1]
    }

    fn project(&self, hidden: &[f32], logits: &mut [f32]) -> Result<()> {
        let (v, d) = (self.vocab_size(), self.width());
        let n = hidden.len() / d;
        with_f32(&self.0, |w| {
            matmul(Mat::new(hidden, n, d), Mat::new(w, v, d).t(), MatMut::new(logits, n, v), 1.0, false)
        })?;
        Ok(())
    }
}

/// A bf16 weight `[V, D]`, packed once.
pub struct PackedHead(pub Arc<PackedBf16>);

impl Head for PackedHead {
    fn vocab_size(&self) -> usize {
        self.0.outer()
    }

    fn width(&self) -> usize {
        self.0.inner()
    }

    fn project(&self, hidden: &[f32], logits: &mut [f32]) -> Result<()> {
        self.0.project(hidden, logits, false);
        Ok(())
    }
}

/// The teacher's word on the N targets of a batch.
pub enum TeacherSignal {
    /// Final hidden states at the target rows, `[N, D]`, and the head they go through.
    Hidden { states: Tensor, head: Arc<dyn Head> },
    /// Whole rows of logits, `[N, vocab_size]`: for tests and small vocabularies.
    Dense { logits: Vec<f32>, vocab_size: usize },
}

impl TeacherSignal {
    /// Width of a row of logits.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Hidden { head, .. } => head.vocab_size(),
            Self::Dense { vocab_size, .. } => *vocab_size,
        }
    }

    /// Writes the logits of targets `from..from + n` into `logits`, `[n, vocab_size]`.
    pub fn logits(&self, from: usize, n: usize, logits: &mut [f32]) -> Result<()> {
        match self {
            Self::Hidden { states, head } => {
                let d = head.width();
                with_f32(states, |states| head.project(&states[from * d..(from + n) * d], logits))?
            }
            Self::Dense { logits: all, vocab_size } => {
                logits.copy_from_slice(&all[from * vocab_size..(from + n) * vocab_size]);
                Ok(())
            }
        }
    }
}

/// What a teacher can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The whole distribution of each target.
    pub full_distribution: bool,
}

/// What a loss asks of its teacher.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    pub full_distribution: bool,
}

impl Needs {
    /// The first need that `capabilities` leave open, in words.
    pub fn unmet_by(&self, capabilities: Capabilities) -> Option<&'static str> {
        (self.full_distribution && !capabilities.full_distribution)
            .then_some("the full distribution over the vocabulary at every target")
    }
}
