//! One target's logits, and the seam on which divergences plug in.

use candle_core::Tensor;

use crate::error::Result;
use crate::kernels::{RowScales, RowSums, TeacherRows, math};
use crate::signal::{SampledRow, TopKRow};

/// Logits of one target with log Σ exp(z / T), from which any log-probability is one multiply-add away.
#[derive(Clone, Copy)]
pub struct LogitRow<'a> {
    pub logits: &'a [f32],
    /// 1 / T.
    pub inverse_temperature: f32,
    /// log Σ exp(z / T).
    pub log_sum_exp: f32,
}

impl<'a> LogitRow<'a> {
    /// `inverse_temperature`: 1 / T.
    pub fn new(logits: &'a [f32], inverse_temperature: f32) -> Self {
        let log_sum_exp = math::vectorize(
            #[inline(always)]
            || math::log_sum_exp(logits, inverse_temperature),
        );
        Self { logits, inverse_temperature, log_sum_exp }
    }

    /// log softmax(z / T) of token `i`, in nats.
    #[inline(always)]
    pub fn log_probability(&self, i: usize) -> f32 {
        self.log_probability_of(self.logits[i])
    }

    /// log softmax of a token with logit z, in nats.
    #[inline(always)]
    pub fn log_probability_of(&self, z: f32) -> f32 {
        z * self.inverse_temperature - self.log_sum_exp
    }

    /// Adds scale · softmax(z / T) to `gradient`: what every loss of draws or of labels pulls a student's row by.
    pub fn add_softmax(&self, gradient: &mut [f32], scale: f32) {
        math::vectorize(
            #[inline(always)]
            || {
                for (g, &z) in gradient.iter_mut().zip(self.logits) {
                    *g += scale * math::exp(self.log_probability_of(z));
                }
            },
        );
    }
}

/// [`Divergence::row`] over the tokens that a truncated teacher names, on both sides. At any temperature: only ratios count.
pub(super) fn renormalized_row(
    divergence: &dyn Divergence,
    teacher: TopKRow<'_>,
    student: LogitRow<'_>,
    gradient: Option<(&mut [f32], f32)>,
) -> f64 {
    let known: Vec<f32> = teacher.ids.iter().map(|&id| student.logits[id as usize]).collect();
    let q = LogitRow::new(&known, student.inverse_temperature);
    let p = LogitRow::new(teacher.log_probabilities, student.inverse_temperature);
    let Some((gradient, scale)) = gradient else { return divergence.row(p, q, None) };
    let mut of_known = vec![0.0; known.len()];
    let value = divergence.row(p, q, Some((&mut of_known, scale)));
    teacher.ids.iter().zip(of_known).for_each(|(&id, g)| gradient[id as usize] += g);
    value
}

/// A divergence D(p, q) of one target's distributions, in nats.
///
/// Implementations know neither teacher nor student, only two rows of logits, whose lengths may differ: the teacher's
/// row never is the longer one.
pub trait Divergence: Send + Sync {
    /// The name in configs and metrics.
    fn name(&self) -> &'static str;

    /// Whether it is defined on the whole distribution alone, not on a stored part of it.
    fn needs_full_distribution(&self) -> bool;

    /// Whether draws from p give an unbiased estimate of it.
    fn takes_draws(&self) -> bool {
        true
    }

    /// The power of T by which it is multiplied so that the size of its gradient does not change with T (Hinton et al. 2015).
    fn temperature_power(&self) -> i32 {
        2
    }

    /// Returns D(p, q). With `gradient = (g, scale)` it also adds scale · ∂D/∂z to g, z the student's logits
    /// (not divided by T).
    fn row(&self, teacher: LogitRow<'_>, student: LogitRow<'_>, gradient: Option<(&mut [f32], f32)>) -> f64;

    /// [`Self::row`] for a teacher of which only the likeliest tokens are known: they and one bucket that holds all others,
    /// on both sides; or, where the row has no tail, they alone, renormalised on both sides. With every token known it is
    /// the same; with the bucket, given what the others truly hold, it is no more.
    fn top_k_row(&self, teacher: TopKRow<'_>, student: LogitRow<'_>, gradient: Option<(&mut [f32], f32)>) -> f64;

    /// [`Self::row`] for a teacher of which only draws are known: an unbiased estimate of it and of its gradient. It may be
    /// negative.
    fn sampled_row(&self, teacher: SampledRow<'_>, student: LogitRow<'_>, gradient: Option<(&mut [f32], f32)>) -> f64;

    /// All rows of a chunk on a GPU, the cross-entropy of their labels included: `student`, `[n, V]`, is replaced by its
    /// gradient.
    fn rows_on_gpu(
        &self,
        teacher: &TeacherRows,
        student: &Tensor,
        labels: &Tensor,
        scales: RowScales,
    ) -> Result<RowSums>;
}
