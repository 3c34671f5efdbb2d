//! Causal grouped-query attention over rows laid end to end, blocked over queries so that memory is linear in tokens.
//!
//! The backward pass recomputes the probabilities from each query's log-sum-exp (Dao et al. 2022, arXiv 2205.14135,
//! algorithm 4), which the forward pass returns.

#[cfg(feature = "cuda")]
mod cuda;

use std::ops::Range;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::gemm::{Mat, MatMut, Right};
use super::math;
use super::soft_cap::SoftCap;
use super::storage::{tensor, with_all};

/// Queries handled at once: the scratch of a task is `QUERY_BLOCK × keys`.
pub const QUERY_BLOCK: usize = 64;

/// Queries `q`, next to each other in one row, attend to keys `k`: the row's from its start to the last query's own. Keys
/// without a query may come from a cache, or stand where nothing is asked.
#[derive(Debug, Clone)]
pub struct Span {
    pub q: Range<usize>,
    pub k: Range<usize>,
}

/// The spans of one forward pass: consecutive queries, keys that may overlap.
#[derive(Debug)]
pub struct Spans {
    spans: Vec<Span>,
    /// The same for a GPU's kernels.
    #[cfg(feature = "cuda")]
    tables: Option<cuda::Tables>,
}

impl Spans {
    /// For tensors on `device`.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn new(spans: Vec<Span>, device: &Device) -> Result<Self> {
        Ok(Self {
            #[cfg(feature = "cuda")]
            tables: cuda::Tables::new(&spans, device)?,
            spans,
        })
    }
}

/// Heads and masks of one attention layer.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape {
    pub heads: usize,
    /// Divides `heads`; each key-value head serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// A query sees itself and the `window − 1` tokens before it; None: all before it.
    pub window: Option<usize>,
    /// What scores q · k are multiplied by.
    pub scale: f32,
    /// Bounds the scaled scores (Gemma 2). Without a kernel on GPUs.
    pub cap: Option<SoftCap>,
}

/// Queries `queries` of a span and the keys any of them sees, both counted from the span's starts.
struct Block {
    queries: Range<usize>,
    keys: Range<usize>,
}

impl AttentionShape {
    /// Scores are divided by √head_dim, and not capped.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> Self {
        Self { heads, kv_heads, head_dim, window, scale: 1.0 / (head_dim as f32).sqrt(), cap: None }
    }

    /// The keys that query `i` of the span sees, counted from the span's first key.
    #[inline(always)]
    fn visible(&self, span: &Span, i: usize) -> Range<usize> {
        let end = i + 1 + span.k.len() - span.q.len();
        self.window.map_or(0, |w| end.saturating_sub(w))..end
    }

    fn blocks<'a>(&'a self, span: &'a Span) -> impl Iterator<Item = Block> + 'a {
        (0..span.q.len()).step_by(QUERY_BLOCK).map(|start| {
            let queries = start..(start + QUERY_BLOCK).min(span.q.len());
            let keys = self.visible(span, queries.start).start..self.visible(span, queries.end - 1).end;
            Block { queries, keys }
        })
    }
}

/// A head's column block in rows of `heads` heads, from row `rows.start` on.
fn head(x: &[f32], rows: Range<usize>, heads: usize, head_dim: usize, h: usize) -> Mat<'_> {
    let width = heads * head_dim;
    Mat::strided(&x[rows.start * width + h * head_dim..], rows.len(), head_dim, width)
}

fn shift(range: &Range<usize>, by: usize) -> Range<usize> {
    range.start + by..range.end + by
}

impl AttentionShape {
    /// Writes the output rows of one query block (`[queries, heads · head_dim]`) and their log-sum-exps (`[queries, heads]`).
    fn forward_block(&self, span: &Span, block: &Block, [q, k, v]: [&[f32]; 3], out: &mut [f32], lse: &mut [f32]) {
        let (d, rows, keys) = (self.head_dim, block.queries.len(), block.keys.len());
        let (q_rows, k_rows) = (shift(&block.queries, span.q.start), shift(&block.keys, span.k.start));
        let group = self.heads / self.kv_heads;
        let mut scores = vec![0.0f32; rows * keys];
        for kv in 0..self.kv_heads {
            let of_keys = |x| head(x, k_rows.clone(), self.kv_heads, d, kv);
            let (k, v) = (Right::new(of_keys(k).t()), Right::new(of_keys(v)));
            for h in kv * group..(kv + 1) * group {
                let qh = head(q, q_rows.clone(), self.heads, d, h);
                k.multiply(qh, MatMut::new(&mut scores, rows, keys), false);
                // Softmax but for its divisor: the mixed values are divided in its place, they are fewer.
                let mut divisors = [0.0f32; QUERY_BLOCK];
                math::vectorize(
                    #[inline(always)]
                    || {
                        for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
                            let seen = shift_back(self.visible(span, block.queries.start + i), block.keys.start);
                            row[..seen.start].fill(0.0);
                            row[seen.end..].fill(0.0);
                            let (largest, sum) = match self.cap {
                                None => math::exp_in_place(&mut row[seen], self.scale),
                                Some(cap) => {
                                    cap.apply(&mut row[seen.clone()], self.scale);
                                    math::exp_in_place(&mut row[seen], 1.0)
                                }
                            };
                            divisors[i] = sum as f32;
                            lse[i * self.heads + h] = (largest as f64 + sum.ln()) as f32;
                        }
                    },
                );
                let mixed = MatMut::strided(&mut out[h * d..], rows, d, self.heads * d);
                v.multiply(Mat::new(&scores, rows, keys), mixed, false);
                for (row, divisor) in out.chunks_mut(self.heads * d).zip(divisors) {
                    row[h * d..(h + 1) * d].iter_mut().for_each(|x| *x /= divisor);
                }
            }
        }
    }

    /// Gradients of spans that share their first key, for one key-value head: dq `[queries, group · head_dim]`, dk and dv
    /// `[keys, head_dim]`, keys those of the last span.
    fn backward_head(&self, spans: &[Span], kv: usize, saved: &Saved) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (d, group) = (self.head_dim, self.heads / self.kv_heads);
        let (queries, keys) = extent(spans);
        let mut dq = vec![0.0f32; queries.len() * group * d];
        let mut dk = vec![0.0f32; keys.len() * d];
        let mut dv = vec![0.0f32; keys.len() * d];
        for (span, block) in spans.iter().flat_map(|span| self.blocks(span).map(move |block| (span, block))) {
            let (rows, keys) = (block.queries.len(), block.keys.len());
            let (q_rows, k_rows) = (shift(&block.queries, span.q.start), shift(&block.keys, span.k.start));
            let kh = head(saved.k, k_rows.clone(), self.kv_heads, d, kv);
            let vh = head(saved.v, k_rows.clone(), self.kv_heads, d, kv);
            let (keys_by_d, k, v) = (Right::new(kh), Right::new(kh.t()), Right::new(vh.t()));
            let mut p = vec![0.0f32; rows * keys];
            let mut ds = vec![0.0f32; rows * keys];
            for g in 0..group {
                let h = kv * group + g;
                let qh = head(saved.q, q_rows.clone(), self.heads, d, h);
                let doh = head(saved.dout, q_rows.clone(), self.heads, d, h);
                k.multiply(qh, MatMut::new(&mut p, rows, keys), false);
                v.multiply(doh, MatMut::new(&mut ds, rows, keys), false);
                math::vectorize(
                    #[inline(always)]
                    || {
                        for i in 0..rows {
                            let seen = shift_back(self.visible(span, block.queries.start + i), block.keys.start);
                            let row = q_rows.start + i;
                            let at = (row * self.heads + h) * d;
                            let (o, dout) = (&saved.out[at..at + d], &saved.dout[at..at + d]);
                            let delta = math::sum_of([o, dout], |[o, dout]| o * dout) as f32;
                            let lse = saved.lse[row * self.heads + h];
                            let (p, ds) = (&mut p[i * keys..][..keys], &mut ds[i * keys..][..keys]);
                            p[..seen.start].fill(0.0);
                            p[seen.end..].fill(0.0);
                            if let Some(cap) = self.cap {
                                // The cap's slope goes into ∂p first, of which ∂score is a multiple.
                                let (p, ds) = (&mut p[seen.clone()], &mut ds[seen.clone()]);
                                cap.apply(p, self.scale);
                                for (ds, p) in ds.iter_mut().zip(p.iter_mut()) {
                                    *ds = delta + (*ds - delta) * cap.slope(*p);
                                    *p = math::exp(*p - lse);
                                }
                            } else {
                                for x in p[seen].iter_mut() {
                                    *x = math::exp(*x * self.scale - lse);
                                }
                            }
                            for (ds, p) in ds.iter_mut().zip(p.iter()) {
                                *ds = p * (*ds - delta) * self.scale;
                            }
                        }
                    },
                );
                let (p, ds) = (Mat::new(&p, rows, keys), Mat::new(&ds, rows, keys));
                let columns = block.keys.start * d;
                Right::new(doh).multiply(p.t(), MatMut::new(&mut dv[columns..], keys, d), true);
                Right::new(qh).multiply(ds.t(), MatMut::new(&mut dk[columns..], keys, d), true);
                let dq = &mut dq[(q_rows.start - queries.start) * group * d + g * d..];
                keys_by_d.multiply(ds, MatMut::strided(dq, rows, d, group * d), false);
            }
        }
        (dq, dk, dv)
    }
}

/// All queries of spans that share their first key, and all keys.
fn extent(spans: &[Span]) -> (Range<usize>, Range<usize>) {
    let (first, last) = (&spans[0], &spans[spans.len() - 1]);
    (first.q.start..last.q.end, first.k.start..last.k.end)
}

fn shift_back(range: Range<usize>, by: usize) -> Range<usize> {
    range.start.saturating_sub(by)..range.end - by
}

/// What the backward pass reads; shapes as in [`AttentionShape::forward`].
struct Saved<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: &'a [f32],
    dout: &'a [f32],
    lse: &'a [f32],
}

impl AttentionShape {
    /// q `[Tq, heads · head_dim]`, k and v `[Tk, kv_heads · head_dim]` to the mixed values `[Tq, heads · head_dim]` and
    /// each query's log Σ exp, `[Tq, heads]`. The spans' queries are consecutive and cover all of q; their keys may
    /// overlap.
    pub fn forward(&self, spans: &Spans, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        on_gpu!(q => self.forward_on_gpu(spans, q, k, v));
        let width = self.heads * self.head_dim;
        let mut out = vec![0.0f32; q.elem_count()];
        let mut lse = vec![0.0f32; q.elem_count() / self.head_dim];
        let mut tasks = vec![];
        let (mut out_rest, mut lse_rest) = (out.as_mut_slice(), lse.as_mut_slice());
        for span in &spans.spans {
            for block in self.blocks(span) {
                let (out, rest) = out_rest.split_at_mut(block.queries.len() * width);
                let (lse, lse_tail) = lse_rest.split_at_mut(block.queries.len() * self.heads);
                (out_rest, lse_rest) = (rest, lse_tail);
                tasks.push((span, block, out, lse));
            }
        }
        // Last blocks see the most keys: they go first, or they would be waited for.
        tasks.reverse();
        with_all([q, k, v], |qkv| {
            let run = |(span, block, out, lse)| self.forward_block(span, &block, qkv, out, lse);
            tasks.into_par_iter().with_max_len(1).for_each(run)
        })?;
        let queries = q.dim(0)?;
        Ok((tensor(out, q.shape())?, tensor(lse, (queries, self.heads))?))
    }

    /// ∂q, ∂k and ∂v from what [`Self::forward`] took and gave.
    pub fn backward(
        &self,
        spans: &Spans,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        (out, lse): (&Tensor, &Tensor),
        dout: &Tensor,
    ) -> Result<[Tensor; 3]> {
        on_gpu!(q => self.backward_on_gpu(spans, [q, k, v], (out, lse), dout));
        let (d, group) = (self.head_dim, self.heads / self.kv_heads);
        // Spans of one row share the gradients of its keys.
        let rows = spans.spans.chunk_by(|a, b| a.k.start == b.k.start);
        let jobs: Vec<_> = rows.flat_map(|row| (0..self.kv_heads).map(move |kv| (row, kv))).collect();
        let results: Vec<_> = with_all([q, k, v, out, dout, lse], |[q, k, v, out, dout, lse]| {
            let saved = Saved { q, k, v, out, dout, lse };
            jobs.par_iter().with_max_len(1).map(|(row, kv)| self.backward_head(row, *kv, &saved)).collect()
        })?;
        let mut grads = [q, k, v].map(|x| vec![0.0f32; x.elem_count()]);
        for ((row, kv), (dq, dk, dv)) in jobs.iter().zip(&results) {
            let (queries, keys) = extent(row);
            let columns = |heads, at| (heads * d, at);
            scatter(&mut grads[0], &queries, columns(self.heads, kv * group * d), group * d, dq);
            scatter(&mut grads[1], &keys, columns(self.kv_heads, kv * d), d, dk);
            scatter(&mut grads[2], &keys, columns(self.kv_heads, kv * d), d, dv);
        }
        let [dq, dk, dv] = grads;
        Ok([tensor(dq, q.shape())?, tensor(dk, k.shape())?, tensor(dv, v.shape())?])
    }
}

/// Adds `block` (rows of `len`) to columns `at..at + len` of the rows `rows` of `to`, which are `width` wide.
fn scatter(to: &mut [f32], rows: &Range<usize>, (width, at): (usize, usize), len: usize, block: &[f32]) {
    for (i, part) in block.chunks_exact(len).enumerate() {
        let start = (rows.start + i) * width + at;
        to[start..start + len].iter_mut().zip(part).for_each(|(to, x)| *to += x);
    }
}
