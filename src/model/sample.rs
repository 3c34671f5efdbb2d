//! The next token from a row of logits: the likeliest, or drawn, from all tokens or from a nucleus.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0: the likeliest token each time, the lowest id of several.
    pub temperature: f64,
    /// Draw from the smallest set of likeliest tokens that holds this share (Holtzman et al. 2019, arXiv 1904.09751);
    /// 1: from all.
    pub top_p: f64,
}

impl Sampling {
    pub const GREEDY: Self = Self { temperature: 0.0, top_p: 1.0 };
}

/// The draws of one row: a function of its seed and of the logits alone, whatever other rows are generated with it.
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    weights: Vec<f32>,
    nucleus: Vec<u32>,
}

impl Sampler {
    pub fn new(sampling: Sampling, seed: [u8; 32]) -> Self {
        Self { sampling, rng: ChaCha8Rng::from_seed(seed), weights: vec![], nucleus: vec![] }
    }

    /// The next token of a row with these `logits`, `[V]`. A run error if they hold NaN or +∞, or nothing finite.
    pub fn pick(&mut self, logits: &[f32]) -> Result<u32> {
        let mut best = 0;
        for (id, &z) in logits.iter().enumerate() {
            if z.is_nan() || z == f32::INFINITY {
                return Err(not_finite());
            }
            if z > logits[best] {
                best = id;
            }
        }
        if !logits.get(best).is_some_and(|z| z.is_finite()) {
            return Err(not_finite());
        }
        if self.sampling.temperature <= 0.0 {
            return Ok(best as u32);
        }
        let (largest, inverse) = (logits[best], (1.0 / self.sampling.temperature) as f32);
        self.weights.clear();
        self.weights.extend(logits.iter().map(|&z| ((z - largest) * inverse).exp()));
        let total: f64 = self.weights.iter().map(|&w| w as f64).sum();
        let draw: f64 = self.rng.random();
        if self.sampling.top_p >= 1.0 {
            return Ok(at(draw * total, self.weights.iter().map(|&w| w as f64)).unwrap_or(best) as u32);
        }
        // Tokens below this weight hold less than 1 − top_p together, so none of them is in the nucleus.
        let least = ((1.0 - self.sampling.top_p) * total / logits.len() as f64) as f32;
        let weights = &self.weights;
        self.nucleus.clear();
        self.nucleus.extend((0..logits.len() as u32).filter(|&id| weights[id as usize] >= least));
        // Stable, so that equals stay in the order of their ids.
        self.nucleus.sort_by(|&a, &b| weights[b as usize].total_cmp(&weights[a as usize]));
        let (mut held, mut count) = (0.0, 0);
        for &id in &self.nucleus {
            held += weights[id as usize] as f64;
            count += 1;
            if held >= self.sampling.top_p * total {
                break;
            }
        }
        let inside = self.nucleus[..count].iter().map(|&id| weights[id as usize] as f64);
        Ok(at(draw * held, inside).map_or(best as u32, |i| self.nucleus[i]))
    }
}

/// Where `point` falls among weights laid end to end; None past their end, which rounding alone reaches.
fn at(point: f64, weights: impl Iterator<Item = f64>) -> Option<usize> {
    let mut sum = 0.0;
    weights.enumerate().find_map(|(i, weight)| {
        sum += weight;
        (point < sum).then_some(i)
    })
}

fn not_finite() -> Error {
    Error::run("the model's logits are not finite while it generates; its weights may be damaged")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f64, top_p: f64, seed: u8) -> Sampler {
        Sampler::new(Sampling { temperature, top_p }, [seed; 32])
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_the_likeliest() {
        assert_eq!(sampler(0.0, 1.0, 1).pick(&[0.5, 2.0, 2.0, f32::NEG_INFINITY]).unwrap(), 1);
    }

    #[test]
    fn draws_follow_the_softmax_at_the_temperature() {
        let (logits, draws) = ([0.0f32, 1.0, 2.0, -1.0], 40_000);
        for temperature in [0.5, 1.0, 2.0] {
            let mut sampler = sampler(temperature, 1.0, 7);
            let mut counts = [0.0; 4];
            (0..draws).for_each(|_| counts[sampler.pick(&logits).unwrap() as usize] += 1.0);
            let weights = logits.map(|z| (z as f64 / temperature).exp());
            let total: f64 = weights.iter().sum();
            // χ² with three degrees of freedom is below 16.3 in all but one of a thousand cases.
            let chi: f64 = (counts.iter().zip(weights))
                .map(|(count, w)| (w / total * draws as f64, count))
                .map(|(expected, count)| (count - expected).powi(2) / expected)
                .sum();
            assert!(chi < 16.3, "temperature {temperature}: {chi}");
        }
    }

    #[test]
    fn a_nucleus_leaves_out_what_is_beyond_its_share_and_keeps_the_ratios_inside() {
        let logits = [0.1f32.ln(), 0.5f32.ln(), 0.05f32.ln(), 0.35f32.ln()];
        let mut counts = [0.0; 4];
        let mut sampler = sampler(1.0, 0.8, 3);
        (0..20_000).for_each(|_| counts[sampler.pick(&logits).unwrap() as usize] += 1.0 / 20_000.0);
        assert_eq!((counts[0], counts[2]), (0.0, 0.0));
        assert!((counts[1] - 0.5 / 0.85f64).abs() < 0.02, "{counts:?}");
    }

    #[test]
    fn a_tiny_nucleus_is_the_likeliest_token() {
        assert_eq!(sampler(1.0, 1e-9, 1).pick(&[0.0, 0.1, -3.0]).unwrap(), 1);
    }

    #[test]
    fn logits_that_are_no_numbers_are_refused() {
        for logits in [[0.0, f32::NAN], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2]] {
            assert!(sampler(1.0, 0.9, 1).pick(&logits).is_err());
        }
        assert!(sampler(0.0, 1.0, 1).pick(&[]).is_err());
    }
}
