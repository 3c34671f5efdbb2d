//! The blocked product on our own micro-kernel.
//!
//! Loop order of a task: blocks of the inner index, groups of panels, tiles of rows, panels.

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use super::avx512::{Place, ROWS, Rows, tile};
use super::multiply::block_units;
use super::panels::{PANEL, Panels};
use super::precision::{Precision, copy_bits, pair_columns, pair_up};
use super::{Mat, MatMut};
use crate::kernels::math::vectorize;

/// Units of all panels that a tile of rows goes through before the next (384 KiB): they stay in the second-level cache.
const GROUP: usize = 3072;
/// Tiles of rows per task at most.
const TILES: usize = 20;

/// Where tasks write disjoint blocks: rows `stride` elements apart.
struct Output {
    data: *mut f32,
    stride: usize,
    accumulate: bool,
    /// Units of the inner index that are summed at once.
    block: usize,
}
// SAFETY: tasks write disjoint elements, and the slice behind the pointer outlives them.
unsafe impl Sync for Output {}

thread_local!(static SCRATCH: Cell<Vec<u32>> = Cell::default());

pub fn multiply(weight: &Panels, x: Mat, y: MatMut, block: usize, accumulate: bool) {
    let work = Split::new(x.rows.div_ceil(ROWS), weight.panels());
    let out = Output { data: y.data.as_mut_ptr(), stride: y.row_stride, accumulate, block };
    (0..work.row_blocks * work.shares).into_par_iter().for_each(|task| {
        // SAFETY: tasks differ in their rows or in their panels, and y has room for all of both.
        unsafe { part(weight, x, &out, work.rows(task, x.rows), work.panels(task, weight.panels())) }
    });
}

pub fn multiply_serial(weight: &Panels, x: Mat, y: MatMut, accumulate: bool) {
    let out =
        Output { data: y.data.as_mut_ptr(), stride: y.row_stride, accumulate, block: block_units(weight.units()) };
    // SAFETY: y has room for every row and panel.
    unsafe { part(weight, x, &out, 0..x.rows, 0..weight.panels()) }
}

/// Some rows of `x` with some panels.
///
/// # Safety
/// The CPU multiplies in the weight's precision. `out` has room for these rows and the panels' columns, and nobody else
/// uses them meanwhile.
unsafe fn part(weight: &Panels, x: Mat, out: &Output, rows: Range<usize>, panels: Range<usize>) {
    let mut scratch = SCRATCH.take();
    let units = weight.units();
    let grouped = (GROUP / out.block).max(1);
    for k in (0..units).step_by(out.block) {
        let block = k..units.min(k + out.block);
        let left = left_rows(x.select_rows(rows.clone()), weight.precision, block.clone(), &mut scratch);
        for first in panels.clone().step_by(grouped) {
            let group = first..panels.end.min(first + grouped);
            for (row, p) in (0..rows.len()).step_by(ROWS).flat_map(|r| group.clone().map(move |p| (r, p))) {
                let panel = &weight.data[p * units..(p + 1) * units][block.clone()];
                // SAFETY: `left` holds the block's rows; the rest is the caller's contract.
                unsafe {
                    let place = Place {
                        data: out.data.add((rows.start + row) * out.stride + p * PANEL),
                        stride: out.stride,
                        columns: PANEL.min(weight.outer - p * PANEL),
                        accumulate: out.accumulate || k > 0,
                    };
                    let left = Rows { data: left.data.add(row * left.row_stride), ..left };
                    tile(weight.precision, ROWS.min(rows.len() - row), left, panel, place);
                }
            }
        }
    }
    SCRATCH.set(scratch);
}

/// How the tiles of rows and the panels are shared out.
struct Split {
    tiles: usize,
    row_blocks: usize,
    shares: usize,
}

impl Split {
    /// Row blocks first, as many as there are threads; shares of the panels only when rows are few.
    fn new(tiles: usize, panels: usize) -> Self {
        let threads = rayon::current_num_threads();
        let row_blocks = tiles.div_ceil(TILES).next_multiple_of(threads).min(tiles).max(1);
        let shares = if row_blocks < threads { (4 * threads).div_ceil(row_blocks).min(panels.max(1)) } else { 1 };
        Self { tiles, row_blocks, shares }
    }

    fn rows(&self, task: usize, rows: usize) -> Range<usize> {
        let block = task % self.row_blocks;
        let bound = |block: usize| (self.tiles * block / self.row_blocks * ROWS).min(rows);
        bound(block)..bound(block + 1)
    }

    fn panels(&self, task: usize, panels: usize) -> Range<usize> {
        let share = task / self.row_blocks;
        panels * share / self.shares..panels * (share + 1) / self.shares
    }
}

/// Units `block` of all rows of `x` as the kernel reads them, in `scratch`: also f32 is copied, because rows that lie a
/// multiple of 4 KiB apart would fall into the same few lines of the cache.
fn left_rows(x: Mat, precision: Precision, block: Range<usize>, scratch: &mut Vec<u32>) -> Rows {
    let group = precision.group();
    let x = x.select_cols(block.start * group..x.cols.min(block.end * group));
    let units = block.len();
    scratch.resize(x.rows * units, 0);
    let rows_contiguous = x.col_stride == 1;
    vectorize(
        #[inline(always)]
        || {
            if rows_contiguous {
                for (r, to) in scratch.chunks_exact_mut(units).enumerate() {
                    match precision {
                        Precision::F32 => copy_bits(to, x.row(r)),
                        Precision::Bf16 => pair_up(to, x.row(r)),
                    }
                }
            } else {
                for (u, to) in scratch.chunks_exact_mut(x.rows).enumerate() {
                    match precision {
                        Precision::F32 => copy_bits(to, x.column(u)),
                        Precision::Bf16 => pair_columns(to, x, u),
                    }
                }
            }
        },
    );
    match rows_contiguous {
        true => Rows { data: scratch.as_ptr(), row_stride: units, unit_stride: 1 },
        false => Rows { data: scratch.as_ptr(), row_stride: 1, unit_stride: x.rows },
    }
}
