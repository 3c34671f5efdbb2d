//! The right-hand operand of a product, laid out so that the micro-kernel reads it front to back.

use rayon::prelude::*;

use super::super::Simd;
use super::super::math::vectorize;
use super::Mat;
use super::precision::{Precision, copy_bits, pair_columns, pair_up, unpair};

/// Outputs of a panel.
pub(super) const PANEL: usize = 32;
/// Rows and units of the blocks that are turned at once.
pub(super) const SIDE: usize = 16;

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

    /// [`Self::new`] on the calling thread.
    pub(super) fn new_serial(matrix: Mat, precision: Precision) -> Self {
        let mut panels = Self::default();
        panels.resize(matrix, precision);
        let units = panels.units().max(1);
        panels.data.chunks_mut(units).enumerate().for_each(|(p, panel)| pack_panel(panel, p, matrix, precision));
        panels
    }

    /// [`Self::new`] into the memory this one holds.
    pub(super) fn pack(&mut self, matrix: Mat, precision: Precision) {
        self.resize(matrix, precision);
        let units = self.units().max(1);
        self.data.par_chunks_mut(units).enumerate().for_each(|(p, panel)| pack_panel(panel, p, matrix, precision));
    }

    fn resize(&mut self, matrix: Mat, precision: Precision) {
        (self.precision, self.outer, self.inner) = (precision, matrix.rows, matrix.cols);
        self.data.resize(self.panels() * self.units(), Unit([0; PANEL]));
    }

    pub(super) fn panels(&self) -> usize {
        self.outer.div_ceil(PANEL)
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

/// Fills panel `p` of `matrix`.
fn pack_panel(panel: &mut [Unit], p: usize, matrix: Mat, precision: Precision) {
    let from = matrix.select_rows(p * PANEL..matrix.rows.min((p + 1) * PANEL));
    if from.rows < PANEL {
        panel.fill(Unit([0; PANEL]));
    }
    vectorize(
        #[inline(always)]
        || match (matrix.col_stride == 1, precision) {
            (true, _) => pack_rows(panel, from, precision),
            (false, Precision::F32) => {
                for (u, unit) in panel.iter_mut().enumerate() {
                    copy_bits(&mut unit.0, from.column(u));
                }
            }
            (false, Precision::Bf16) => {
                for (u, unit) in panel.iter_mut().enumerate() {
                    pair_columns(&mut unit.0, from, u);
                }
            }
        },
    );
}

/// Turns contiguous rows into units, 16 rows by 16 units at a time.
#[inline(always)]
fn pack_rows(panel: &mut [Unit], from: Mat, precision: Precision) {
    let group = precision.group();
    for half in (0..from.rows).step_by(SIDE) {
        let rows = SIDE.min(from.rows - half);
        for (b, units) in panel.chunks_mut(SIDE).enumerate() {
            let columns = b * SIDE * group..from.cols.min((b * SIDE + units.len()) * group);
            let mut block = [[0u32; SIDE]; SIDE];
            for (o, to) in block[..rows].iter_mut().enumerate() {
                let row = &from.row(half + o)[columns.clone()];
                match precision {
                    Precision::F32 => copy_bits(to, row),
                    Precision::Bf16 => pair_up(&mut to[..units.len()], row),
                }
            }
            turn(&block, units, half);
        }
    }
}

/// Writes a block's rows into outputs `at..at + 16` of the units.
#[inline(always)]
fn turn(block: &[[u32; SIDE]; SIDE], units: &mut [Unit], at: usize) {
    #[cfg(target_arch = "x86_64")]
    if let (true, Ok(units)) = (Simd::level() >= Simd::Avx512, <&mut [Unit; SIDE]>::try_from(&mut *units)) {
        // SAFETY: the CPU has AVX-512F.
        return unsafe { super::avx512::transpose(block, units, at) };
    }
    for (o, row) in block.iter().enumerate() {
        for (unit, x) in units.iter_mut().zip(row) {
            unit.0[at + o] = *x;
        }
    }
}
