//! Rows that the student writes itself: on-policy distillation (GKD, Agarwal et al. 2023, arXiv 2306.13649, algorithm 1),
//! with the replay buffer of DistiLLM (Ko et al. 2024, arXiv 2402.03898, section 3.2).
//!
//! A step's rows come from the corpus; of each that has a prompt, a draw decides whether the student answers it in place of
//! the corpus. Every draw is seeded by the run's seed, the step and the row's place in it, so a step is a function of these,
//! of the weights and of the buffer, and a resumed run writes what the unbroken one would have.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::corpus::{Batch, Row, RowRef, Step, row_digest};
use crate::error::{Error, Result};
use crate::metrics::{Rollout, Sample};
use crate::model::{Decoder, Finish, Prompt, Sampling, generate};

/// How a student's own rows come about.
#[derive(Debug, Clone)]
pub struct RolloutOptions {
    /// λ: the share of rows with a prompt and a response that the student answers; those without a response always.
    pub fraction: f64,
    /// Answers are written in every n-th step; in between rows of the buffer stand in for them.
    pub every_steps: u64,
    /// Rows of the buffer, the newest.
    pub buffer: usize,
    pub max_new_tokens: usize,
    /// Tokens of a prompt with its answer.
    pub max_length: usize,
    pub sampling: Sampling,
    pub seed: u64,
    /// Tokens that end an answer.
    pub stop: Vec<u32>,
}

/// A row that the student wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    tokens: Vec<u32>,
    /// Tokens of the prompt.
    prompt: usize,
    file: PathBuf,
    line: u64,
}

impl Written {
    fn row(&self) -> Row {
        let targets: Vec<bool> = (0..self.tokens.len()).map(|t| t >= self.prompt).collect();
        let digest = row_digest(&self.tokens, &targets);
        let source = RowRef { digest, file: Arc::new(self.file.clone()), line: self.line };
        Row { tokens: self.tokens.clone(), targets, source }
    }
}

/// What a resumed run has to know of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutState {
    /// The newest rows, oldest first.
    buffer: VecDeque<Written>,
    /// Rows and tokens that were written so far.
    pub rows: u64,
    pub tokens: u64,
}

/// A step's rows, the student's own apart: their targets are no labels.
#[derive(Debug)]
pub struct Mixed {
    /// Rows, each alone, or packs of rows.
    pub corpus: Vec<Vec<Row>>,
    pub own: Vec<Row>,
    pub state: RolloutState,
    /// What was written in this step. None: nothing.
    pub report: Option<Rollout>,
    /// One prompt and its answer, of a step that wrote.
    pub sample: Option<Sample>,
}

impl Mixed {
    /// Batches of up to `size` items (at least 1): the corpus's first, then the student's own.
    pub fn micro_batches(&self, size: usize) -> Vec<Batch> {
        let size = size.max(1);
        let corpus = self.corpus.chunks(size).map(|items| Batch::new(items.iter().flatten()));
        let own = self.own.chunks(size).map(|rows| Batch { generated: true, ..Batch::new(rows) });
        corpus.chain(own).collect()
    }
}

/// The writer of a run's rollouts.
pub struct Rollouts<'a> {
    pub options: RolloutOptions,
    /// Tokens as text.
    pub text: &'a dyn Fn(&[u32]) -> Result<String>,
    pub interrupted: &'a AtomicBool,
}

/// A prompt that the student answers in this step.
struct Task {
    prompt: Vec<u32>,
    source: RowRef,
    rng: ChaCha8Rng,
}

impl Rollouts<'_> {
    /// The rows of 0-based step `step` after the student has answered what it has to. None when it was interrupted.
    pub fn mix(&self, items: Step, step: u64, student: &Decoder, state: &RolloutState) -> Result<Option<Mixed>> {
        let (mut corpus, mut tasks) = (vec![], vec![]);
        for (i, item) in items.items.into_iter().enumerate() {
            let mut kept = vec![];
            for (j, row) in item.into_iter().enumerate() {
                let mut rng = self.stream(step, i, j);
                let prompt = self.prompt_of(&row);
                let own = row.target_count() == 0 || rng.random::<f64>() < self.options.fraction;
                match prompt {
                    Some(prompt) if own => tasks.push(Task { prompt, source: row.source, rng }),
                    _ if row.target_count() > 0 => kept.push(row),
                    _ => {}
                }
            }
            if !kept.is_empty() {
                corpus.push(kept);
            }
        }
        let mut state = state.clone();
        let writes = step.is_multiple_of(self.options.every_steps) || state.buffer.is_empty();
        if !writes {
            let mut own = vec![];
            for mut task in tasks {
                let drawn = task.rng.random_range(0..state.buffer.len());
                own.push(state.buffer[drawn].row());
            }
            return Ok(Some(Mixed { corpus, own, state, report: None, sample: None }));
        }
        let started = Instant::now();
        let Some((written, finished)) = self.write(tasks, student)? else { return Ok(None) };
        let tokens: usize = written.iter().map(|w| w.tokens.len() - w.prompt).sum();
        state.rows += written.len() as u64;
        state.tokens += tokens as u64;
        let own = written.iter().map(Written::row).collect();
        let sample = written.first().map(|first| self.sample(step, first, finished)).transpose()?;
        let report = (!written.is_empty()).then(|| {
            let seconds = started.elapsed().as_secs_f64();
            let (rows, tokens) = (written.len() as u64, tokens as u64);
            Rollout { rows, tokens, seconds, tokens_per_second: tokens as f64 / seconds, share: 0.0 }
        });
        if self.options.every_steps > 1 {
            state.buffer.extend(written);
            let beyond = state.buffer.len().saturating_sub(self.options.buffer);
            state.buffer.drain(..beyond);
        }
        Ok(Some(Mixed { corpus, own, state, report, sample }))
    }

    /// Whether a sample of 0-based step `step`, which wrote, is shown: the first since an evaluation was due, every `every`
    /// steps.
    pub fn shows(&self, step: u64, every: u64) -> bool {
        step.checked_sub(self.options.every_steps).is_none_or(|before| step / every > before / every)
    }

    /// The draws of row `j` of item `i` of a step.
    fn stream(&self, step: u64, i: usize, j: usize) -> ChaCha8Rng {
        let mut hasher = Sha256::new().chain_update("rollout");
        for number in [self.options.seed, step, i as u64, j as u64] {
            hasher.update(number.to_le_bytes());
        }
        ChaCha8Rng::from_seed(hasher.finalize().into())
    }

    /// What precedes the last answer of a row. None: nothing does but perhaps a first special token, as in a text, or no
    /// answer would fit.
    fn prompt_of(&self, row: &Row) -> Option<Vec<u32>> {
        row.prompt_len().map(|len| row.tokens[..len].to_vec())
    }

    /// All answers, and how the first one ended. None when interrupted.
    fn write(&self, tasks: Vec<Task>, student: &Decoder) -> Result<Option<(Vec<Written>, bool)>> {
        let options = &self.options;
        let mut prompts = vec![];
        for task in &tasks {
            let room = options.max_length.saturating_sub(task.prompt.len()).min(options.max_new_tokens);
            let mut seed = [0; 32];
            task.rng.clone().fill(&mut seed);
            prompts.push(Prompt { tokens: task.prompt.clone(), max_tokens: room.max(1), seed });
        }
        let mut answers: Vec<Vec<u32>> = vec![vec![]; tasks.len()];
        let interrupted = || self.interrupted.load(Ordering::Relaxed);
        let student = student.packed()?;
        let finishes = generate(&student, &prompts, &options.stop, options.sampling, |r, token| {
            answers[r].push(token);
            if interrupted() { Err(Error::run("interrupted")) } else { Ok(()) }
        });
        if interrupted() {
            return Ok(None);
        }
        let finishes = finishes.map_err(|e| {
            e.context(
                "while the student wrote its own rows (a lower train.learning_rate helps where its logits blow up)",
            )
        })?;
        let mut written = vec![];
        for ((task, answer), finish) in tasks.into_iter().zip(answers).zip(&finishes) {
            let prompt = task.prompt.len();
            // The token that ends the turn is learnt like any other.
            let end = if let Finish::Stop(token) = finish { Some(*token) } else { None };
            let tokens = task.prompt.into_iter().chain(answer).chain(end).collect();
            written.push(Written { tokens, prompt, file: task.source.file.to_path_buf(), line: task.source.line });
        }
        let ended = matches!(finishes.first(), Some(Finish::Stop(_)));
        Ok(Some((written, ended)))
    }

    fn sample(&self, step: u64, written: &Written, ended: bool) -> Result<Sample> {
        let (prompt, completion) = written.tokens.split_at(written.prompt);
        Ok(Sample { step: step + 1, prompt: (self.text)(prompt)?, completion: (self.text)(completion)?, ended })
    }
}
