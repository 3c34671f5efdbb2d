//! ½ Σ |p − q|: the total variation distance.

use super::terms::Term;
use crate::kernels::{RowDivergence, math};

#[derive(Debug, Clone, Copy)]
pub struct Tvd;

impl Term for Tvd {
    const NAME: &'static str = "tvd";
    const OF_DRAWS: bool = true;
    const TEMPERATURE_POWER: i32 = 1;

    /// e = ½ q sign(q − p), 0 where they are equal.
    #[inline(always)]
    fn term(self, log_p: f32, log_q: f32) -> (f32, f32) {
        let (p, q) = (math::exp(log_p), math::exp(log_q));
        let sign = if q > p {
            0.5
        } else if q < p {
            -0.5
        } else {
            0.0
        };
        (0.5 * (p - q).abs(), sign * q)
    }

    fn of_rows(self) -> RowDivergence {
        RowDivergence::TotalVariation
    }
}
