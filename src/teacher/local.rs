//! A teacher whose weights are in this process.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::Teacher;
use crate::corpus::Batch;
use crate::device::moved;
use crate::error::Result;
use crate::kernels::Precision;
use crate::model::Decoder;
use crate::signal::{Capabilities, Head, Needs, TeacherSignal, WeightHead};

/// A frozen decoder: its signal is hidden states and its head, on the device where the loss is computed.
pub struct LocalTeacher {
    decoder: Arc<Decoder>,
    head: Arc<dyn Head>,
    precision: Precision,
    loss_device: Device,
}

impl LocalTeacher {
    /// `loss_device`: the student's. From another device hidden states cross, never logits: the head is copied there once.
    pub fn new(decoder: Arc<Decoder>, loss_device: &Device) -> Result<Self> {
        let weight = decoder.head()?.weight.frozen_on(loss_device)?;
        let precision = weight.precision().unwrap_or_default();
        let head = Arc::new(WeightHead { weight, cap: decoder.logit_cap() });
        Ok(Self { decoder, head, precision, loss_device: loss_device.clone() })
    }

    /// What its products are rounded to.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The model itself, for generation and for students cut from it.
    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }
}

impl Teacher for LocalTeacher {
    fn capabilities(&self) -> Capabilities {
        Capabilities { full_distribution: true }
    }

    fn vocab_size(&self) -> usize {
        self.head.vocab_size()
    }

    fn signal(&self, batch: &Batch, needs: &Needs) -> Result<TeacherSignal> {
        let (states, layers) = self.decoder.hidden_and_layers(batch, &needs.layers)?;
        let there = |states: &Tensor| Ok(moved(states, &self.loss_device)?);
        Ok(TeacherSignal::Hidden {
            states: there(&states)?,
            head: self.head.clone(),
            layers: layers.iter().map(there).collect::<Result<_>>()?,
        })
    }
}
