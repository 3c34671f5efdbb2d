//! What a teacher says about a batch: the seam between teachers and losses.
//!
//! A live teacher gives hidden states and its head, so that logits exist only chunk by chunk inside the loss driver.

use std::sync::Arc;

use candle_core::Tensor;

use crate::error::Result;
use crate::kernels::{SoftCap, Weight};

/// Projects hidden states to logits. How the weight is held (dense, packed, quantised) is the implementor's affair.
pub trait Head: Send + Sync {
    /// V, the number of logits of a row.
    fn vocab_size(&self) -> usize;
    /// D, the width of a hidden state.
    fn width(&self) -> usize;
    /// The logits `[n, V]` of `hidden`, `[n, D]`, on its device.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor>;
    /// Writes the logits of `hidden` (`[n, D]`, wherever it is) into `logits` (`[n, V]`).
    fn write_logits(&self, hidden: &Tensor, logits: &mut [f32]) -> Result<()>;
}

/// A frozen weight `[V, D]`, dense or packed, and what bounds its logits.
pub struct WeightHead {
    pub weight: Weight,
    pub cap: Option<SoftCap>,
}

impl Head for WeightHead {
    fn vocab_size(&self) -> usize {
        self.weight.dims()[0]
    }

    fn width(&self) -> usize {
        self.weight.dims()[1]
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = self.weight.logits(hidden)?;
        if let Some(cap) = self.cap {
            cap.forward_tensor(&logits)?;
        }
        Ok(logits)
    }

    fn write_logits(&self, hidden: &Tensor, logits: &mut [f32]) -> Result<()> {
        self.weight.write_logits(hidden, logits)?;
        if let Some(cap) = self.cap {
            cap.forward(logits);
        }
        Ok(())
    }
}

/// The teacher's word on the N targets of a batch.
pub enum TeacherSignal {
    /// Final hidden states at the target rows, `[N, D]`, and the head they go through; with them the residual stream behind
    /// each block that was asked for, `[N, D]` too.
    Hidden { states: Tensor, head: Arc<dyn Head>, layers: Vec<Tensor> },
    /// Whole rows of logits, `[N, vocab_size]`: for tests and small vocabularies.
    Dense { logits: Vec<f32>, vocab_size: usize },
    /// The k likeliest tokens of each target: a signal that was stored.
    TopK {
        k: usize,
        /// Distinct token ids, likeliest first, `[N, k]`.
        ids: Vec<u32>,
        /// log p of each at temperature 1, in nats, `[N, k]`.
        log_probabilities: Vec<f32>,
        /// log of what all other tokens hold together at the loss's temperature, in nats, `[N]`; −∞ for nothing. None for
        /// a loss with [`Tail::Renormalize`].
        log_tails: Option<Vec<f32>>,
        /// log p of the labels at temperature 1, `[N]`; empty where it is not known.
        labels: Vec<f32>,
        vocab_size: usize,
    },
    /// Tokens that were drawn from each target's distribution: a signal that was stored (arXiv 2503.16870).
    Sampled {
        /// Target n has the entries `bounds[n]..bounds[n + 1]` of the next three: `[N + 1]`.
        bounds: Vec<usize>,
        /// Distinct within a target.
        ids: Vec<u32>,
        /// log p of each at the loss's temperature, in nats.
        log_probabilities: Vec<f32>,
        /// How much each counts, so that Σ weight · f(token) is an unbiased estimate of Σ p · f.
        weights: Vec<f32>,
        /// log p of the labels at temperature 1, `[N]`.
        labels: Vec<f32>,
        vocab_size: usize,
    },
}

/// The teacher's word on one target.
#[derive(Debug, Clone, Copy)]
pub enum TeacherRow<'a> {
    Logits(&'a [f32]),
    TopK(TopKRow<'a>),
    Sampled(SampledRow<'a>),
}

/// One target of [`TeacherSignal::TopK`].
#[derive(Debug, Clone, Copy)]
pub struct TopKRow<'a> {
    pub ids: &'a [u32],
    /// At temperature 1.
    pub log_probabilities: &'a [f32],
    /// Of all other tokens, at the loss's temperature. None: both sides are renormalised over the known ones.
    pub log_tail: Option<f32>,
}

/// One target of [`TeacherSignal::Sampled`].
#[derive(Debug, Clone, Copy)]
pub struct SampledRow<'a> {
    pub ids: &'a [u32],
    pub log_probabilities: &'a [f32],
    pub weights: &'a [f32],
}

impl TeacherSignal {
    /// Width of a row of logits.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Hidden { head, .. } => head.vocab_size(),
            Self::Dense { vocab_size, .. } | Self::TopK { vocab_size, .. } | Self::Sampled { vocab_size, .. } => {
                *vocab_size
            }
        }
    }

    /// What it is called in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hidden { .. } | Self::Dense { .. } => "dense",
            Self::TopK { .. } => "top_k",
            Self::Sampled { .. } => "sampled",
        }
    }

    /// log p of the label of target `n` at temperature 1, where it was stored.
    pub fn label(&self, n: usize) -> Option<f32> {
        match self {
            Self::Hidden { .. } | Self::Dense { .. } => None,
            Self::TopK { labels, .. } | Self::Sampled { labels, .. } => labels.get(n).copied(),
        }
    }

    /// Logits that [`Self::logits`] writes for one target.
    pub fn logits_per_target(&self) -> usize {
        match self {
            Self::Hidden { .. } | Self::Dense { .. } => self.vocab_size(),
            Self::TopK { .. } | Self::Sampled { .. } => 0,
        }
    }

    /// The word on target `n`, of which `logits` are what [`Self::logits`] wrote, cut to the student's `vocab`.
    pub fn row<'a>(&'a self, n: usize, logits: &'a [f32], vocab: usize) -> TeacherRow<'a> {
        match self {
            Self::Hidden { .. } | Self::Dense { .. } => TeacherRow::Logits(&logits[..vocab.min(logits.len())]),
            Self::TopK { k, ids, log_probabilities, log_tails, .. } => TeacherRow::TopK(TopKRow {
                ids: &ids[n * k..(n + 1) * k],
                log_probabilities: &log_probabilities[n * k..(n + 1) * k],
                log_tail: log_tails.as_ref().map(|tails| tails[n]),
            }),
            Self::Sampled { bounds, ids, log_probabilities, weights, .. } => {
                let range = bounds[n]..bounds[n + 1];
                TeacherRow::Sampled(SampledRow {
                    ids: &ids[range.clone()],
                    log_probabilities: &log_probabilities[range.clone()],
                    weights: &weights[range],
                })
            }
        }
    }

    /// Writes the logits of targets `from..from + n` into `logits`, `[n, logits_per_target]`.
    pub fn logits(&self, from: usize, n: usize, logits: &mut [f32]) -> Result<()> {
        match self {
            Self::TopK { .. } | Self::Sampled { .. } => Ok(()),
            Self::Hidden { states, head, .. } => head.write_logits(&states.narrow(0, from, n)?, logits),
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

/// What a loss makes of the tokens that a truncated teacher does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tail {
    /// One bucket holds them all, on both sides.
    #[default]
    Bucket,
    /// They are left out, and both sides renormalised over the known tokens.
    Renormalize,
}

/// What a loss asks of its teacher.
#[derive(Debug, Clone, PartialEq)]
pub struct Needs {
    pub full_distribution: bool,
    /// Temperature at which a stored signal is wanted: what it left out depends on it.
    pub temperature: f64,
    /// Blocks whose outputs are wanted too; only a live teacher has them.
    pub layers: Vec<usize>,
    pub tail: Tail,
}

impl Default for Needs {
    fn default() -> Self {
        Self { full_distribution: false, temperature: 1.0, layers: vec![], tail: Tail::Bucket }
    }
}

impl Needs {
    /// The first need that `capabilities` leave open, in words.
    pub fn unmet_by(&self, capabilities: Capabilities) -> Option<&'static str> {
        (self.full_distribution && !capabilities.full_distribution)
            .then_some("the full distribution over the vocabulary at every target")
    }
}
