//! Divergences as LOSSES.md and their papers define them: f64, one sum over two lists of probabilities, nothing of
//! [`crate::loss`].

/// What is compared.
#[derive(Debug, Clone, Copy)]
pub enum Formula {
    ForwardKl,
    ReverseKl,
    Jsd { beta: f64, factor: f64 },
    SkewKl(f64),
    SkewReverseKl(f64),
    Tvd,
}

fn kl(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(&p, &q)| if p > 0.0 { p * (p / q).ln() } else { 0.0 }).sum()
}

fn mixed(w: f64, p: &[f64], q: &[f64]) -> Vec<f64> {
    p.iter().zip(q).map(|(p, q)| w * p + (1.0 - w) * q).collect()
}

/// Of logits at temperature `t`.
pub fn softmax(logits: &[f64], t: f64) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = logits.iter().map(|z| ((z - largest) / t).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|e| e / sum).collect()
}

impl Formula {
    /// D(p, q).
    pub fn of(self, p: &[f64], q: &[f64]) -> f64 {
        match self {
            Self::ForwardKl => kl(p, q),
            Self::ReverseKl => {
                let (p, q): (Vec<f64>, Vec<f64>) = p.iter().zip(q).filter(|(p, _)| **p > 0.0).unzip();
                let mass: f64 = q.iter().sum();
                kl(&q.iter().map(|q| q / mass).collect::<Vec<_>>(), &p)
            }
            Self::Jsd { beta, factor } => {
                let m = mixed(beta, p, q);
                factor * (beta * kl(p, &m) + (1.0 - beta) * kl(q, &m))
            }
            Self::SkewKl(lambda) => kl(p, &mixed(lambda, p, q)),
            Self::SkewReverseKl(lambda) => kl(q, &mixed(1.0 - lambda, p, q)),
            Self::Tvd => 0.5 * p.iter().zip(q).map(|(p, q)| (p - q).abs()).sum::<f64>(),
        }
    }

    /// f where D is Σ p · f(p, q): what a draw from p counts. None of a divergence that is no expectation under p.
    pub fn of_draw(self, p: f64, q: f64) -> Option<f64> {
        match self {
            Self::ForwardKl => Some((p / q).ln()),
            Self::SkewKl(lambda) => Some((p / (lambda * p + (1.0 - lambda) * q)).ln()),
            Self::Tvd => Some(0.5 * (1.0 - q / p).abs()),
            Self::ReverseKl | Self::Jsd { .. } | Self::SkewReverseKl(_) => None,
        }
    }

    /// What it cannot exceed.
    pub fn bound(self) -> f64 {
        match self {
            Self::Jsd { beta, factor } => -factor * (beta * beta.ln() + (1.0 - beta) * (1.0 - beta).ln()),
            Self::Tvd => 1.0,
            _ => f64::INFINITY,
        }
    }
}
