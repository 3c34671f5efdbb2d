//! Hidden states of the student held to the teacher's, layer by layer, at the targets (FitNets, Romero et al. 2014, arXiv
//! 1412.6550; DistilBERT's cosine, Sanh et al. 2019, arXiv 1910.01108).
//!
//! A hidden state is the residual stream behind a block. Where the widths differ a projection, which is learnt and belongs to
//! the run alone, carries the student's to the teacher's.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::kernels::{Linear, Precision, with_f32};
use crate::model::Parameter;

/// How far two states are from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HiddenKind {
    /// Mean over the width of (s − t)².
    Mse,
    /// 1 − cos(s, t).
    Cosine,
}

/// Two blocks whose outputs are compared.
#[derive(Clone)]
pub struct HiddenPair {
    pub student: usize,
    pub teacher: usize,
    /// `[teacher's width, student's width]`; None where they are equal.
    pub projection: Option<Parameter>,
}

/// The term weight · (1 / pairs) · Σ over pairs · (1 / N) · Σ over targets of the distance. A clone learns with it.
#[derive(Clone)]
pub struct HiddenMatch {
    /// In the order of the student's blocks, each once.
    pub pairs: Vec<HiddenPair>,
    pub kind: HiddenKind,
    pub weight: f64,
}

impl HiddenMatch {
    pub fn layers_of_student(&self) -> Vec<usize> {
        self.pairs.iter().map(|pair| pair.student).collect()
    }

    pub fn layers_of_teacher(&self) -> Vec<usize> {
        self.pairs.iter().map(|pair| pair.teacher).collect()
    }

    /// What it learns besides the student.
    pub fn projections(&self) -> impl Iterator<Item = &Parameter> {
        self.pairs.iter().filter_map(|pair| pair.projection.as_ref())
    }

    /// The unweighted sum over targets of the mean distance of the pairs, and the gradient of the weighted loss for each of the
    /// student's states. `student` and `teacher` hold the states at the target rows, `[N, width]`, of each pair in order; `valid`
    /// is the number of targets of the whole step. The projections' gradients go to their slots.
    pub fn run(
        &self,
        student: &[Tensor],
        teacher: &[Tensor],
        valid: usize,
        precision: Precision,
    ) -> Result<(f64, Vec<Tensor>)> {
        if student.len() != self.pairs.len() || teacher.len() != self.pairs.len() {
            return Err(Error::run("hidden states of other layers than those that are compared"));
        }
        let share = 1.0 / self.pairs.len() as f64;
        let scale = (self.weight * share / valid.max(1) as f64) as f32;
        let (mut sum, mut gradients) = (0.0, vec![]);
        for ((pair, s), t) in self.pairs.iter().zip(student).zip(teacher) {
            let linear = pair.projection.as_ref().map(projection).transpose()?;
            let projected = match &linear {
                Some(linear) => linear.forward(s, precision)?,
                None => s.clone(),
            };
            let (distance, gradient) = distances(self.kind, &projected, t, scale)?;
            sum += share * distance;
            gradients.push(match &linear {
                Some(linear) => linear.backward(s, &gradient, None, precision)?,
                None => gradient,
            });
        }
        Ok((sum, gradients))
    }
}

fn projection(parameter: &Parameter) -> Result<Linear> {
    Ok(Linear {
        weight: parameter.weight.clone(),
        bias: None,
        weight_grad: parameter.grad.clone(),
        bias_grad: None,
        adapter: None,
    })
}

/// Σ over rows of the distance, and `scale` times its gradient with respect to `s`; both `[N, width]`.
fn distances(kind: HiddenKind, s: &Tensor, t: &Tensor, scale: f32) -> Result<(f64, Tensor)> {
    let (rows, width) = s.dims2()?;
    if t.dims2()? != (rows, width) {
        return Err(Error::run(format!("hidden states of {:?} and {:?} cannot be compared", s.dims(), t.dims())));
    }
    let mut gradient = vec![0.0f32; rows * width];
    let distance = match kind {
        HiddenKind::Mse => mse,
        HiddenKind::Cosine => cosine,
    };
    let mut of_rows = |s: &[f32], t: &[f32]| -> Vec<f64> {
        let pairs = s.par_chunks_exact(width).zip(t.par_chunks_exact(width));
        pairs.zip(gradient.par_chunks_exact_mut(width)).map(|((s, t), g)| distance(s, t, g, scale)).collect()
    };
    let sums = with_f32(s, |s| with_f32(t, |t| of_rows(s, t)))??;
    Ok((sums.iter().sum(), Tensor::from_vec(gradient, (rows, width), s.device())?))
}

fn mse(s: &[f32], t: &[f32], gradient: &mut [f32], scale: f32) -> f64 {
    let width = s.len() as f32;
    let mut sum = 0.0f64;
    for ((g, s), t) in gradient.iter_mut().zip(s).zip(t) {
        let difference = s - t;
        sum += (difference * difference) as f64;
        *g = scale * 2.0 * difference / width;
    }
    sum / width as f64
}

/// A state of length 0 has no direction: it is as far from everything as a right angle, without a gradient.
fn cosine(s: &[f32], t: &[f32], gradient: &mut [f32], scale: f32) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum::<f64>();
    let (of_s, of_t) = (dot(s, s).sqrt(), dot(t, t).sqrt());
    if of_s == 0.0 || of_t == 0.0 {
        return 1.0;
    }
    let cos = dot(s, t) / (of_s * of_t);
    for ((g, s), t) in gradient.iter_mut().zip(s).zip(t) {
        *g = (scale as f64 * (cos * *s as f64 / of_s - *t as f64 / of_t) / of_s) as f32;
    }
    1.0 - cos
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut x = seed | 1;
        let mut next = || {
            (x, _) = x.overflowing_mul(1_664_525);
            x = x.wrapping_add(1_013_904_223);
            (x >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..n).map(|_| next()).collect()
    }

    fn tensor(rows: usize, width: usize, seed: u32) -> Tensor {
        Tensor::from_vec(noise(rows * width, seed), (rows, width), &Device::Cpu).unwrap()
    }

    fn matched(kind: HiddenKind, projected: bool) -> HiddenMatch {
        let projection = |i| {
            let weight = tensor(7, 5, 40 + i);
            Parameter::new(format!("p{i}"), weight, true).unwrap()
        };
        let pair = |i: u32| HiddenPair {
            student: i as usize,
            teacher: 2 * i as usize,
            projection: projected.then(|| projection(i)),
        };
        HiddenMatch { pairs: vec![pair(0), pair(1)], kind, weight: 0.3 }
    }

    /// The weighted loss of a step of 9 targets of which these are four.
    fn loss(matched: &HiddenMatch, student: &[Tensor], teacher: &[Tensor]) -> f64 {
        0.3 * matched.run(student, teacher, 9, Precision::F32).unwrap().0 / 9.0
    }

    #[test]
    fn gradients_of_states_and_projections_are_the_finite_differences() {
        for (kind, projected) in
            [(HiddenKind::Mse, false), (HiddenKind::Mse, true), (HiddenKind::Cosine, false), (HiddenKind::Cosine, true)]
        {
            let matched = matched(kind, projected);
            let width = if projected { 5 } else { 7 };
            let (student, teacher) = ([tensor(4, width, 1), tensor(4, width, 2)], [tensor(4, 7, 3), tensor(4, 7, 4)]);
            let (_, gradients) = matched.run(&student, &teacher, 9, Precision::F32).unwrap();
            let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let slots: Vec<Vec<f32>> =
                matched.projections().map(|p| values(p.grad.as_ref().unwrap().tensor())).collect();
            const H: f32 = 1e-2;
            let moved = |t: &Tensor, i: usize, by: f32| {
                let mut v = values(t);
                v[i] += by;
                Tensor::from_vec(v, t.shape(), &Device::Cpu).unwrap()
            };
            let check = |numeric: f64, got: f32, what: &str| {
                assert!((numeric - got as f64).abs() < 2e-5, "{kind:?} {what}: {numeric} and {got}");
            };
            for i in 0..4 * width {
                let at = |by| loss(&matched, &[student[0].clone(), moved(&student[1], i, by)], &teacher);
                check((at(H) - at(-H)) / (2.0 * H as f64), values(&gradients[1])[i], "state");
            }
            for i in (0..35).filter(|_| projected) {
                let at = |by| {
                    let mut other = self::matched(kind, true);
                    let weight = other.pairs[0].projection.as_ref().unwrap().tensor().unwrap().clone();
                    other.pairs[0].projection = Some(Parameter::new("p0".into(), moved(&weight, i, by), true).unwrap());
                    loss(&other, &student, &teacher)
                };
                check((at(H) - at(-H)) / (2.0 * H as f64), slots[0][i], "projection");
            }
        }
    }

    #[test]
    fn equal_states_are_at_no_distance_and_only_the_cosine_forgets_lengths() {
        let states = [tensor(4, 7, 1), tensor(4, 7, 2)];
        let longer = states.each_ref().map(|s| (s * 3.0).unwrap());
        for kind in [HiddenKind::Mse, HiddenKind::Cosine] {
            let matched = matched(kind, false);
            assert!(matched.run(&states, &states, 4, Precision::F32).unwrap().0.abs() < 1e-12);
            let apart = matched.run(&longer, &states, 4, Precision::F32).unwrap().0;
            assert_eq!(apart.abs() < 1e-6, kind == HiddenKind::Cosine, "{apart}");
        }
        let zeros = [Tensor::zeros((4, 7), candle_core::DType::F32, &Device::Cpu).unwrap(), states[1].clone()];
        let (sum, gradients) = matched(HiddenKind::Cosine, false).run(&zeros, &states, 4, Precision::F32).unwrap();
        assert!((sum - 2.0).abs() < 1e-6);
        assert!(gradients[0].flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|g| *g == 0.0));
    }
}
