//! KL(p‖q) = Σ p (log p − log q): the distillation loss of Hinton et al. 2015 (arXiv 1503.02531), as a true divergence.

use candle_core::Tensor;

use super::row::{Divergence, LogitRow, renormalized_row};
use crate::error::Result;
use crate::kernels::{RowDivergence, RowScales, RowSums, TeacherRows, divergence_rows, math};
use crate::signal::{SampledRow, TopKRow};

/// Zero exactly when p = q. Student tokens beyond the teacher's row have p = 0: they cost nothing themselves, and their
/// share of q pushes them down.
pub struct ForwardKl;

impl Divergence for ForwardKl {
    fn name(&self) -> &'static str {
        "forward_kl"
    }

    fn needs_full_distribution(&self) -> bool {
        false
    }

    /// ∂D/∂z = (q − p) / T.
    fn row(&self, teacher: LogitRow<'_>, student: LogitRow<'_>, gradient: Option<(&mut [f32], f32)>) -> f64 {
        math::vectorize(
            #[inline(always)]
            || {
                let shared = teacher.logits.len();
                let (inside, outside) = student.logits.split_at(shared);
                let term = |y: f32, z: f32| {
                    let (log_p, log_q) = (teacher.log_probability_of(y), student.log_probability_of(z));
                    let p = math::exp(log_p);
                    // 0 · log 0 = 0: log p may be −∞ here.
                    (p, log_q, if p > 0.0 { p * (log_p - log_q) } else { 0.0 })
                };
                let Some((gradient, scale)) = gradient else {
                    return math::sum_of([teacher.logits, inside], |[y, z]| term(y, z).2);
                };
                let scale = scale * student.inverse_temperature;
                let (gradient, beyond) = gradient.split_at_mut(shared);
                for (g, &z) in beyond.iter_mut().zip(outside) {
                    *g += scale * math::exp(student.log_probability_of(z));
                }
                math::sum_into(gradient, [teacher.logits, inside], |g, [y, z]| {
                    let (p, log_q, term) = term(y, z);
                    *g += scale * (math::exp(log_q) - p);
                    term
                })
            },
        )
    }

    /// ∂D/∂z = (q − p) / T for a known token, (q_rest − p_rest) · q / q_rest / T for any other.
    fn top_k_row(&self, teacher: TopKRow<'_>, student: LogitRow<'_>, gradient: Option<(&mut [f32], f32)>) -> f64 {
        let Some(log_p_rest) = teacher.log_tail else { return renormalized_row(self, teacher, student, gradient) };
        let log_p_rest = log_p_rest as f64;
        let every = 0..teacher.ids.len();
        // What the known tokens hold together at this temperature: 1 − p_rest, exact where the rest is small.
        let log_known = (-log_p_rest.exp_m1()).max(0.0).ln();
        let scaled = |i: usize| (teacher.log_probabilities[i] * student.inverse_temperature) as f64;
        let largest = every.clone().map(scaled).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = every.clone().map(|i| (scaled(i) - largest).exp()).sum();
        let log_p = |i: usize| scaled(i) - largest - total.ln() + log_known;
        let log_q = |i: usize| student.log_probability(teacher.ids[i] as usize) as f64;
        let term = |log_p: f64, log_q: f64| if log_p > f64::NEG_INFINITY { log_p.exp() * (log_p - log_q) } else { 0.0 };
        // The student's row without the known tokens. Its sum is over the others, because 1 − Σ would cancel.
        let mut others = student.logits.to_vec();
        teacher.ids.iter().for_each(|&id| others[id as usize] = f32::NEG_INFINITY);
        let rest = LogitRow::new(&others, student.inverse_temperature);
        let log_q_rest = (rest.log_sum_exp - student.log_sum_exp) as f64;
        if let Some((gradient, scale)) = gradient {
            let scale = scale * student.inverse_temperature;
            // Shares within the rest times one factor: no difference of large numbers however sure the student is.
            let pull = scale * (log_q_rest.exp() - log_p_rest.exp()) as f32;
            if rest.log_sum_exp > f32::NEG_INFINITY {
                rest.add_softmax(gradient, pull);
            }
            for i in every.clone() {
                gradient[teacher.ids[i] as usize] += scale * (log_q(i).exp() - log_p(i).exp()) as f32;
            }
        }
        every.map(|i| term(log_p(i), log_q(i))).sum::<f64>() + term(log_p_rest, log_q_rest)
    }

    /// Σ ŵ (log p − log q); ∂/∂z = ((Σ ŵ) q − ŵ) / T. The weights are not normalised to a sum of one: that would be biased.
    fn sampled_row(&self, teacher: SampledRow<'_>, student: LogitRow<'_>, gradient: Option<(&mut [f32], f32)>) -> f64 {
        let draws = || teacher.ids.iter().zip(teacher.log_probabilities).zip(teacher.weights);
        if let Some((gradient, scale)) = gradient {
            let scale = scale * student.inverse_temperature;
            let pull = scale * teacher.weights.iter().sum::<f32>();
            student.add_softmax(gradient, pull);
            draws().for_each(|((&id, _), &weight)| gradient[id as usize] -= scale * weight);
        }
        let term = |((&id, &log_p), &weight): ((&u32, &f32), &f32)| {
            weight as f64 * (log_p as f64 - student.log_probability(id as usize) as f64)
        };
        draws().map(term).sum()
    }

    fn rows_on_gpu(
        &self,
        teacher: &TeacherRows,
        student: &Tensor,
        labels: &Tensor,
        scales: RowScales,
    ) -> Result<RowSums> {
        Ok(divergence_rows(RowDivergence::ForwardKl, teacher, student, labels, scales)?)
    }
}
