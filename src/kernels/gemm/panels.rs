//! The right-hand operand of a product, laid out so that the micro-kernel reads it front to back.

use rayon::prelude::*;

use super::super::math::vectorize;
use super::Mat;
use super::precision::{Precision, copy_bits, pair_columns, pair_up, unpair};

/// Outputs of a panel.
pub(super) const PANEL: usize = 32;

/// Units of one index of a panel: 32 bits for each output, an f32 or a pair of bf16.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Unit(pub [u32; PANEL]);

/// A matrix `[outer, inner]` that rows of `inner` elements are multiplied with: panel by panel of [`PANEL`] outputs, and
/// in a panel unit by unit of the inner index (one f32, or two bf16). Padded with zeros.
#[derive(Debug, Clone, Default)]
pub struct Panels {
    pub(super) precision: Precision,
    pub(super) outer: usize,
    pub(super) inner: usize,
    /// `[panels, units]`
    pub(super) data: Vec<Unit>,
}

impl Panels {
    /// Packs `matrix`, `[outer, inner]`; bf16 rounds to nearest even.
    pub fn new(matrix: Mat, precision: Precision) -> Self {
        let mut panels = Self::default();
        panels.pack(matrix, precision);
        panels
    }

    /// [`Self::new`] into the memory this one holds.
    pub(super) fn pack(&mut self, matrix: Mat, precision: Precision) {
        (self.precision, self.outer, self.inner) = (precision, matrix.rows, matrix.cols);
        let units = self.units();
        self.data.resize(self.outer.div_ceil(PANEL) * units, Unit([0; PANEL]));
        self.data.par_chunks_mut(units.max(1)).enumerate().for_each(|(p, panel)| {
            let outputs = p * PANEL..self.outer.min((p + 1) * PANEL);
            if outputs.len() < PANEL {
                panel.fill(Unit([0; PANEL]));
            }
            let from = matrix.select_rows(outputs);
            vectorize(
                #[inline(always)]
                || match (matrix.col_stride == 1, precision) {
                    (true, _) => pack_rows(panel, from, precision),
                    (false, Precision::F32) => {
                        panel.iter_mut().enumerate().for_each(|(u, unit)| copy_bits(&mut unit.0, from.column(u)))
                    }
                    (false, Precision::Bf16) => {
                        panel.iter_mut().enumerate().for_each(|(u, unit)| pair_columns(&mut unit.0, from, u))
                    }
                },
            );
        });
    }

    /// Units of the inner index.
    pub(super) fn units(&self) -> usize {
        self.inner.div_ceil(self.precision.group())
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }

    pub fn outer(&self) -> usize {
        self.outer
    }

    pub fn inner(&self) -> usize {
        self.inner
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> usize {
        size_of_val(self.data.as_slice())
    }

    /// Row `o` of the matrix, in f32.
    pub fn row(&self, o: usize, out: &mut [f32]) {
        let units = self.data[o / PANEL * self.units()..].iter().map(|unit| unit.0[o % PANEL]);
        match self.precision {
            Precision::F32 => out.iter_mut().zip(units).for_each(|(x, unit)| *x = f32::from_bits(unit)),
            Precision::Bf16 => {
                for (pair, unit) in out.chunks_mut(2).zip(units) {
                    pair.copy_from_slice(&unpair(unit)[..pair.len()]);
                }
            }
        }
    }

    /// Rows by index, end to end, in f32: an embedding's lookup.
    pub fn rows(&self, indices: &[u32]) -> Vec<f32> {
        let mut out = vec![0.0f32; indices.len() * self.inner];
        out.par_chunks_mut(self.inner).zip(indices).for_each(|(row, &i)| self.row(i as usize, row));
        out
    }
}

/// Turns contiguous rows into units, in blocks that stay in the first-level cache.
#[inline(always)]
fn pack_rows(panel: &mut [Unit], from: Mat, precision: Precision) {
    const BLOCK: usize = 128;
    let group = precision.group();
    for (b, units) in panel.chunks_mut(BLOCK).enumerate() {
        let columns = b * BLOCK * group..from.cols.min((b * BLOCK + units.len()) * group);
        for o in 0..from.rows {
            let mut row = [0u32; BLOCK];
            match precision {
                Precision::F32 => copy_bits(&mut row[..units.len()], &from.row(o)[columns.clone()]),
                Precision::Bf16 => pair_up(&mut row[..units.len()], &from.row(o)[columns.clone()]),
            }
            for (unit, x) in units.iter_mut().zip(row) {
                unit.0[o] = x;
            }
        }
    }
}
