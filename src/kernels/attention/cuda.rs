//! Attention on a GPU: the host cuts spans into tiles of queries and of keys, a thread block takes a tile of a head.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::{AttentionShape, Span, Spans, extent};
use crate::kernels::cuda::{Arg, Grid, Module, empty, module, upload};

const MODULE: Module = module!("attention");

/// TILE and THREADS of attention.cu.
const TILE: usize = 64;
const THREADS: u32 = 256;

/// Spans as the kernels read them: see attention.cu.
#[derive(Debug)]
pub(super) struct Tables {
    tiles: Tensor,
    key_tiles: Tensor,
    key_tile_ends: Tensor,
    spans: Tensor,
}

impl Tables {
    /// None on the CPU.
    pub fn new(spans: &[Span], device: &Device) -> Result<Option<Self>> {
        if !device.is_cuda() {
            return Ok(None);
        }
        let mut tiles = vec![];
        for span in spans {
            for first in (0..span.q.len()).step_by(TILE) {
                let count = TILE.min(span.q.len() - first);
                tiles.push([span.q.start + first, count, span.k.start, first + 1 + span.k.len() - span.q.len()]);
            }
        }
        // Those with the most keys first, or they would be waited for.
        tiles.sort_by_key(|&[_, _, _, end]| std::cmp::Reverse(end));
        let (mut key_tiles, mut ends, mut before) = (vec![], vec![], 0);
        for row in spans.chunk_by(|a, b| a.k.start == b.k.start) {
            let keys = extent(row).1;
            for first in (0..keys.len()).step_by(TILE) {
                key_tiles.push([keys.start, first, TILE.min(keys.len() - first), before]);
                ends.push((before + row.len()) as u32);
            }
            before += row.len();
        }
        let spans = spans.iter().map(|s| [s.q.start, s.q.len(), s.k.start, s.k.len()]);
        let table = |rows: Vec<[usize; 4]>| upload(rows.iter().flatten().map(|&n| n as u32).collect(), device);
        Ok(Some(Self {
            tiles: table(tiles)?,
            key_tiles: table(key_tiles)?,
            key_tile_ends: upload(ends, device)?,
            spans: table(spans.collect())?,
        }))
    }
}

fn tables(spans: &Spans) -> Result<&Tables> {
    spans.tables.as_ref().ok_or_else(|| candle_core::Error::msg("spans of the CPU were given to a GPU"))
}

impl AttentionShape {
    /// The kernel for heads of this size, over `tiles` of `heads` heads.
    fn launch(&self, kernel: &str, tiles: usize, heads: usize, args: &[&[Arg]]) -> Result<()> {
        if self.cap.is_some() {
            bail!("the GPU's attention has no soft cap");
        }
        let d = self.head_dim;
        let largest = match [64, 128, 256].into_iter().find(|&largest| d <= largest) {
            Some(largest) if d.is_multiple_of(2) => largest,
            _ => bail!("heads of {d} dimensions; the GPU's attention takes even numbers up to 256"),
        };
        let args = [&args.concat()[..], &self.arguments()].concat();
        MODULE.launch(&format!("{kernel}_{largest}"), Grid::new(tiles, heads, THREADS), &args)
    }

    /// heads, kv_heads, head_dim, window and scale, as every kernel's last arguments.
    fn arguments(&self) -> [Arg<'static>; 5] {
        let window = self.window.unwrap_or(0);
        [self.heads.into(), self.kv_heads.into(), self.head_dim.into(), window.into(), self.scale.into()]
    }

    pub(super) fn forward_on_gpu(&self, spans: &Spans, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let tables = tables(spans)?;
        let (out, lse) = (empty(q.shape(), q.device())?, empty((q.dim(0)?, self.heads), q.device())?);
        let tensors: [Arg; 6] = [q.into(), k.into(), v.into(), (&out).into(), (&lse).into(), (&tables.tiles).into()];
        self.launch("attention_forward", tables.tiles.elem_count() / 4, self.heads, &[&tensors])?;
        Ok((out, lse))
    }

    pub(super) fn backward_on_gpu(
        &self,
        spans: &Spans,
        [q, k, v]: [&Tensor; 3],
        (out, lse): (&Tensor, &Tensor),
        dout: &Tensor,
    ) -> Result<[Tensor; 3]> {
        let (tables, rows) = (tables(spans)?, q.dim(0)?);
        let (delta, dq) = (empty((rows, self.heads), q.device())?, empty(q.shape(), q.device())?);
        // Keys that no query sees are no tile's.
        let zeros = |like: &Tensor| Tensor::zeros(like.shape(), DType::F32, like.device());
        let (dk, dv) = (zeros(k)?, zeros(v)?);
        let args = [out.into(), dout.into(), (&delta).into(), rows.into(), self.heads.into(), self.head_dim.into()];
        MODULE.launch(
            "attention_delta",
            Grid::new((rows * self.heads).div_ceil(THREADS as usize / 32), 1, THREADS),
            &args,
        )?;
        let common: [Arg; 6] = [q.into(), k.into(), v.into(), dout.into(), lse.into(), (&delta).into()];
        let own = [Arg::from(&dq), (&tables.tiles).into()];
        let tiles = tables.tiles.elem_count() / 4;
        self.launch("attention_backward_queries", tiles, self.heads, &[&common, &own])?;
        let own: [Arg; 5] = [
            (&dk).into(),
            (&dv).into(),
            (&tables.key_tiles).into(),
            (&tables.key_tile_ends).into(),
            (&tables.spans).into(),
        ];
        let tiles = tables.key_tile_ends.elem_count();
        self.launch("attention_backward_keys", tiles, self.kv_heads, &[&common, &own])?;
        Ok([dq, dk, dv])
    }
}
