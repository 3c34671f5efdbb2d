//! Causal grouped-query attention over rows laid end to end, blocked over queries so that memory is linear in tokens.
//!
//! The backward pass recomputes the probabilities from each query's log-sum-exp (Dao et al. 2022, arXiv 2205.14135,
//! algorithm 4), which the forward pass leaves in the op.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::gemm::{Mat, MatMut, matmul_serial};
use super::math;
use super::storage::{slice, with_f32};

/// Queries handled at once: the scratch of a task is `QUERY_BLOCK × keys`.
const QUERY_BLOCK: usize = 64;

/// One row: queries `q` attend to keys `k`. The last query stands at the last key; earlier keys may come from a cache.
#[derive(Debug, Clone)]
pub struct Span {
    pub q: Range<usize>,
    pub k: Range<usize>,
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
}

/// q `[Tq, heads · head_dim]`, k and v `[Tk, kv_heads · head_dim]` to `[Tq, heads · head_dim]`.
#[derive(Debug, Clone)]
pub struct Attention {
    shape: AttentionShape,
    spans: Arc<Vec<Span>>,
    /// log Σ exp of each query's scores: `[Tq, heads]`.
    lse: Arc<OnceLock<Vec<f32>>>,
}

impl Attention {
    /// The spans' queries must be consecutive and cover all of q.
    pub fn new(shape: AttentionShape, spans: Arc<Vec<Span>>) -> Self {
        Self { shape, spans, lse: Arc::default() }
    }

    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        q.apply_op3(k, v, self.clone())
    }
}

/// Queries `queries` of a span and the keys any of them sees, both counted from the span's starts.
struct Block {
    queries: Range<usize>,
    keys: Range<usize>,
}

impl AttentionShape {
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
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
    fn forward_block(
        &self,
        span: &Span,
        block: &Block,
        (q, k, v): (&[f32], &[f32], &[f32]),
        out: &mut [f32],
        lse: &mut [f32],
    ) {
        let (d, rows, keys) = (self.head_dim, block.queries.len(), block.keys.len());
        let (q_rows, k_rows) = (shift(&block.queries, span.q.start), shift(&block.keys, span.k.start));
        let mut scores = vec![0.0f32; rows * keys];
        for h in 0..self.heads {
            let kv = h / (self.heads / self.kv_heads);
            let (qh, kh, vh) = (
                head(q, q_rows.clone(), self.heads, d, h),
                head(k, k_rows.clone(), self.kv_heads, d, kv),
                head(v, k_rows.clone(), self.kv_heads, d, kv),
            );
            matmul_serial(qh, kh.t(), MatMut::new(&mut scores, rows, keys), self.scale(), false);
            math::vectorize(
                #[inline(always)]
                || {
                    for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
                        let seen = shift_back(self.visible(span, block.queries.start + i), block.keys.start);
                        row[..seen.start].fill(0.0);
                        row[seen.end..].fill(0.0);
                        let row = &mut row[seen];
                        let total = math::log_sum_exp(row, 1.0);
                        for x in row.iter_mut() {
                            *x = math::exp(*x - total);
                        }
                        lse[i * self.heads + h] = total;
                    }
                },
            );
            let out = MatMut::strided(&mut out[h * d..], rows, d, self.heads * d);
            matmul_serial(Mat::new(&scores, rows, keys), vh, out, 1.0, false);
        }
    }

    /// Gradients of one span for one key-value head: dq `[queries, group · head_dim]`, dk and dv `[keys, head_dim]`.
    fn backward_head(&self, span: &Span, kv: usize, saved: &Saved) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (d, group) = (self.head_dim, self.heads / self.kv_heads);
        let mut dq = vec![0.0f32; span.q.len() * group * d];
        let mut dk = vec![0.0f32; span.k.len() * d];
        let mut dv = vec![0.0f32; span.k.len() * d];
        for block in self.blocks(span) {
            let (rows, keys) = (block.queries.len(), block.keys.len());
            let (q_rows, k_rows) = (shift(&block.queries, span.q.start), shift(&block.keys, span.k.start));
            let kh = head(saved.k, k_rows.clone(), self.kv_heads, d, kv);
            let vh = head(saved.v, k_rows.clone(), self.kv_heads, d, kv);
            let mut p = vec![0.0f32; rows * keys];
            let mut ds = vec![0.0f32; rows * keys];
            for g in 0..group {
                let h = kv * group + g;
                let qh = head(saved.q, q_rows.clone(), self.heads, d, h);
                let doh = head(saved.dout, q_rows.clone(), self.heads, d, h);
                matmul_serial(qh, kh.t(), MatMut::new(&mut p, rows, keys), self.scale(), false);
                matmul_serial(doh, vh.t(), MatMut::new(&mut ds, rows, keys), 1.0, false);
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
                            for x in p[seen].iter_mut() {
                                *x = math::exp(*x - lse);
                            }
                            for (ds, p) in ds.iter_mut().zip(p.iter()) {
                                *ds = p * (*ds - delta) * self.scale();
                            }
                        }
                    },
                );
                let (p, ds) = (Mat::new(&p, rows, keys), Mat::new(&ds, rows, keys));
                let columns = block.keys.start * d;
                matmul_serial(p.t(), doh, MatMut::new(&mut dv[columns..], keys, d), 1.0, true);
                matmul_serial(ds.t(), qh, MatMut::new(&mut dk[columns..], keys, d), 1.0, true);
                let dq = &mut dq[block.queries.start * group * d + g * d..];
                matmul_serial(ds, kh, MatMut::strided(dq, rows, d, group * d), 1.0, false);
            }
        }
        (dq, dk, dv)
    }
}

fn shift_back(range: Range<usize>, by: usize) -> Range<usize> {
    range.start.saturating_sub(by)..range.end - by
}

/// What the backward pass reads; shapes as in [`Attention`].
struct Saved<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: &'a [f32],
    dout: &'a [f32],
    lse: &'a [f32],
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let qkv = (slice(s1, l1)?, slice(s2, l2)?, slice(s3, l3)?);
        let shape = &self.shape;
        let width = shape.heads * shape.head_dim;
        let mut out = vec![0.0f32; qkv.0.len()];
        let mut lse = vec![0.0f32; qkv.0.len() / shape.head_dim];
        let mut tasks = vec![];
        let (mut out_rest, mut lse_rest) = (out.as_mut_slice(), lse.as_mut_slice());
        for span in self.spans.iter() {
            for block in shape.blocks(span) {
                let (out, rest) = out_rest.split_at_mut(block.queries.len() * width);
                let (lse, lse_tail) = lse_rest.split_at_mut(block.queries.len() * shape.heads);
                (out_rest, lse_rest) = (rest, lse_tail);
                tasks.push((span, block, out, lse));
            }
        }
        tasks.into_par_iter().for_each(|(span, block, out, lse)| shape.forward_block(span, &block, qkv, out, lse));
        // Only the first forward of an op leaves its statistics: an op is made anew for each call.
        let _ = self.lse.set(lse);
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dout = dout.contiguous()?;
        let shape = &self.shape;
        let (d, group) = (shape.head_dim, shape.heads / shape.kv_heads);
        let lse = self.lse.get().map(Vec::as_slice).unwrap_or_default();
        let jobs: Vec<_> = self.spans.iter().flat_map(|s| (0..shape.kv_heads).map(move |kv| (s, kv))).collect();
        let results: Vec<_> = with_f32(q, |q| {
            with_f32(k, |k| {
                with_f32(v, |v| {
                    with_f32(out, |out| {
                        with_f32(&dout, |dout| {
                            let saved = Saved { q, k, v, out, dout, lse };
                            jobs.par_iter().map(|(span, kv)| shape.backward_head(span, *kv, &saved)).collect()
                        })
                    })
                })
            })
        })?????;
        let mut grads = [q, k, v].map(|x| vec![0.0f32; x.elem_count()]);
        for ((span, kv), (dq, dk, dv)) in jobs.iter().zip(&results) {
            let columns = |heads, at| (heads * d, at);
            scatter(&mut grads[0], &span.q, columns(shape.heads, kv * group * d), group * d, dq);
            scatter(&mut grads[1], &span.k, columns(shape.kv_heads, kv * d), d, dk);
            scatter(&mut grads[2], &span.k, columns(shape.kv_heads, kv * d), d, dv);
        }
        let [dq, dk, dv] = grads;
        let tensor = |data, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device());
        Ok((Some(tensor(dq, q)?), Some(tensor(dk, k)?), Some(tensor(dv, v)?)))
    }
}

/// Copies `block` (rows of `len`) into columns `at..at + len` of the rows `rows` of `to`, which are `width` wide.
fn scatter(to: &mut [f32], rows: &Range<usize>, (width, at): (usize, usize), len: usize, block: &[f32]) {
    for (i, part) in block.chunks_exact(len).enumerate() {
        let start = (rows.start + i) * width + at;
        to[start..start + len].copy_from_slice(part);
    }
}
