//! A frozen matrix in one of ggml's block quantisations, kept as it is and turned to f32 a slab at a time, as it is used.
//!
//! candle's own product of such a matrix also rounds the activations to eight bits and multiplies one row at a time; for the
//! hundreds of rows of a batch it is faster to unpack a slab that the cache holds and to multiply that.

use candle_core::quantized::{GgmlDType, QTensor, ggml_file::qtensor_from_ggml};
use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::gemm::{Mat, MatMut, Precision, matmul};
use super::storage::with_f32;

/// Rows that are unpacked by one task.
const ROWS: usize = 32;
/// Elements of a slab: 8 MiB of f32.
const SLAB: usize = 2 << 20;

/// A matrix `[outer, inner]`, in parts of [`ROWS`] rows.
#[derive(Debug)]
pub struct Quantised {
    parts: Vec<QTensor>,
    outer: usize,
    inner: usize,
    bytes: usize,
}

impl Quantised {
    /// From the bytes of a GGUF tensor. Row i of the matrix is row `source(i)` of these.
    pub fn new(
        bytes: &[u8],
        dtype: GgmlDType,
        [outer, inner]: [usize; 2],
        source: impl Fn(usize) -> usize,
    ) -> Result<Self> {
        let row = inner / dtype.block_size() * dtype.type_size();
        if outer == 0 || inner == 0 || !inner.is_multiple_of(dtype.block_size()) || bytes.len() != outer * row {
            bail!("{} bytes are no {outer} × {inner} matrix of {dtype:?}", bytes.len());
        }
        let part = |first: usize| {
            let rows = first..outer.min(first + ROWS);
            // A buffer of its own: candle reads it as blocks, which a slice may not be aligned for.
            let own = rows.clone().map(|i| &bytes[source(i) * row..][..row]).collect::<Vec<_>>().concat();
            qtensor_from_ggml(dtype, &own, vec![rows.len(), inner], &Device::Cpu)
        };
        let parts = (0..outer).step_by(ROWS).map(part).collect::<Result<_>>()?;
        Ok(Self { parts, outer, inner, bytes: bytes.len() })
    }

    /// The first element, or the first of a block, that NaN or infinity is in; of a GGUF tensor's bytes. In blocks only the
    /// scales can be: numbers of a few bits times a finite f16 are finite.
    pub fn first_not_finite(bytes: &[u8], dtype: GgmlDType) -> Option<usize> {
        use GgmlDType::*;
        // Where in a block the 16 bits stand that hold an exponent, and which of them it is.
        let (places, exponent): (&[usize], u16) = match dtype {
            F32 => (&[2], 0x7f80),
            BF16 => (&[0], 0x7f80),
            F16 | Q4_0 | Q5_0 | Q8_0 => (&[0], 0x7c00),
            Q4_1 | Q5_1 | Q8_1 | Q4K | Q5K => (&[0, 2], 0x7c00),
            Q2K => (&[80, 82], 0x7c00),
            Q3K => (&[108], 0x7c00),
            Q6K => (&[208], 0x7c00),
            Q8K => (&[2], 0x7f80),
        };
        let broken = |block: &[u8]| {
            let bits = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
            places.iter().any(|&at| bits(at) & exponent == exponent)
        };
        const BLOCKS: usize = 1 << 12;
        let size = dtype.type_size();
        let chunk = bytes.par_chunks(size * BLOCKS).position_first(|chunk| chunk.chunks_exact(size).any(broken))?;
        let block = bytes[chunk * size * BLOCKS..].chunks_exact(size).position(broken)?;
        Some((chunk * BLOCKS + block) * dtype.block_size())
    }

    pub fn outer(&self) -> usize {
        self.outer
    }

    pub fn inner(&self) -> usize {
        self.inner
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes the rows of `parts`, in f32.
    fn unpack(&self, parts: &[QTensor], to: &mut [f32]) -> Result<()> {
        to.par_chunks_mut(ROWS * self.inner).zip(parts).try_for_each(|(to, part)| {
            let values = part.dequantize(&Device::Cpu)?.flatten_all()?;
            with_f32(&values, |values| to.copy_from_slice(values))
        })
    }

    /// All of it in f32, row-major.
    pub fn values(&self) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.outer * self.inner];
        self.unpack(&self.parts, &mut values)?;
        Ok(values)
    }

    /// Rows by index, in f32. Panics on an index beyond the matrix.
    pub fn rows(&self, indices: &[u32]) -> Result<Vec<f32>> {
        let mut rows = vec![0.0; indices.len() * self.inner];
        rows.par_chunks_mut(self.inner).zip(indices).try_for_each(|(to, &i)| {
            let (part, row) = (&self.parts[i as usize / ROWS], i % ROWS as u32);
            let values = part.embedding(&Tensor::new(&[row], &Device::Cpu)?)?.flatten_all()?;
            with_f32(&values, |values| to.copy_from_slice(values))
        })?;
        Ok(rows)
    }

    /// `y ← x Wᵀ`, or `y ← y + x Wᵀ` with `accumulate`: x `[n, inner]`, y `[n, outer]`. The product rounds to `precision`
    /// where the CPU multiplies so.
    pub fn project(&self, x: &[f32], y: &mut [f32], precision: Precision, accumulate: bool) -> Result<()> {
        let n = x.len() / self.inner;
        let parts = (SLAB / (ROWS * self.inner)).clamp(1, self.parts.len());
        let mut slab = vec![0.0; parts * ROWS * self.inner];
        for (s, parts) in self.parts.chunks(parts).enumerate() {
            let first = s * slab.len() / self.inner;
            let rows = (self.outer - first).min(slab.len() / self.inner);
            let weight = &mut slab[..rows * self.inner];
            self.unpack(parts, weight)?;
            let out = MatMut::strided(&mut y[first..], n, rows, self.outer);
            matmul(Mat::new(x, n, self.inner), Mat::new(weight, rows, self.inner).t(), out, precision, accumulate);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize) -> Vec<f32> {
        (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    fn quantised(dtype: GgmlDType, outer: usize, inner: usize) -> (Quantised, Vec<f32>) {
        let values = Tensor::from_vec(noise(outer * inner), (outer, inner), &Device::Cpu).unwrap();
        let q = QTensor::quantize(&values, dtype).unwrap();
        let want = q.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        (Quantised::new(&q.data().unwrap(), dtype, [outer, inner], |i| i).unwrap(), want)
    }

    const DTYPES: [GgmlDType; 13] = [
        GgmlDType::F32,
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ];

    #[test]
    fn every_quantisation_multiplies_and_looks_up_as_its_dequantised_values() {
        let (outer, inner, n) = (75, 512, 5);
        for dtype in DTYPES {
            let (q, want) = quantised(dtype, outer, inner);
            assert_eq!(q.values().unwrap(), want, "{dtype:?}");
            assert_eq!(
                q.rows(&[74, 0, 33]).unwrap(),
                [&want[74 * inner..], &want[..inner], &want[33 * inner..34 * inner]].concat()
            );
            let x = noise(n * inner);
            let (mut got, mut exact) = (vec![1.0; n * outer], vec![1.0; n * outer]);
            q.project(&x, &mut got, Precision::F32, true).unwrap();
            let (x, w) = (Mat::new(&x, n, inner), Mat::new(&want, outer, inner));
            matmul(x, w.t(), MatMut::new(&mut exact, n, outer), Precision::F32, true);
            assert_eq!(got, exact, "{dtype:?}");
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_found_in_the_blocks_they_are_in() {
        let mut x = 1u32;
        let mut random = move || {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x
        };
        let mut seen = [0, 0];
        for dtype in DTYPES {
            for _ in 0..200 {
                // Any bytes: a sixteenth of the f32 scales, a thirty-second of the f16 ones, are not finite.
                let bytes: Vec<u8> = (0..dtype.type_size() * 8).map(|_| random() as u8).collect();
                let n = dtype.block_size() * 8;
                let values = Quantised::new(&bytes, dtype, [1, n], |i| i).unwrap().values().unwrap();
                let want = values.iter().position(|x| !x.is_finite());
                let found = Quantised::first_not_finite(&bytes, dtype);
                // A scale of a block shows in its values, but for those that are 0 times it.
                assert_eq!(found.is_some(), want.is_some(), "{dtype:?}");
                assert!(found.map(|at| at / dtype.block_size()) == want.map(|at| at / dtype.block_size()), "{dtype:?}");
                seen[found.is_some() as usize] += 1;
            }
        }
        assert!(seen[0] > 300 && seen[1] > 300, "{seen:?}");
    }

    #[test]
    fn rows_can_be_taken_in_another_order_and_slabs_do_not_show() {
        // More than a slab of rows.
        let (outer, inner) = (5000, 512);
        let (q, want) = quantised(GgmlDType::Q8_0, outer, inner);
        let mut got = vec![0.0; outer];
        q.project(&noise(inner), &mut got, Precision::F32, false).unwrap();
        let exact = |row: &[f32]| row.iter().zip(noise(inner)).map(|(w, x)| (w * x) as f64).sum::<f64>();
        for (got, row) in got.iter().zip(want.chunks(inner)) {
            assert!((*got as f64 - exact(row)).abs() < 1e-3);
        }
        let values = Tensor::from_vec(noise(64 * 32), (64, 32), &Device::Cpu).unwrap();
        let bytes = QTensor::quantize(&values, GgmlDType::F32).unwrap();
        let reversed = Quantised::new(&bytes.data().unwrap(), GgmlDType::F32, [64, 32], |i| 63 - i).unwrap();
        assert_eq!(reversed.rows(&[0]).unwrap(), noise(64 * 32)[63 * 32..]);
    }

    #[test]
    fn bytes_that_are_no_such_matrix_are_refused() {
        for (bytes, shape) in [(35, [1, 32]), (34, [1, 31]), (0, [0, 32]), (34, [2, 32])] {
            assert!(Quantised::new(&vec![0; bytes], GgmlDType::Q8_0, shape, |i| i).is_err());
        }
    }
}
