//! What is kept of a teacher's row of logits.

use std::fmt::{self, Display, Formatter};

use half::f16;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use super::header::Header;
use crate::kernels::math;

/// Which tokens of a target are kept.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Codec {
    /// The k likeliest, and what all others hold together at each listed temperature.
    TopK { k: usize },
    /// `draws` with replacement from softmax(z / temperature), a listed one. Which ones follows from `seed`, the row's
    /// tokens and the target alone.
    Sampled { draws: usize, temperature: f64, seed: u64 },
    /// All.
    Dense,
}

impl Display for Codec {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::TopK { k } => write!(f, "top_k, k = {k}"),
            Self::Sampled { draws, temperature, seed } => {
                write!(f, "sampled, {draws} draws at temperature {temperature}, seed {seed}")
            }
            Self::Dense => f.write_str("dense"),
        }
    }
}

/// How log-probabilities are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Values {
    F32,
    F16,
}

impl Values {
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    /// `value` as it comes back.
    pub fn rounded(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
        }
    }
}

impl Display for Values {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::F32 { "f32" } else { "f16" })
    }
}

/// What is kept of one target. Log-probabilities are those of softmax(z), in nats.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stored {
    /// log p(label); −∞ where the label lies beyond the teacher's vocabulary.
    pub label: f32,
    /// −Σ p log p.
    pub entropy: f32,
    /// At each listed temperature T, of `top_k` the log of what all others hold at T, of `sampled` log Σ p^(1/T).
    pub rests: Vec<f32>,
    /// Empty in `dense`.
    pub ids: Vec<u32>,
    /// How often each was drawn; empty but in `sampled`.
    pub counts: Vec<u16>,
    /// log p of each.
    pub values: Vec<f32>,
}

impl Header {
    /// What is kept of `logits`, `[V]`, of target `n` of the row with `digest`. None where they have no finite log Σ exp.
    pub fn store(&self, logits: &[f32], label: u32, digest: &[u8; 32], n: usize) -> Option<Stored> {
        let total = |z: &[f32], inverse: f32| {
            math::vectorize(
                #[inline(always)]
                || math::log_sum_exp(z, inverse),
            )
        };
        if !total(logits, 1.0).is_finite() {
            return None;
        }
        // Large logits would cost the sums digits, 1 / T all the more.
        let largest = math::vectorize(
            #[inline(always)]
            || math::max(logits),
        );
        let shifted: Vec<f32> = logits.iter().map(|z| z - largest).collect();
        let logits = &shifted[..];
        let all = total(logits, 1.0);
        let log_p = |id: usize| logits.get(id).map_or(f32::NEG_INFINITY, |z| z - all);
        let minus_entropy = math::vectorize(
            #[inline(always)]
            || {
                math::sum_of([logits], |[z]| {
                    let p = math::exp(z - all);
                    if p > 0.0 { p * (z - all) } else { 0.0 }
                })
            },
        );
        let mut stored = Stored { label: log_p(label as usize), entropy: -minus_entropy as f32, ..Stored::default() };
        let inverses = || self.temperatures.iter().map(|t| (1.0 / t) as f32);
        match self.codec {
            Codec::Dense => stored.values = logits.iter().map(|z| z - all).collect(),
            Codec::TopK { k } => {
                stored.ids = top_k(logits, k);
                let mut others = logits.to_vec();
                stored.ids.iter().for_each(|&id| others[id as usize] = f32::NEG_INFINITY);
                stored.rests = inverses().map(|t| total(&others, t) - total(logits, t)).collect();
            }
            Codec::Sampled { draws, temperature, seed } => {
                let inverse = (1.0 / temperature) as f32;
                let mut p = logits.to_vec();
                let (_, sum) = math::vectorize(
                    #[inline(always)]
                    || math::exp_in_place(&mut p, inverse),
                );
                (stored.ids, stored.counts) = draw(&p, sum, draws, seed, digest, n);
                // Σ p^(1/T) = Σ exp(z / T) / (Σ exp z)^(1/T)
                stored.rests = inverses().map(|t| total(logits, t) - all * t).collect();
            }
        }
        if stored.values.is_empty() {
            stored.values = stored.ids.iter().map(|&id| log_p(id as usize)).collect();
        }
        Some(stored)
    }
}

/// The ids of the k largest logits, largest first; the lowest id first on ties.
fn top_k(logits: &[f32], k: usize) -> Vec<u32> {
    let before = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    // Candidates above what the k best so far leave behind: few of a row's logits get here.
    let room = 2 * k + 256;
    let mut best: Vec<u32> = Vec::with_capacity(room);
    let mut least = f32::NEG_INFINITY;
    for (id, &z) in logits.iter().enumerate() {
        // The first k are taken whatever they are: −∞ is above nothing.
        if z > least || best.len() < k {
            best.push(id as u32);
            if best.len() == room {
                best.select_nth_unstable_by(k - 1, before);
                best.truncate(k);
                least = logits[best[k - 1] as usize];
            }
        }
    }
    best.sort_unstable_by(before);
    best.truncate(k);
    best
}

/// `draws` tokens with replacement, each with probability p / `sum`: the distinct ones in ascending order, and how often each
/// came.
///
/// Key: the digest with the seed added to its first eight bytes; stream: the target's number in its row. A draw is 53 bits.
fn draw(p: &[f32], sum: f64, draws: usize, seed: u64, digest: &[u8; 32], n: usize) -> (Vec<u32>, Vec<u16>) {
    let mut key = *digest;
    key[..8].iter_mut().zip(seed.to_le_bytes()).for_each(|(key, seed)| *key ^= seed);
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(n as u64);
    let mut points: Vec<f64> = (0..draws).map(|_| (rng.next_u64() >> 11) as f64 * 2f64.powi(-53) * sum).collect();
    points.sort_unstable_by(f64::total_cmp);
    let (mut ids, mut counts): (Vec<u32>, Vec<u16>) = (vec![], vec![]);
    let mut below = 0.0;
    let mut next = points.into_iter().peekable();
    for (id, &p) in p.iter().enumerate() {
        below += p as f64;
        let mut count = 0;
        while next.next_if(|point| *point < below).is_some() {
            count += 1;
        }
        if count > 0 {
            ids.push(id as u32);
            counts.push(count);
        }
        if next.peek().is_none() {
            return (ids, counts);
        }
    }
    // The two sums differ in their last bits: a point may lie beyond.
    let rest = next.count() as u16;
    match (counts.last_mut(), p.iter().rposition(|p| *p > 0.0)) {
        (Some(count), Some(last)) if ids.last() == Some(&(last as u32)) => *count += rest,
        (_, last) => {
            ids.push(last.unwrap_or(0) as u32);
            counts.push(rest);
        }
    }
    (ids, counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_come_first_and_ties_go_to_the_lowest_id() {
        assert_eq!(top_k(&[1.0, 3.0, 3.0, 0.0, 3.0, 2.0, 2.0], 5), [1, 2, 4, 5, 6]);
        assert_eq!(top_k(&[f32::NEG_INFINITY; 3], 2), [0, 1]);
        // Long enough to cut candidates several times, with many ties.
        let logits: Vec<f32> = (0..5000u32).map(|i| ((i * 7919) % 601) as f32).collect();
        for k in [1, 7, 64, 5000] {
            let mut all: Vec<u32> = (0..5000).collect();
            all.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            assert_eq!(top_k(&logits, k), all[..k]);
        }
    }

    #[test]
    fn draws_come_as_often_as_they_are_likely() {
        let p = [0.0f32, 0.1, 0.0, 0.6, 0.3, 0.0];
        let mut counts = [0u64; 6];
        for n in 0..1000 {
            let (ids, times) = draw(&p, 1.0, 40, 7, &[3; 32], n);
            assert_eq!(times.iter().map(|&c| c as usize).sum::<usize>(), 40);
            assert!(ids.is_sorted());
            ids.iter().zip(times).for_each(|(&id, c)| counts[id as usize] += c as u64);
        }
        for (count, p) in counts.iter().zip(p) {
            // Five standard deviations of 40,000 draws.
            let (mean, deviation) = (40_000.0 * p as f64, (40_000.0 * (p * (1.0 - p)) as f64).sqrt());
            assert!((*count as f64 - mean).abs() <= 5.0 * deviation, "{counts:?}");
        }
        assert_eq!(draw(&p, 1.0, 5, 7, &[3; 32], 0), draw(&p, 1.0, 5, 7, &[3; 32], 0));
        assert_ne!(draw(&p, 1.0, 40, 7, &[3; 32], 0), draw(&p, 1.0, 40, 8, &[3; 32], 0));
        // A point beyond what the row adds up to.
        assert_eq!(draw(&[0.0, 1e-9, 0.0], 1.0, 3, 7, &[3; 32], 0), (vec![1], vec![3]));
    }
}
