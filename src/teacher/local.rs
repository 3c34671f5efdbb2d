//! A teacher whose weights are in this process.

use std::sync::Arc;

use super::Teacher;
use crate::corpus::Batch;
use crate::error::Result;
use crate::kernels::{Precision, Weight};
use crate::model::Decoder;
use crate::signal::{Capabilities, Head, Needs, TeacherSignal, WeightHead};

/// A frozen decoder: its signal is hidden states and its head.
pub struct LocalTeacher {
    decoder: Arc<Decoder>,
    head: Arc<dyn Head>,
    precision: Precision,
}

impl LocalTeacher {
    pub fn new(decoder: Arc<Decoder>) -> Result<Self> {
        let weight = decoder.head()?.weight.clone();
        let precision = match &weight {
            Weight::Packed(panels) => panels.precision(),
            Weight::Dense(_) => Precision::F32,
        };
        Ok(Self { decoder, head: Arc::new(WeightHead(weight)), precision })
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

    fn signal(&self, batch: &Batch, _needs: &Needs) -> Result<TeacherSignal> {
        Ok(TeacherSignal::Hidden { states: self.decoder.hidden(batch)?, head: self.head.clone() })
    }
}
