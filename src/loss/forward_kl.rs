//! KL(p‖q) = Σ p (log p − log q): the distillation loss of Hinton et al. 2015 (arXiv 1503.02531), as a true divergence.

use super::row::{Divergence, LogitRow};
use crate::kernels::math;
use crate::signal::{Needs, TopKRow};

/// Zero exactly when p = q. Student tokens beyond the teacher's row have p = 0: they cost nothing themselves, and their
/// share of q pushes them down.
pub struct ForwardKl;

impl Divergence for ForwardKl {
    fn name(&self) -> &'static str {
        "forward_kl"
    }

    fn needs(&self) -> Needs {
        Needs { full_distribution: false }
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

    /// ∂D/∂z = (q − p) / T for a known token, q (1 − p_rest / q_rest) / T for any other.
    fn top_k_row(&self, teacher: TopKRow<'_>, student: LogitRow<'_>, gradient: Option<(&mut [f32], f32)>) -> f64 {
        let known = (1.0 - (teacher.log_tail as f64).exp()).max(0.0);
        let scaled = |i: usize| (teacher.log_probabilities[i] * student.inverse_temperature) as f64;
        let every = 0..teacher.ids.len();
        let largest = every.clone().map(scaled).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = every.clone().map(|i| (scaled(i) - largest).exp()).sum();
        let log_p = |i: usize| scaled(i) - largest - total.ln() + known.ln();
        let log_q = |i: usize| student.log_probability(teacher.ids[i] as usize) as f64;
        let term = |log_p: f64, log_q: f64| if log_p > f64::NEG_INFINITY { log_p.exp() * (log_p - log_q) } else { 0.0 };
        // What the bucket's student share is pulled by; the share itself only counts where the teacher's is not zero.
        let log_p_rest = teacher.log_tail as f64;
        let log_q_rest = if log_p_rest > f64::NEG_INFINITY { log_rest(teacher.ids, student) } else { 0.0 };
        if let Some((gradient, scale)) = gradient {
            let scale = scale * student.inverse_temperature;
            let pull = scale * (1.0 - (log_p_rest - log_q_rest).exp()) as f32;
            math::vectorize(
                #[inline(always)]
                || {
                    for (g, &z) in gradient.iter_mut().zip(student.logits) {
                        *g += pull * math::exp(student.log_probability_of(z));
                    }
                },
            );
            for i in every.clone() {
                let q = log_q(i).exp() as f32;
                gradient[teacher.ids[i] as usize] += (scale - pull) * q - scale * log_p(i).exp() as f32;
            }
        }
        every.map(|i| term(log_p(i), log_q(i))).sum::<f64>() + term(log_p_rest, log_q_rest)
    }
}

/// log of what the student gives to all tokens but `ids`: a sum over these, because 1 − Σ would cancel.
fn log_rest(ids: &[u32], student: LogitRow<'_>) -> f64 {
    let mut rest = student.logits.to_vec();
    ids.iter().for_each(|&id| rest[id as usize] = f32::NEG_INFINITY);
    (LogitRow::new(&rest, student.inverse_temperature).log_sum_exp - student.log_sum_exp) as f64
}
