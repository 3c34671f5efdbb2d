//! Which vector instructions the kernels use: the widest this CPU has, or what `DISTILL_SIMD` allows.

use std::sync::OnceLock;

/// A set of vector instructions; later ones include the earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Simd {
    /// What every CPU of the target has.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 with its byte, word, double-word and vector-length parts.
    Avx512,
    /// AVX-512 with products of bf16 pairs.
    Avx512Bf16,
}

impl Simd {
    /// The environment variable that lowers the level.
    pub const VARIABLE: &str = "DISTILL_SIMD";

    const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16];

    /// The level of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }

    /// The name in `DISTILL_SIMD` and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
        }
    }

    /// What the kernels use, decided once. `DISTILL_SIMD` lowers it (for comparisons and tests), never raises it.
    ///
    /// Panics on a name that is none: nobody shall believe that it took effect.
    #[inline]
    pub fn level() -> Self {
        static LEVEL: OnceLock<Simd> = OnceLock::new();
        *LEVEL.get_or_init(|| {
            let Ok(wanted) = std::env::var(Self::VARIABLE) else { return Self::widest() };
            match Self::named(&wanted) {
                Some(limit) => limit.min(Self::widest()),
                None => panic!("{} = {wanted:?} is none of portable, avx2, avx512, avx512bf16", Self::VARIABLE),
            }
        })
    }

    fn widest() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            match (avx2, avx512, is_x86_feature_detected!("avx512bf16")) {
                (true, true, true) => Self::Avx512Bf16,
                (true, true, false) => Self::Avx512,
                (true, false, _) => Self::Avx2,
                _ => Self::Portable,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self::Portable
    }
}

/// Runs `f` compiled for the instructions of [`Simd::level`]. The compiler turns plain loops into vector code only where
/// `f` is inlined: give it as `#[inline(always)] || …`, and call nothing in it that is not `#[inline(always)]` too.
#[inline(always)]
pub fn vectorize<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn avx2<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        match Simd::level() {
            Simd::Portable => f(),
            // SAFETY: the level is never above what the CPU was found to have.
            Simd::Avx2 => unsafe { avx2(f) },
            // SAFETY: as above.
            Simd::Avx512 | Simd::Avx512Bf16 => unsafe { avx512(f) },
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    f()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_is_at_most_what_the_cpu_has() {
        assert!(Simd::level() <= Simd::widest());
        assert!(Simd::ALL.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
