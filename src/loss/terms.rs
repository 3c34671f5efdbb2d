//! Divergences that are sums over tokens of a term in p and q: a file states the term, the rest is here.

use candle_core::Tensor;

use super::row::{Divergence, LogitRow, renormalized_row};
use crate::error::Result;
use crate::kernels::{RowDivergence, RowScales, RowSums, TeacherRows, divergence_rows, math};
use crate::signal::{SampledRow, TopKRow};

/// D(p, q) = Σ φ(pᵢ, qᵢ).
///
/// Its gradient by the student's logits is (eⱼ − qⱼ Σ e) / T with e = q · ∂φ/∂q.
pub trait Term: Copy + Send + Sync + 'static {
    /// The name in configs and metrics.
    const NAME: &'static str;
    /// Whether φ is infinite where p = 0: p and q are then compared over the tokens that p has, q renormalised there.
    const NEEDS_SUPPORT: bool = false;
    /// Whether φ = p · f(p, q), of which draws from p give an unbiased estimate.
    const OF_DRAWS: bool = false;
    /// The power of T by which the divergence is multiplied so that its gradient's size does not change with T.
    const TEMPERATURE_POWER: i32 = 2;

    /// φ and e of a token, from log p and log q. log q is finite or −∞, and so is log p.
    fn term(self, log_p: f32, log_q: f32) -> (f32, f32);

    /// What computes it on a GPU.
    fn of_rows(self) -> RowDivergence;
}

/// The divergence of a [`Term`].
#[derive(Debug, Clone, Copy)]
pub struct Terms<T>(pub T);

/// log(p / m) and log(q / m) for m = w p + (1 − w) q, w strictly between 0 and 1; where p = q = 0, zeros. Nothing overflows, and
/// where p = q both are 0 exactly.
#[inline(always)]
pub(super) fn against_mixture(w: f32, log_p: f32, log_q: f32) -> (f32, f32) {
    let d = log_p - log_q;
    let smaller = math::exp(-d.abs());
    // Of the likelier one: m / p = w + (1 − w) q/p = 1 + (1 − w) (q/p − 1), and m / q alike.
    let other = if d > 0.0 { 1.0 - w } else { w };
    let of_likelier = -math::ln_1p(other * (smaller - 1.0));
    let of_other = of_likelier - d.abs();
    let (p, q) = if d > 0.0 { (of_likelier, of_other) } else { (of_other, of_likelier) };
    if d.is_nan() { (0.0, 0.0) } else { (p, q) }
}

/// p · x, 0 where p is, whatever x is.
#[inline(always)]
pub(super) fn times(p: f32, x: f32) -> f32 {
    if p > 0.0 { p * x } else { 0.0 }
}

impl<T: Term> Terms<T> {
    /// D over a row. `inside` are the student's logits next to the teacher's; log p and log q come from `teacher` and `student`.
    #[inline(always)]
    fn sums(self, teacher: &LogitRow<'_>, student: &LogitRow<'_>, inside: &[f32], outside: &[f32]) -> (f64, f64) {
        let both = |y: f32, z: f32| self.0.term(teacher.log_probability_of(y), student.log_probability_of(z));
        let alone = |z: f32| self.0.term(f32::NEG_INFINITY, student.log_probability_of(z));
        (
            math::sum_of([teacher.logits, inside], |[y, z]| both(y, z).0) + math::sum_of([outside], |[z]| alone(z).0),
            math::sum_of([teacher.logits, inside], |[y, z]| both(y, z).1) + math::sum_of([outside], |[z]| alone(z).1),
        )
    }
}

/// The student's row without the tokens that the teacher gives no probability: −∞ there.
fn on_support(teacher: &LogitRow<'_>, student: &LogitRow<'_>) -> Option<Vec<f32>> {
    let shared = teacher.logits.len();
    let excluded = |y: f32| math::exp(teacher.log_probability_of(y)) == 0.0;
    if student.logits.len() == shared && !teacher.logits.iter().any(|&y| excluded(y)) {
        return None;
    }
    let inside = teacher.logits.iter().zip(student.logits);
    let mut kept: Vec<f32> = inside.map(|(&y, &z)| if excluded(y) { f32::NEG_INFINITY } else { z }).collect();
    kept.resize(student.logits.len(), f32::NEG_INFINITY);
    Some(kept)
}

impl<T: Term> Divergence for Terms<T> {
    fn name(&self) -> &'static str {
        T::NAME
    }

    fn needs_full_distribution(&self) -> bool {
        false
    }

    fn takes_draws(&self) -> bool {
        T::OF_DRAWS
    }

    fn temperature_power(&self) -> i32 {
        T::TEMPERATURE_POWER
    }

    fn row(&self, teacher: LogitRow<'_>, student: LogitRow<'_>, gradient: Option<(&mut [f32], f32)>) -> f64 {
        let kept = if T::NEEDS_SUPPORT { on_support(&teacher, &student) } else { None };
        let student = match &kept {
            Some(kept) => LogitRow::new(kept, student.inverse_temperature),
            None => student,
        };
        math::vectorize(
            #[inline(always)]
            || {
                let shared = teacher.logits.len();
                let (inside, outside) = student.logits.split_at(shared);
                let (value, e_sum) = self.sums(&teacher, &student, inside, outside);
                let Some((gradient, scale)) = gradient else { return value };
                let (scale, e_sum) = (scale * student.inverse_temperature, e_sum as f32);
                let (of_shared, beyond) = gradient.split_at_mut(shared);
                for ((g, &y), &z) in of_shared.iter_mut().zip(teacher.logits).zip(inside) {
                    let log_q = student.log_probability_of(z);
                    let (_, e) = self.0.term(teacher.log_probability_of(y), log_q);
                    *g += scale * (e - math::exp(log_q) * e_sum);
                }
                for (g, &z) in beyond.iter_mut().zip(outside) {
                    let log_q = student.log_probability_of(z);
                    let (_, e) = self.0.term(f32::NEG_INFINITY, log_q);
                    *g += scale * (e - math::exp(log_q) * e_sum);
                }
                value
            },
        )
    }

    /// The whole row's divergence of a row of k + 1: the known tokens, and one that has the probability of all others. Of its
    /// gradient by that one's logit, log Σ exp(z / T) over the others, each of them takes its share.
    fn top_k_row(&self, teacher: TopKRow<'_>, student: LogitRow<'_>, gradient: Option<(&mut [f32], f32)>) -> f64 {
        let Some(log_p_rest) = teacher.log_tail else { return renormalized_row(self, teacher, student, gradient) };
        let (k, inverse_temperature) = (teacher.ids.len(), student.inverse_temperature);
        let mut others = student.logits.to_vec();
        teacher.ids.iter().for_each(|&id| others[id as usize] = f32::NEG_INFINITY);
        let rest = LogitRow::new(&others, inverse_temperature);
        let mut of_student: Vec<f32> =
            teacher.ids.iter().map(|&id| student.logits[id as usize] * inverse_temperature).collect();
        of_student.push(rest.log_sum_exp);
        // What the known tokens hold together at this temperature: 1 − p_rest.
        let log_known = (-(log_p_rest as f64).exp_m1()).max(0.0).ln();
        let scaled: Vec<f32> = teacher.log_probabilities.iter().map(|l| l * inverse_temperature).collect();
        let log_total = LogitRow::new(&scaled, 1.0).log_sum_exp as f64 - log_known;
        let mut of_teacher: Vec<f32> = scaled.iter().map(|&l| (l as f64 - log_total) as f32).collect();
        of_teacher.push(log_p_rest);
        let (p, q) = (LogitRow::new(&of_teacher, 1.0), LogitRow::new(&of_student, 1.0));
        let Some((gradient, scale)) = gradient else { return self.row(p, q, None) };
        let mut by_logit = vec![0.0; k + 1];
        let value = self.row(p, q, Some((&mut by_logit, scale * inverse_temperature)));
        if rest.log_sum_exp > f32::NEG_INFINITY {
            rest.add_softmax(gradient, by_logit[k]);
        }
        teacher.ids.iter().zip(&by_logit).for_each(|(&id, g)| gradient[id as usize] += g);
        value
    }

    /// Σ ŵ φ / p, with its gradient.
    fn sampled_row(&self, teacher: SampledRow<'_>, student: LogitRow<'_>, gradient: Option<(&mut [f32], f32)>) -> f64 {
        let terms: Vec<(f32, f32)> = (teacher.ids.iter().zip(teacher.log_probabilities).zip(teacher.weights))
            .map(|((&id, &log_p), &weight)| {
                let (value, e) = self.0.term(log_p, student.log_probability(id as usize));
                let share = weight / math::exp(log_p);
                (value * share, e * share)
            })
            .collect();
        if let Some((gradient, scale)) = gradient {
            let scale = scale * student.inverse_temperature;
            let pull = -scale * terms.iter().map(|t| t.1 as f64).sum::<f64>() as f32;
            student.add_softmax(gradient, pull);
            teacher.ids.iter().zip(&terms).for_each(|(&id, (_, e))| gradient[id as usize] += scale * e);
        }
        terms.iter().map(|t| t.0 as f64).sum()
    }

    fn rows_on_gpu(
        &self,
        teacher: &TeacherRows,
        student: &Tensor,
        labels: &Tensor,
        scales: RowScales,
    ) -> Result<RowSums> {
        Ok(divergence_rows(self.0.of_rows(), teacher, student, labels, scales)?)
    }
}
