//! A teacher that is asked the same held-out batches again and again, and answers from memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use candle_core::Tensor;

use super::Teacher;
use crate::corpus::Batch;
use crate::error::Result;
use crate::signal::{Capabilities, Head, Needs, TeacherSignal};

/// Keeps the hidden states of each batch it has seen, up to a number of bytes; what does not fit is asked anew.
pub struct RememberingTeacher<'a> {
    inner: &'a dyn Teacher,
    known: Mutex<Known>,
}

/// The digests of a batch's rows.
type Key = Vec<[u8; 32]>;

#[derive(Default)]
struct Known {
    states: HashMap<Key, (Tensor, Arc<dyn Head>)>,
    /// Bytes that may still be kept.
    room: usize,
}

impl<'a> RememberingTeacher<'a> {
    /// Keeps at most `bytes` of hidden states.
    pub fn new(inner: &'a dyn Teacher, bytes: usize) -> Self {
        Self { inner, known: Mutex::new(Known { room: bytes, ..Known::default() }) }
    }
}

impl Teacher for RememberingTeacher<'_> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn signal(&self, batch: &Batch, needs: &Needs) -> Result<TeacherSignal> {
        let key: Key = batch.rows.iter().map(|row| row.digest).collect();
        let mut known = self.known.lock().expect("the teacher panicked while it was asked");
        if let Some((states, head)) = known.states.get(&key) {
            return Ok(TeacherSignal::Hidden { states: states.clone(), head: head.clone() });
        }
        let signal = self.inner.signal(batch, needs)?;
        if let TeacherSignal::Hidden { states, head } = &signal {
            let bytes = states.elem_count() * size_of::<f32>();
            if bytes <= known.room {
                known.room -= bytes;
                known.states.insert(key, (states.clone(), head.clone()));
            }
        }
        Ok(signal)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use candle_core::{DType, Device};

    use super::*;
    use crate::corpus::{Row, RowRef};
    use crate::kernels::Weight;
    use crate::signal::WeightHead;

    /// Counts how often it is asked.
    struct Counting(AtomicUsize);

    impl Teacher for Counting {
        fn capabilities(&self) -> Capabilities {
            Capabilities { full_distribution: true }
        }

        fn vocab_size(&self) -> usize {
            3
        }

        fn signal(&self, batch: &Batch, _: &Needs) -> Result<TeacherSignal> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let head = Tensor::zeros((3, 2), DType::F32, &Device::Cpu)?;
            let states = Tensor::ones((batch.valid_tokens(), 2), DType::F32, &Device::Cpu)?;
            Ok(TeacherSignal::Hidden { states, head: Arc::new(WeightHead(Weight::Dense(head))) })
        }
    }

    fn batch(digest: u8) -> Batch {
        let source = RowRef { digest: [digest; 32], file: Arc::new(PathBuf::new()), line: 1 };
        Batch::new(&[Row { tokens: vec![0, 1, 2], targets: vec![false, true, true], source }])
    }

    #[test]
    fn a_batch_is_asked_once_while_there_is_room() {
        let counting = Counting(AtomicUsize::new(0));
        // Two targets of two values: 16 bytes a batch, room for two.
        let teacher = RememberingTeacher::new(&counting, 40);
        for (digest, asked) in [(1, 1), (1, 1), (2, 2), (2, 2), (3, 3), (3, 4), (1, 4)] {
            teacher.signal(&batch(digest), &Needs::default()).unwrap();
            assert_eq!(counting.0.load(Ordering::Relaxed), asked);
        }
    }
}
