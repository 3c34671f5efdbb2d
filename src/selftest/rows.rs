//! Targets with a teacher's and a student's logits, put through the program's own objective on a device and through the
//! definitions.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::numbers::{gradient, noise, wide};
use super::reference::{Formula, softmax};
use crate::corpus::{Batch, Row, RowRef};
use crate::error::Result;
use crate::kernels::Precision;
use crate::loss::{Divergence, Objective, StudentHead};
use crate::signal::{Tail, TeacherSignal};

/// What the teacher says of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Word {
    Whole,
    /// This many tokens and one bucket.
    Bucket(usize),
    /// This many tokens.
    Alone(usize),
    /// This many drawn ones, each with a weight.
    Drawn(usize),
}

/// Logits of `n` targets.
#[derive(Debug, Clone)]
pub struct Rows {
    pub n: usize,
    pub teacher: Vec<f32>,
    pub student: Vec<f32>,
}

/// D of all rows together and its gradient by the student's logits, `[n, V]`, both divided by `of`.
pub struct Answer {
    pub value: f64,
    pub gradient: Vec<f32>,
}

/// How the objective is asked.
#[derive(Clone, Copy)]
pub struct Asked {
    pub temperature: f64,
    pub hard_label_weight: f64,
    /// Targets of the whole step.
    pub of: usize,
    pub rows_per_chunk: Option<usize>,
}

impl Asked {
    pub fn at(temperature: f64, of: usize) -> Self {
        Self { temperature, hard_label_weight: 0.0, of, rows_per_chunk: None }
    }
}

/// Tokens by falling logit.
fn order(logits: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    order
}

/// Draw `i` of `count`, and its weight.
fn draw(i: usize, count: usize, vocab: usize) -> (usize, f32) {
    ((i * 3 + 1) % vocab, (1 + i % 3) as f32 / count as f32)
}

impl Rows {
    pub fn new(n: usize, teacher: usize, student: usize, seed: u32) -> Self {
        Self { n, teacher: noise(n * teacher, 4.0, seed), student: noise(n * student, 4.0, seed + 1) }
    }

    pub fn vocab(&self) -> usize {
        self.student.len() / self.n
    }

    fn teacher_vocab(&self) -> usize {
        self.teacher.len() / self.n
    }

    pub fn label(&self, n: usize) -> usize {
        (n * 5 + 1) % self.teacher_vocab().min(self.vocab())
    }

    /// Targets `from..to` alone.
    pub fn part(&self, from: usize, to: usize) -> Self {
        let cut = |logits: &[f32], v: usize| logits[from * v..to * v].to_vec();
        Self {
            n: to - from,
            teacher: cut(&self.teacher, self.teacher_vocab()),
            student: cut(&self.student, self.vocab()),
        }
    }

    fn signal(&self, word: Word, t: f64) -> TeacherSignal {
        let vocab_size = self.teacher_vocab();
        let rows = || self.teacher.chunks(vocab_size).map(|y| (y, softmax(&wide(y), 1.0), softmax(&wide(y), t)));
        match word {
            Word::Whole => TeacherSignal::Dense { logits: self.teacher.clone(), vocab_size },
            Word::Bucket(k) | Word::Alone(k) => {
                let (mut ids, mut log_probabilities, mut log_tails) = (vec![], vec![], vec![]);
                for (y, p, p_t) in rows() {
                    let order = order(y);
                    ids.extend(&order[..k]);
                    log_probabilities.extend(order[..k].iter().map(|&i| p[i as usize].ln() as f32));
                    log_tails.push(order[k..].iter().map(|&i| p_t[i as usize]).sum::<f64>().ln() as f32);
                }
                let log_tails = matches!(word, Word::Bucket(_)).then_some(log_tails);
                TeacherSignal::TopK { k, ids, log_probabilities, log_tails, labels: vec![], vocab_size }
            }
            Word::Drawn(count) => {
                let (mut ids, mut log_probabilities, mut weights) = (vec![], vec![], vec![]);
                for (_, _, p) in rows() {
                    for (id, weight) in (0..count).map(|i| draw(i, count, vocab_size)) {
                        ids.push(id as u32);
                        log_probabilities.push(p[id].ln() as f32);
                        weights.push(weight);
                    }
                }
                let bounds = (0..=self.n).map(|n| n * count).collect();
                TeacherSignal::Sampled {
                    bounds,
                    ids,
                    log_probabilities,
                    weights,
                    labels: vec![0.0; self.n],
                    vocab_size,
                }
            }
        }
    }

    /// The program's answer. A head of ones on the diagonal makes the student's states its logits.
    pub fn ours(&self, divergence: Box<dyn Divergence>, word: Word, asked: Asked, device: &Device) -> Result<Answer> {
        let vocab = self.vocab();
        let mut diagonal = vec![0.0f32; vocab * vocab];
        diagonal.iter_mut().step_by(vocab + 1).for_each(|x| *x = 1.0);
        let weight = Tensor::from_vec(diagonal, (vocab, vocab), device)?;
        let hidden = Tensor::from_slice(&self.student, (self.n, vocab), device)?;
        let head = StudentHead { weight: &weight, grad: None, precision: Precision::F32, cap: None };
        let tokens = [0].into_iter().chain((0..self.n).map(|n| self.label(n) as u32)).collect();
        let batch = Batch::new(&[Row {
            tokens,
            targets: (0..=self.n).map(|t| t > 0).collect(),
            source: RowRef { digest: [0; 32], file: Arc::new(PathBuf::from("selftest")), line: 1 },
        }]);
        let tail = if matches!(word, Word::Alone(_)) { Tail::Renormalize } else { Tail::Bucket };
        let mut objective =
            Objective::distillation(divergence, asked.temperature, asked.hard_label_weight, false).with_tail(tail);
        if let Some(rows) = asked.rows_per_chunk {
            objective = objective.with_rows_per_chunk(rows);
        }
        let signal = self.signal(word, asked.temperature);
        let out = objective.run(&hidden, &head, Some(&signal), &batch, asked.of)?;
        let value = objective.loss(&out.sums) * self.n as f64 / asked.of as f64;
        Ok(Answer { value, gradient: out.d_hidden.flatten_all()?.to_vec1()? })
    }

    /// What row `n` of the student's logits `z` should cost.
    fn cost(&self, formula: Formula, word: Word, asked: Asked, n: usize, z: &[f64]) -> f64 {
        let (w, t) = (asked.hard_label_weight, asked.temperature);
        let y = &self.teacher[n * self.teacher_vocab()..(n + 1) * self.teacher_vocab()];
        let (mut p, q) = (softmax(&wide(&y[..y.len().min(z.len())]), t), softmax(z, t));
        p.resize(z.len(), 0.0);
        let known = |k: usize| order(y)[..k].iter().map(|&i| i as usize).collect::<Vec<usize>>();
        let of = |x: &[f64], ids: &[usize]| ids.iter().map(|&i| x[i]).collect::<Vec<f64>>();
        let d = match word {
            Word::Whole => formula.of(&p, &q),
            Word::Bucket(k) => {
                let ids = known(k);
                let with_rest = |x: &[f64]| {
                    let rest = (0..x.len()).filter(|i| !ids.contains(i)).map(|i| x[i]).sum();
                    of(x, &ids).into_iter().chain([rest]).collect::<Vec<f64>>()
                };
                formula.of(&with_rest(&p), &with_rest(&q))
            }
            Word::Alone(k) => {
                let alone = |x: &[f64]| {
                    let known = of(x, &known(k));
                    let sum: f64 = known.iter().sum();
                    known.into_iter().map(|x| x / sum).collect::<Vec<f64>>()
                };
                formula.of(&alone(&p), &alone(&q))
            }
            Word::Drawn(count) => (0..count)
                .map(|i| draw(i, count, y.len()))
                .map(|(id, weight)| weight as f64 * formula.of_draw(p[id], q[id]).unwrap_or(f64::NAN))
                .sum(),
        };
        (1.0 - w) * d - w * softmax(z, 1.0)[self.label(n)].ln()
    }

    /// By the definitions; the gradient by central differences. Values are summed over the rows.
    pub fn reference(&self, formula: Formula, word: Word, asked: Asked) -> (f64, Vec<f64>) {
        let (mut value, mut by_logit) = (0.0, vec![]);
        for (n, z) in self.student.chunks(self.vocab()).enumerate() {
            let z = wide(z);
            value += self.cost(formula, word, asked, n, &z);
            by_logit.extend(gradient(&z, |z| self.cost(formula, word, asked, n, z)));
        }
        let of = asked.of as f64;
        (value / of, by_logit.into_iter().map(|g| g / of).collect())
    }
}
