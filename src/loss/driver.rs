//! The one loop over targets: projects hidden states to logits a chunk at a time, hands each row to a function, and
//! carries the rows' gradients back to the hidden states and the head. No `[N, V]` buffer ever exists.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::kernels::{GradSlot, Mat, MatMut, Precision, SoftCap, Weight, matmul, with_f32};
use crate::signal::{TeacherRow, TeacherSignal};

/// Elements a chunk of student logits may hold (64 MiB): larger chunks no longer speed the products up.
const CHUNK_ELEMENTS: usize = 16 << 20;
/// The same on a GPU (256 MiB).
const GPU_CHUNK_ELEMENTS: usize = 64 << 20;
/// Rows of a chunk at most.
const CHUNK_ROWS: usize = 256;

/// The student's output projection: weight `[V, D]`, where its gradient is summed (None: frozen), and what the products of
/// its backward pass are rounded to. The logits are f32 always: the gradient q − p is a difference of what they give.
pub struct StudentHead<'a> {
    pub weight: &'a Tensor,
    pub grad: Option<&'a GradSlot>,
    pub precision: Precision,
    /// What bounds the logits: the loss sees them capped.
    pub cap: Option<SoftCap>,
}

/// Buffers that chunks of logits reuse from step to step.
#[derive(Default)]
pub struct ChunkedLogits {
    teacher: Vec<f32>,
    /// Logits, and then, row by row, their gradient.
    student: Vec<f32>,
    /// Rows per chunk; None: as many as the limits above allow.
    pub rows_per_chunk: Option<usize>,
}

impl ChunkedLogits {
    /// Targets of a chunk, unless set otherwise, when the longer of the two rows of logits has `vocab_size`.
    pub fn rows_per_chunk(vocab_size: usize) -> usize {
        (CHUNK_ELEMENTS / vocab_size.max(1)).clamp(1, CHUNK_ROWS)
    }

    /// The same on a GPU, where each chunk passes over the head and its gradient in slower memory.
    pub(super) fn rows_on_gpu(vocab_size: usize) -> usize {
        (GPU_CHUNK_ELEMENTS / vocab_size.max(1)).max(1)
    }

    /// Calls `row(n, teacher, student, gradient)` for each of the N targets, in parallel within a chunk, and returns
    /// the results in target order.
    ///
    /// `hidden` is the student's, `[N, D]`. The teacher's row is cut to the student's vocabulary (the plan has proven
    /// that no real token lies beyond). With `with_gradient`, what `row` adds to its zeroed gradient row flows to the
    /// returned `[N, D]` gradient of `hidden` and to the head's slot.
    pub fn run<R: Send>(
        &mut self,
        hidden: &Tensor,
        head: &StudentHead,
        signal: Option<&TeacherSignal>,
        with_gradient: bool,
        row: impl Fn(usize, Option<TeacherRow>, &[f32], Option<&mut [f32]>) -> Result<R> + Sync,
    ) -> Result<(Vec<R>, Option<Tensor>)> {
        let (targets, width) = hidden.dims2()?;
        let (vocab, head_width) = head.weight.dims2()?;
        if width != head_width {
            return Err(Error::run(format!("the hidden states are {width} wide, the head takes {head_width}")));
        }
        let teacher_width = signal.map_or(0, TeacherSignal::logits_per_target);
        let limit = self.rows_per_chunk.unwrap_or(Self::rows_per_chunk(vocab.max(teacher_width)));
        let mut results = Vec::with_capacity(targets);
        let mut d_hidden = vec![0.0f32; if with_gradient { targets * width } else { 0 }];
        for from in (0..targets).step_by(limit) {
            let rows = limit.min(targets - from);
            self.teacher.resize(rows * teacher_width, 0.0);
            self.student.resize(rows * vocab, 0.0);
            if let Some(signal) = signal {
                signal.logits(from, rows, &mut self.teacher)?;
            }
            let hidden = hidden.narrow(0, from, rows)?;
            Weight::Dense(head.weight.clone()).write_logits(&hidden, &mut self.student)?;
            if let Some(cap) = head.cap {
                cap.forward(&mut self.student);
            }
            let teacher = &self.teacher;
            let teacher_row = |i: usize| {
                let logits = &teacher[i * teacher_width..(i + 1) * teacher_width];
                signal.map(|signal| signal.row(from + i, logits, vocab))
            };
            if !with_gradient {
                let student = self.student.par_chunks_exact(vocab).enumerate();
                let chunk = student.map(|(i, z)| row(from + i, teacher_row(i), z, None));
                results.extend(chunk.collect::<Result<Vec<R>>>()?);
                continue;
            }
            // A row's gradient takes the place of its logits, by way of a scratch row that stays in cache.
            let in_place = |scratch: &mut Vec<f32>, (i, logits): (usize, &mut [f32])| {
                scratch.clear();
                scratch.resize(vocab, 0.0);
                let result = row(from + i, teacher_row(i), logits, Some(scratch))?;
                match head.cap {
                    None => logits.copy_from_slice(scratch),
                    Some(cap) => cap.backward(logits, scratch),
                }
                Ok(result)
            };
            let student = self.student.par_chunks_exact_mut(vocab).enumerate().with_min_len(8);
            results.extend(student.map_init(Vec::new, in_place).collect::<Result<Vec<R>>>()?);
            let d_logits = Mat::new(&self.student, rows, vocab);
            let out = MatMut::new(&mut d_hidden[from * width..(from + rows) * width], rows, width);
            let weight = |weight: &[f32]| matmul(d_logits, Mat::new(weight, vocab, width), out, head.precision, false);
            with_f32(head.weight, weight)?;
            if let Some(slot) = head.grad {
                with_f32(&hidden, |hidden| {
                    let hidden = Mat::new(hidden, rows, width);
                    slot.update(|grad| {
                        matmul(d_logits.t(), hidden, MatMut::new(grad, vocab, width), head.precision, true)
                    })
                })??;
            }
        }
        let d_hidden =
            with_gradient.then(|| Tensor::from_vec(d_hidden, (targets, width), hidden.device())).transpose()?;
        Ok((results, d_hidden))
    }
}
