// Causal grouped-query attention over rows laid end to end, as in kernels/attention.rs.
//
// Blocks are 16 × 16 threads (in one dimension) on tiles of TILE queries and TILE keys. They sum two kinds of products
// in registers: `dots`, a tile of scores, and `mix`, rows of width d weighted by such a tile. Operands pass through
// shared memory in chunks, so that its size (35 KiB, static) does not depend on d. Thread (ty, tx) holds rows 4 ty + i
// of a tile; of scores columns tx + 16 j, of rows columns 4 tx + 64 j and the three after. Kernels' names end in D, the
// width that their registers are for: take the least of 64, 128 and 256 that is no less than d, which is even. q, k, v,
// out and their gradients are read and written fastest where d is a multiple of 4 and they start at a multiple of 16
// bytes.

#include <cfloat>

#include "common.cuh"

// Queries of a query tile and keys of a key tile, at most.
#define TILE 64
#define THREADS 256
// Columns that `dots` and rows that `mix` stages at once.
#define DOT_CHUNK 32
#define MIX_CHUNK 16

// Queries q0 .. q0 + count; query j sees keys before end + j, counted from row k0 of k and v.
struct QueryTile {
    int q0, count, k0, end;
};

// Keys k0 + first .. k0 + first + count of a row that starts at k0, and the first of the spans that may look at them.
struct KeyTile {
    int k0, first, count, spans_begin;
};

// Queries q0 .. q0 + q_len; query i sees keys before i + 1 + k_len - q_len, counted from row k0.
struct Span {
    int q0, q_len, k0, k_len;
};

struct Heads {
    int heads, kv_heads, d, window;

    __device__ Heads(unsigned heads, unsigned kv_heads, unsigned d, unsigned window)
        : heads(heads), kv_heads(kv_heads), d(d), window(window == 0 || window > 1u << 30 ? 1 << 30 : window) {}

    __device__ bool visible(int key, int end) const { return key < end && key >= end - window; }
};

// Some of one head's rows, d wide, `stride` apart: zero where there is none.
struct Rows {
    const float* x;
    size_t stride;
    int count, d;

    __device__ Rows(const float* x, int first, int count, int heads, int head, int d)
        : x(x + ((size_t)first * heads + head) * d), stride((size_t)heads * d), count(count), d(d) {}

    __device__ float4 load(int row, int column) const {
        const int left = d - column;
        if (row >= count || left <= 0) return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const float* from = x + row * stride + column;
        if (left >= 4 && (size_t)from % 16 == 0) return *(const float4*)from;
        return make_float4(from[0], from[1], left > 2 ? from[2] : 0.0f, left > 2 ? from[3] : 0.0f);
    }
};

__device__ inline void store(float* row, int column, int d, float4 x) {
    const int left = d - column;
    if (left <= 0) return;
    float* to = row + column;
    if (left >= 4 && (size_t)to % 16 == 0) {
        *(float4*)to = x;
        return;
    }
    to[0] = x.x;
    to[1] = x.y;
    if (left > 2) {
        to[2] = x.z;
        to[3] = x.w;
    }
}

// One float4 beyond what a row needs keeps the lanes of a load in different banks.
struct Shared {
    static constexpr int STAGED_ROW = DOT_CHUNK / 4 + 1, WEIGHTS_ROW = TILE / 4 + 1;
    float4 staged[2 * TILE * STAGED_ROW];
    // [column of the scores][row of the scores]: as `mix` reads them.
    float4 weights[TILE * WEIGHTS_ROW];
};

__device__ inline int tx() { return threadIdx.x % 16; }
__device__ inline int ty() { return threadIdx.x / 16; }

// scores[i][j] = a's row 4 ty + i · b's row tx + 16 j.
__device__ inline void dots(const Rows& a, const Rows& b, Shared& shared, float (&scores)[4][4]) {
    const int row = threadIdx.x / 8, column = threadIdx.x % 8;
    float4* at = shared.staged + row * Shared::STAGED_ROW + column;
    float4 next[4];
    auto fetch = [&](int chunk) {
#pragma unroll
        for (int n = 0; n < 2; n++) {
            next[n] = a.load(row + 32 * n, chunk + 4 * column);
            next[2 + n] = b.load(row + 32 * n, chunk + 4 * column);
        }
    };
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) scores[i][j] = 0.0f;
    fetch(0);
    for (int chunk = 0; chunk < a.d; chunk += DOT_CHUNK) {
        __syncthreads();
#pragma unroll
        for (int n = 0; n < 4; n++) at[32 * n * Shared::STAGED_ROW] = next[n];
        __syncthreads();
        fetch(chunk + DOT_CHUNK);
        const float4* from_a = shared.staged + 4 * ty() * Shared::STAGED_ROW;
        const float4* from_b = shared.staged + (TILE + tx()) * Shared::STAGED_ROW;
#pragma unroll
        for (int c = 0; c < DOT_CHUNK / 4; c++) {
            float4 x[4], y[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                x[i] = from_a[i * Shared::STAGED_ROW + c];
                y[i] = from_b[16 * i * Shared::STAGED_ROW + c];
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    scores[i][j] = fmaf(x[i].x, y[j].x, scores[i][j]);
                    scores[i][j] = fmaf(x[i].y, y[j].y, scores[i][j]);
                    scores[i][j] = fmaf(x[i].z, y[j].z, scores[i][j]);
                    scores[i][j] = fmaf(x[i].w, y[j].w, scores[i][j]);
                }
        }
    }
}

// Hands scores to `mix`. Between two calls the block has to pass a barrier; `dots` has some.
__device__ inline void set_weights(Shared& shared, const float (&scores)[4][4]) {
#pragma unroll
    for (int j = 0; j < 4; j++)
        shared.weights[(tx() + 16 * j) * Shared::WEIGHTS_ROW + ty()] =
            make_float4(scores[0][j], scores[1][j], scores[2][j], scores[3][j]);
}

// A thread's part of TILE rows up to D wide.
template <int D>
struct Sums {
    static constexpr int COLUMNS = D / 64;
    float4 x[4][COLUMNS];

    __device__ Sums() {
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) x[i][j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }

    __device__ void scale(int i, float by) {
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
            x[i][j] = make_float4(x[i][j].x * by, x[i][j].y * by, x[i][j].z * by, x[i][j].w * by);
    }

    // Adds the rows, row k weighted by the scores' column k.
    __device__ void mix(const Rows& rows, Shared& shared) {
        float4 next[COLUMNS];
        auto fetch = [&](int chunk) {
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) next[j] = rows.load(chunk + ty(), 4 * tx() + 64 * j);
        };
        fetch(0);
        for (int chunk = 0; chunk < rows.count; chunk += MIX_CHUNK) {
            __syncthreads();
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) shared.staged[ty() * (D / 4) + tx() + 16 * j] = next[j];
            __syncthreads();
            fetch(chunk + MIX_CHUNK);
#pragma unroll
            for (int k = 0; k < MIX_CHUNK; k++) {
                const float4 w = shared.weights[(chunk + k) * Shared::WEIGHTS_ROW + ty()];
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) {
                    const float4 row = shared.staged[k * (D / 4) + tx() + 16 * j];
                    add(x[0][j], w.x, row);
                    add(x[1][j], w.y, row);
                    add(x[2][j], w.z, row);
                    add(x[3][j], w.w, row);
                }
            }
        }
    }

    __device__ static void add(float4& sum, float weight, const float4& row) {
        sum.x = fmaf(weight, row.x, sum.x);
        sum.y = fmaf(weight, row.y, sum.y);
        sum.z = fmaf(weight, row.z, sum.z);
        sum.w = fmaf(weight, row.w, sum.w);
    }

    // Writes row 4 ty + i of the tile that starts at row `first`.
    __device__ void write(int i, float* to, int first, int heads, int head, int d) const {
        float* row = to + ((size_t)(first + 4 * ty() + i) * heads + head) * d;
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) store(row, 4 * tx() + 64 * j, d, x[i][j]);
    }
};

// Over the 16 threads that hold a row of scores.
__device__ inline float row_max(float x) {
    for (int offset = 8; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, offset));
    return x;
}

__device__ inline float row_sum(float x) {
    for (int offset = 8; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffff, x, offset);
    return x;
}

template <int D>
__device__ void forward(const float* q, const float* k, const float* v, float* out, float* lse, QueryTile tile,
                        const Heads& shape, float scale) {
    __shared__ Shared shared;
    const int head = blockIdx.y, kv = head / (shape.heads / shape.kv_heads), d = shape.d;
    const Rows queries(q, tile.q0, tile.count, shape.heads, head, d);
    const int keys_end = tile.end + tile.count - 1;
    Sums<D> sums;
    // Finite, so that a query that has seen no key yet has no ∞ − ∞.
    float largest[4] = {-FLT_MAX, -FLT_MAX, -FLT_MAX, -FLT_MAX}, divisor[4] = {};
    for (int first = max(0, tile.end - shape.window); first < keys_end; first += TILE) {
        const int count = min(TILE, keys_end - first);
        float scores[4][4];
        dots(queries, Rows(k, tile.k0 + first, count, shape.kv_heads, kv, d), shared, scores);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float most = largest[i];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const bool visible = shape.visible(first + tx() + 16 * j, tile.end + 4 * ty() + i);
                scores[i][j] = visible ? scores[i][j] * scale : -INFINITY;
                most = fmaxf(most, scores[i][j]);
            }
            most = row_max(most);
            const float shrink = expf(largest[i] - most);
            largest[i] = most;
            divisor[i] *= shrink; // of this thread's columns
            sums.scale(i, shrink);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                scores[i][j] = expf(scores[i][j] - most);
                divisor[i] += scores[i][j];
            }
        }
        set_weights(shared, scores);
        sums.mix(Rows(v, tile.k0 + first, count, shape.kv_heads, kv, d), shared);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = 4 * ty() + i;
        const float sum = row_sum(divisor[i]);
        if (row >= tile.count) continue;
        sums.scale(i, 1.0f / sum);
        sums.write(i, out, tile.q0, shape.heads, head, d);
        if (tx() == 0) lse[(size_t)(tile.q0 + row) * shape.heads + head] = largest[i] + logf(sum);
    }
}

template <int D>
__device__ void backward_queries(const float* q, const float* k, const float* v, const float* dout, const float* lse,
                                 const float* delta, float* dq, QueryTile tile, const Heads& shape, float scale) {
    __shared__ Shared shared;
    const int head = blockIdx.y, kv = head / (shape.heads / shape.kv_heads), d = shape.d;
    const Rows queries(q, tile.q0, tile.count, shape.heads, head, d);
    const Rows d_outs(dout, tile.q0, tile.count, shape.heads, head, d);
    const int keys_end = tile.end + tile.count - 1;
    float row_lse[4] = {}, row_delta[4] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (4 * ty() + i >= tile.count) continue;
        const size_t at = (size_t)(tile.q0 + 4 * ty() + i) * shape.heads + head;
        row_lse[i] = lse[at];
        row_delta[i] = delta[at];
    }
    Sums<D> sums;
    for (int first = max(0, tile.end - shape.window); first < keys_end; first += TILE) {
        const int count = min(TILE, keys_end - first);
        const Rows keys(k, tile.k0 + first, count, shape.kv_heads, kv, d);
        float scores[4][4], d_p[4][4];
        dots(queries, keys, shared, scores);
        dots(d_outs, Rows(v, tile.k0 + first, count, shape.kv_heads, kv, d), shared, d_p);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const bool visible = shape.visible(first + tx() + 16 * j, tile.end + 4 * ty() + i);
                const float p = visible ? expf(scores[i][j] * scale - row_lse[i]) : 0.0f;
                scores[i][j] = p * (d_p[i][j] - row_delta[i]) * scale;
            }
        set_weights(shared, scores);
        sums.mix(keys, shared);
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (4 * ty() + i < tile.count) sums.write(i, dq, tile.q0, shape.heads, head, d);
}

// Scores stand transposed here: rows are keys, columns queries.
template <int D>
__device__ void backward_keys(const float* q, const float* k, const float* v, const float* dout, const float* lse,
                              const float* delta, float* dk, float* dv, KeyTile tile, const Span* spans, int spans_end,
                              const Heads& shape, float scale) {
    __shared__ Shared shared;
    const int kv = blockIdx.y, group = shape.heads / shape.kv_heads, d = shape.d;
    const Rows keys(k, tile.k0 + tile.first, tile.count, shape.kv_heads, kv, d);
    const Rows values(v, tile.k0 + tile.first, tile.count, shape.kv_heads, kv, d);
    Sums<D> key_sums, value_sums;
    for (int head = kv * group; head < (kv + 1) * group; head++)
        for (int s = tile.spans_begin; s < spans_end; s++) {
            const Span span = spans[s];
            const int before = span.k_len - span.q_len;
            // Beyond the last query whose window still reaches the tile's last key.
            const int queries_end = min(span.q_len, tile.first + tile.count - 1 + shape.window - before);
            for (int first = max(0, tile.first - before); first < queries_end; first += TILE) {
                const int count = min(TILE, queries_end - first);
                const Rows queries(q, span.q0 + first, count, shape.heads, head, d);
                const Rows d_outs(dout, span.q0 + first, count, shape.heads, head, d);
                float scores[4][4], d_p[4][4];
                dots(keys, queries, shared, scores);
                dots(values, d_outs, shared, d_p);
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int query = first + tx() + 16 * j;
                    const bool there = query < queries_end; // others' rows are 0, and add nothing
                    const size_t at = (size_t)(span.q0 + query) * shape.heads + head;
                    const float query_lse = there ? lse[at] : 0.0f, query_delta = there ? delta[at] : 0.0f;
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const bool visible = shape.visible(tile.first + 4 * ty() + i, query + 1 + before);
                        scores[i][j] = visible ? expf(scores[i][j] * scale - query_lse) : 0.0f;
                        d_p[i][j] = scores[i][j] * (d_p[i][j] - query_delta) * scale;
                    }
                }
                set_weights(shared, scores);
                value_sums.mix(d_outs, shared);
                __syncthreads();
                set_weights(shared, d_p);
                key_sums.mix(queries, shared);
            }
        }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (4 * ty() + i >= tile.count) continue;
        key_sums.write(i, dk, tile.k0 + tile.first, shape.kv_heads, kv, d);
        value_sums.write(i, dv, tile.k0 + tile.first, shape.kv_heads, kv, d);
    }
}

// delta [rows, heads] = Σ out · dout over d. A warp each: grid ⌈rows · heads · 32 / blockDim⌉.
extern "C" __global__ void attention_delta(const float* out, const float* dout, float* delta, unsigned rows,
                                           unsigned heads, unsigned d) {
    const size_t n = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (n >= (size_t)rows * heads) return;
    float sum = 0.0f;
    for (unsigned i = threadIdx.x % 32; i < d; i += 32) sum = fmaf(out[n * d + i], dout[n * d + i], sum);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[n] = sum;
}

// Two blocks per multiprocessor hide each other's barriers; 256 columns need the registers of both.
#define KERNEL(D) extern "C" __global__ void __launch_bounds__(THREADS, D > 128 ? 1 : 2)

// attention_forward: grid (tiles, heads); writes out [Tq, heads · d] and lse [Tq, heads], each query's log Σ exp.
// attention_backward_queries: grid (tiles, heads); writes dq.
// attention_backward_keys: grid (key tiles, kv_heads); writes dk and dv, 0 where no query looks. Tile n is seen by
// spans key_tiles[n].spans_begin .. key_tile_ends[n], which all start at its k0.
// All: THREADS threads, no dynamic shared memory; window 0 for none.
#define KERNELS(D)                                                                                                     \
    KERNEL(D) attention_forward_##D(const float* q, const float* k, const float* v, float* out, float* lse,            \
                                    const QueryTile* tiles, unsigned heads, unsigned kv_heads, unsigned d,             \
                                    unsigned window, float scale) {                                                    \
        forward<D>(q, k, v, out, lse, tiles[blockIdx.x], Heads(heads, kv_heads, d, window), scale);                    \
    }                                                                                                                  \
    KERNEL(D) attention_backward_queries_##D(const float* q, const float* k, const float* v, const float* dout,        \
                                             const float* lse, const float* delta, float* dq, const QueryTile* tiles,  \
                                             unsigned heads, unsigned kv_heads, unsigned d, unsigned window,           \
                                             float scale) {                                                            \
        backward_queries<D>(q, k, v, dout, lse, delta, dq, tiles[blockIdx.x], Heads(heads, kv_heads, d, window),       \
                            scale);                                                                                    \
    }                                                                                                                  \
    KERNEL(D) attention_backward_keys_##D(const float* q, const float* k, const float* v, const float* dout,           \
                                          const float* lse, const float* delta, float* dk, float* dv,                  \
                                          const KeyTile* key_tiles, const int* key_tile_ends, const Span* spans,       \
                                          unsigned heads, unsigned kv_heads, unsigned d, unsigned window,              \
                                          float scale) {                                                               \
        backward_keys<D>(q, k, v, dout, lse, delta, dk, dv, key_tiles[blockIdx.x], spans, key_tile_ends[blockIdx.x],   \
                         Heads(heads, kv_heads, d, window), scale);                                                    \
    }

KERNELS(64)
KERNELS(128)
KERNELS(256)
