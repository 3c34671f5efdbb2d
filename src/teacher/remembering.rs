//! A teacher that is asked the same held-out batches again and again, and answers from memory or disk.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};

use super::Teacher;
use super::spill::{Extent, Spill};
use crate::corpus::Batch;
use crate::error::Result;
use crate::signal::{Capabilities, Head, Needs, TeacherSignal};

/// Keeps the hidden states of each batch it has seen: in memory up to a number of bytes, then on disk up to another; what
/// fits in neither is asked anew.
pub struct RememberingTeacher<'a> {
    inner: &'a dyn Teacher,
    known: Mutex<Known>,
}

/// The digests of a batch's rows.
type Key = Vec<[u8; 32]>;

struct Known {
    /// With the head they belong to, and the device they are given back on.
    states: HashMap<Key, (Kept, Arc<dyn Head>, Device)>,
    /// Bytes that may still be kept in memory.
    room: usize,
    spill: Spill,
}

enum Kept {
    InMemory(Tensor),
    OnDisk(Extent),
}

impl Known {
    /// None: unknown, or lost by the disk.
    fn recall(&mut self, key: &Key) -> Option<TeacherSignal> {
        let (kept, head, device) = self.states.get(key)?;
        let states = match kept {
            Kept::InMemory(states) => states.clone(),
            Kept::OnDisk(extent) => self.spill.read(extent)?,
        };
        Some(TeacherSignal::Hidden { states: states.to_device(device).ok()?, head: head.clone(), layers: vec![] })
    }

    /// In the host's memory: a GPU's is dearer. What cannot be kept is asked for again.
    fn keep(&mut self, key: Key, states: &Tensor, head: &Arc<dyn Head>) {
        let device = states.device().clone();
        let Ok(states) = states.to_device(&Device::Cpu) else { return };
        let bytes = states.elem_count() * size_of::<f32>();
        let kept = if bytes <= self.room {
            self.room -= bytes;
            Some(Kept::InMemory(states))
        } else {
            self.spill.keep(&states).map(Kept::OnDisk)
        };
        if let Some(kept) = kept {
            self.states.insert(key, (kept, head.clone(), device));
        }
    }
}

impl<'a> RememberingTeacher<'a> {
    /// Keeps at most `bytes` of hidden states in memory, and as many as `spill` takes besides.
    pub fn new(inner: &'a dyn Teacher, bytes: usize, spill: Spill) -> Self {
        Self { inner, known: Mutex::new(Known { states: HashMap::new(), room: bytes, spill }) }
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
        if let Some(signal) = known.recall(&key) {
            return Ok(signal);
        }
        let signal = self.inner.signal(batch, needs)?;
        if let TeacherSignal::Hidden { states, head, .. } = &signal {
            known.keep(key, states, head);
        }
        Ok(signal)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use candle_core::DType;

    use super::*;
    use crate::corpus::{Row, RowRef};
    use crate::kernels::{Weight, with_f32};
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
            let value = batch.rows[0].digest[0] as f32 / 3.0;
            let states = Tensor::full(value, (batch.valid_tokens(), 2), &Device::Cpu)?;
            let head = Arc::new(WeightHead { weight: Weight::Dense(head), cap: None });
            Ok(TeacherSignal::Hidden { states, head, layers: vec![] })
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
        let teacher = RememberingTeacher::new(&counting, 40, Spill::new("", 0));
        for (digest, asked) in [(1, 1), (1, 1), (2, 2), (2, 2), (3, 3), (3, 4), (1, 4)] {
            teacher.signal(&batch(digest), &Needs::default()).unwrap();
            assert_eq!(counting.0.load(Ordering::Relaxed), asked);
        }
    }

    #[test]
    fn what_memory_has_no_room_for_is_asked_once_too_while_the_disk_has() {
        let counting = Counting(AtomicUsize::new(0));
        let dir = tempfile::tempdir().unwrap();
        // One batch in memory, two on disk.
        let teacher = RememberingTeacher::new(&counting, 20, Spill::new(dir.path(), 40));
        for (digest, asked) in [(1, 1), (2, 2), (3, 3), (4, 4), (4, 5), (1, 5), (2, 5), (3, 5), (2, 5)] {
            let signal = teacher.signal(&batch(digest), &Needs::default()).unwrap();
            let TeacherSignal::Hidden { states, .. } = signal else { panic!("hidden states were given") };
            assert_eq!(with_f32(&states, <[f32]>::to_vec).unwrap(), [digest as f32 / 3.0; 4]);
            assert_eq!(counting.0.load(Ordering::Relaxed), asked);
        }
    }

    #[test]
    fn without_a_disk_the_teacher_is_asked_anew() {
        let counting = Counting(AtomicUsize::new(0));
        let teacher = RememberingTeacher::new(&counting, 20, Spill::new("no/such/folder", 1000));
        for (digest, asked) in [(1, 1), (2, 2), (2, 3), (1, 3)] {
            teacher.signal(&batch(digest), &Needs::default()).unwrap();
            assert_eq!(counting.0.load(Ordering::Relaxed), asked);
        }
    }
}
