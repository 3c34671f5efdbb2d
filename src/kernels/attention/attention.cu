// Causal grouped-query attention over rows laid end to end; attention.rs is the contract and the CPU's path.
//
// A warp holds several queries (or keys, for their gradients) in registers, its lanes sharing the head's dimensions. The
// other side passes through shared memory a tile at a time: a lane computes the scores of one key with all of its warp's
// queries, so each number read from shared memory is used as often as the warp has queries.
//
// Tables from the host, four ints each:
//   tiles      first query row, number of queries, row of the span's first key, keys that the tile's first query sees
//   spans      first query row, queries, first key row, keys
//   key_tiles  row of the first key of the row's spans, the tile's first key from there, number of keys, its first span;
//              key_tile_ends has the end of its spans
// Keys are counted from the span's first. Query i of a span sees keys [max(0, e - window), e) with
// e = i + 1 + keys - queries, for window 0 all before e.
#include "common.cuh"

#define WARPS 4u
#define PER_WARP 4u
#define TILE (WARPS * PER_WARP)  // queries or keys of a block; TILE in attention/cuda.rs
#define OTHERS 32u               // keys or queries that pass through shared memory at once: one per lane
// PARTS: numbers of a row that a lane holds, for heads of up to 32 * PARTS dimensions.

// Rows [from, from + count) of one head into shared memory, each d + 1 apart: lanes that read a column meet no bank twice.
__device__ inline void load_rows(float *to, const float *x, size_t from, unsigned count, size_t width, unsigned head_at,
                                 unsigned d) {
    for (unsigned i = threadIdx.x; i < count * d; i += blockDim.x)
        to[(i / d) * (d + 1) + i % d] = x[(from + i / d) * width + head_at + i % d];
}

// Dynamic shared memory: (TILE * d + 2 * OTHERS * (d + 1)) floats.
template <int PARTS> __device__ inline void forward(const float *q, const float *k, const float *v, float *out, float *lse, const int *tiles, unsigned heads, unsigned kv_heads, unsigned d, unsigned window, float scale) {
    extern __shared__ float shared[];
    float *queries = shared, *keys = queries + TILE * d, *values = keys + OTHERS * (d + 1);
    const int *tile = tiles + 4 * blockIdx.x;
    unsigned q0 = tile[0], count = tile[1], k0 = tile[2], first_end = tile[3], head = blockIdx.y;
    unsigned kv = head / (heads / kv_heads), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    size_t q_width = (size_t)heads * d, kv_width = (size_t)kv_heads * d;
    for (unsigned i = threadIdx.x; i < count * d; i += blockDim.x)
        queries[i] = q[(q0 + i / d) * q_width + head * d + i % d] * scale;

    float largest[PER_WARP], total[PER_WARP], mixed[PER_WARP][PARTS];
    for (unsigned i = 0; i < PER_WARP; i++) {
        largest[i] = -INFINITY;
        total[i] = 0.0f;
        for (int part = 0; part < PARTS; part++) mixed[i][part] = 0.0f;
    }
    unsigned end = first_end + count - 1;
    unsigned begin = window && first_end > window ? first_end - window : 0;
    for (unsigned from = begin; from < end; from += OTHERS) {
        unsigned there = min(OTHERS, end - from);
        __syncthreads();
        load_rows(keys, k, k0 + from, there, kv_width, kv * d, d);
        load_rows(values, v, k0 + from, there, kv_width, kv * d, d);
        __syncthreads();
        float score[PER_WARP];
        for (unsigned i = 0; i < PER_WARP; i++) score[i] = 0.0f;
        if (lane < there)
            for (unsigned j = 0; j < d; j++) {
                float key = keys[lane * (d + 1) + j];
                for (unsigned i = 0; i < PER_WARP; i++) score[i] += queries[(warp * PER_WARP + i) * d + j] * key;
            }
        for (unsigned i = 0; i < PER_WARP; i++) {
            unsigned query = warp * PER_WARP + i, e = first_end + query, at = from + lane;
            bool seen = query < count && lane < there && at < e && !(window && at + window < e);
            float s = seen ? score[i] : -INFINITY;
            float larger = fmaxf(largest[i], warp_max(s));
            if (larger == -INFINITY) continue;  // the whole warp: nothing seen yet
            float p = expf(s - larger), shrink = expf(largest[i] - larger);
            largest[i] = larger;
            total[i] = total[i] * shrink + warp_sum(p);
            for (int part = 0; part < PARTS; part++) mixed[i][part] *= shrink;
            for (unsigned key = 0; key < there; key++) {
                float weight = __shfl_sync(0xffffffffu, p, key);
                for (int part = 0; part < PARTS; part++)
                    if (part * 32 + lane < d) mixed[i][part] += weight * values[key * (d + 1) + part * 32 + lane];
            }
        }
    }
    for (unsigned i = 0; i < PER_WARP; i++) {
        unsigned query = warp * PER_WARP + i;
        if (query >= count) break;
        for (int part = 0; part < PARTS; part++)
            if (part * 32 + lane < d) out[(q0 + query) * q_width + head * d + part * 32 + lane] = mixed[i][part] / total[i];
        if (lane == 0) lse[(size_t)(q0 + query) * heads + head] = largest[i] + logf(total[i]);
    }
}

// delta[row, head] = sum of out * dout: what softmax's backward pass subtracts. A warp for each.
extern "C" __global__ void attention_delta(const float *out, const float *dout, float *delta, unsigned rows, unsigned heads,
                                           unsigned d) {
    size_t at = (size_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    unsigned lane = threadIdx.x % 32;
    if (at >= (size_t)rows * heads) return;  // a whole warp
    float sum = 0.0f;
    for (unsigned j = lane; j < d; j += 32) sum += out[at * d + j] * dout[at * d + j];
    sum = warp_sum(sum);
    if (lane == 0) delta[at] = sum;
}

// The gradient of queries. Dynamic shared memory: (2 * TILE * d + 2 * OTHERS * (d + 1)) floats.
template <int PARTS> __device__ inline void backward_queries(const float *q, const float *k, const float *v, const float *dout, const float *lse, const float *delta, float *dq, const int *tiles, unsigned heads, unsigned kv_heads, unsigned d, unsigned window, float scale) {
    extern __shared__ float shared[];
    float *queries = shared, *douts = queries + TILE * d, *keys = douts + TILE * d, *values = keys + OTHERS * (d + 1);
    const int *tile = tiles + 4 * blockIdx.x;
    unsigned q0 = tile[0], count = tile[1], k0 = tile[2], first_end = tile[3], head = blockIdx.y;
    unsigned kv = head / (heads / kv_heads), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    size_t q_width = (size_t)heads * d, kv_width = (size_t)kv_heads * d;
    for (unsigned i = threadIdx.x; i < count * d; i += blockDim.x) {
        size_t at = (q0 + i / d) * q_width + head * d + i % d;
        queries[i] = q[at] * scale;
        douts[i] = dout[at];
    }
    float gradient[PER_WARP][PARTS];
    for (unsigned i = 0; i < PER_WARP; i++)
        for (int part = 0; part < PARTS; part++) gradient[i][part] = 0.0f;
    unsigned end = first_end + count - 1;
    unsigned begin = window && first_end > window ? first_end - window : 0;
    for (unsigned from = begin; from < end; from += OTHERS) {
        unsigned there = min(OTHERS, end - from);
        __syncthreads();
        load_rows(keys, k, k0 + from, there, kv_width, kv * d, d);
        load_rows(values, v, k0 + from, there, kv_width, kv * d, d);
        __syncthreads();
        float score[PER_WARP], dp[PER_WARP];
        for (unsigned i = 0; i < PER_WARP; i++) score[i] = dp[i] = 0.0f;
        if (lane < there)
            for (unsigned j = 0; j < d; j++) {
                float key = keys[lane * (d + 1) + j], value = values[lane * (d + 1) + j];
                for (unsigned i = 0; i < PER_WARP; i++) {
                    score[i] += queries[(warp * PER_WARP + i) * d + j] * key;
                    dp[i] += douts[(warp * PER_WARP + i) * d + j] * value;
                }
            }
        for (unsigned i = 0; i < PER_WARP; i++) {
            unsigned query = warp * PER_WARP + i, e = first_end + query, at = from + lane;
            bool seen = query < count && lane < there && at < e && !(window && at + window < e);
            float ds = 0.0f;
            if (seen) {
                size_t row = (size_t)(q0 + query) * heads + head;
                ds = expf(score[i] - lse[row]) * (dp[i] - delta[row]) * scale;
            }
            for (unsigned key = 0; key < there; key++) {
                float weight = __shfl_sync(0xffffffffu, ds, key);
                for (int part = 0; part < PARTS; part++)
                    if (part * 32 + lane < d) gradient[i][part] += weight * keys[key * (d + 1) + part * 32 + lane];
            }
        }
    }
    for (unsigned i = 0; i < PER_WARP; i++) {
        unsigned query = warp * PER_WARP + i;
        if (query >= count) break;
        for (int part = 0; part < PARTS; part++)
            if (part * 32 + lane < d) dq[(q0 + query) * q_width + head * d + part * 32 + lane] = gradient[i][part];
    }
}

// The gradients of keys and values: every query of the row that sees them, head after head of the group, in a fixed order.
// Dynamic shared memory as above.
template <int PARTS> __device__ inline void backward_keys(const float *q, const float *k, const float *v, const float *dout, const float *lse, const float *delta, float *dk, float *dv, const int *key_tiles, const int *key_tile_ends, const int *spans, unsigned heads, unsigned kv_heads, unsigned d, unsigned window, float scale) {
    extern __shared__ float shared[];
    float *keys = shared, *values = keys + TILE * d, *queries = values + TILE * d, *douts = queries + OTHERS * (d + 1);
    const int *tile = key_tiles + 4 * blockIdx.x;
    unsigned k0 = tile[0], first = tile[1], count = tile[2], kv = blockIdx.y, group = heads / kv_heads;
    unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    size_t q_width = (size_t)heads * d, kv_width = (size_t)kv_heads * d;
    for (unsigned i = threadIdx.x; i < count * d; i += blockDim.x) {
        size_t at = (k0 + first + i / d) * kv_width + kv * d + i % d;
        keys[i] = k[at] * scale;
        values[i] = v[at];
    }
    float of_key[PER_WARP][PARTS], of_value[PER_WARP][PARTS];
    for (unsigned i = 0; i < PER_WARP; i++)
        for (int part = 0; part < PARTS; part++) of_key[i][part] = of_value[i][part] = 0.0f;
    for (int s = tile[3]; s < key_tile_ends[blockIdx.x]; s++) {
        const int *span = spans + 4 * s;
        unsigned q0 = span[0], q_count = span[1], before = span[3] - q_count;  // keys that precede the first query's own
        // Queries below see none of the tile's keys; with a window, queries from `until` on see none either.
        unsigned begin = first > before ? first - before : 0;
        unsigned until = window && first + count + window - 1 < before + q_count ? first + count + window - 1 - before : q_count;
        if (window && first + count + window - 1 <= before) continue;  // the whole block
        for (unsigned head = kv * group; head < (kv + 1) * group; head++)
            for (unsigned from = begin; from < until; from += OTHERS) {
                unsigned there = min(OTHERS, until - from);
                __syncthreads();
                load_rows(queries, q, q0 + from, there, q_width, head * d, d);
                load_rows(douts, dout, q0 + from, there, q_width, head * d, d);
                __syncthreads();
                float score[PER_WARP], dp[PER_WARP];
                for (unsigned i = 0; i < PER_WARP; i++) score[i] = dp[i] = 0.0f;
                if (lane < there)
                    for (unsigned j = 0; j < d; j++) {
                        float query = queries[lane * (d + 1) + j], grad = douts[lane * (d + 1) + j];
                        for (unsigned i = 0; i < PER_WARP; i++) {
                            score[i] += keys[(warp * PER_WARP + i) * d + j] * query;
                            dp[i] += values[(warp * PER_WARP + i) * d + j] * grad;
                        }
                    }
                size_t row = lane < there ? (size_t)(q0 + from + lane) * heads + head : 0;
                unsigned e = from + lane + 1 + before;
                for (unsigned i = 0; i < PER_WARP; i++) {
                    unsigned key = warp * PER_WARP + i, at = first + key;
                    bool seen = key < count && lane < there && at < e && !(window && at + window < e);
                    float p = seen ? expf(score[i] - lse[row]) : 0.0f;
                    float ds = seen ? p * (dp[i] - delta[row]) * scale : 0.0f;
                    for (unsigned query = 0; query < there; query++) {
                        float weight = __shfl_sync(0xffffffffu, p, query), slope = __shfl_sync(0xffffffffu, ds, query);
                        for (int part = 0; part < PARTS; part++)
                            if (part * 32 + lane < d) {
                                of_value[i][part] += weight * douts[query * (d + 1) + part * 32 + lane];
                                of_key[i][part] += slope * queries[query * (d + 1) + part * 32 + lane];
                            }
                    }
                }
            }
    }
    for (unsigned i = 0; i < PER_WARP; i++) {
        unsigned key = warp * PER_WARP + i;
        if (key >= count) break;
        for (int part = 0; part < PARTS; part++)
            if (part * 32 + lane < d) {
                size_t at = (k0 + first + key) * kv_width + kv * d + part * 32 + lane;
                dk[at] = of_key[i][part];
                dv[at] = of_value[i][part];
            }
    }
}

extern "C" __global__ void attention_forward_64(const float *q, const float *k, const float *v, float *out, float *lse, const int *tiles, unsigned heads, unsigned kv_heads, unsigned d, unsigned window, float scale) {
    forward<2>(q, k, v, out, lse, tiles, heads, kv_heads, d, window, scale);
}
extern "C" __global__ void attention_forward_128(const float *q, const float *k, const float *v, float *out, float *lse, const int *tiles, unsigned heads, unsigned kv_heads, unsigned d, unsigned window, float scale) {
    forward<4>(q, k, v, out, lse, tiles, heads, kv_heads, d, window, scale);
}
extern "C" __global__ void attention_forward_256(const float *q, const float *k, const float *v, float *out, float *lse, const int *tiles, unsigned heads, unsigned kv_heads, unsigned d, unsigned window, float scale) {
    forward<8>(q, k, v, out, lse, tiles, heads, kv_heads, d, window, scale);
}

extern "C" __global__ void attention_backward_queries_64(const float *q, const float *k, const float *v, const float *dout, const float *lse, const float *delta, float *dq, const int *tiles, unsigned heads, unsigned kv_heads, unsigned d, unsigned window, float scale) {
    backward_queries<2>(q, k, v, dout, lse, delta, dq, tiles, heads, kv_heads, d, window, scale);
}
extern "C" __global__ void attention_backward_queries_128(const float *q, const float *k, const float *v, const float *dout, const float *lse, const float *delta, float *dq, const int *tiles, unsigned heads, unsigned kv_heads, unsigned d, unsigned window, float scale) {
    backward_queries<4>(q, k, v, dout, lse, delta, dq, tiles, heads, kv_heads, d, window, scale);
}
extern "C" __global__ void attention_backward_queries_256(const float *q, const float *k, const float *v, const float *dout, const float *lse, const float *delta, float *dq, const int *tiles, unsigned heads, unsigned kv_heads, unsigned d, unsigned window, float scale) {
    backward_queries<8>(q, k, v, dout, lse, delta, dq, tiles, heads, kv_heads, d, window, scale);
}

extern "C" __global__ void attention_backward_keys_64(const float *q, const float *k, const float *v, const float *dout, const float *lse, const float *delta, float *dk, float *dv, const int *key_tiles, const int *key_tile_ends, const int *spans, unsigned heads, unsigned kv_heads, unsigned d, unsigned window, float scale) {
    backward_keys<2>(q, k, v, dout, lse, delta, dk, dv, key_tiles, key_tile_ends, spans, heads, kv_heads, d, window, scale);
}
extern "C" __global__ void attention_backward_keys_128(const float *q, const float *k, const float *v, const float *dout, const float *lse, const float *delta, float *dk, float *dv, const int *key_tiles, const int *key_tile_ends, const int *spans, unsigned heads, unsigned kv_heads, unsigned d, unsigned window, float scale) {
    backward_keys<4>(q, k, v, dout, lse, delta, dk, dv, key_tiles, key_tile_ends, spans, heads, kv_heads, d, window, scale);
}
extern "C" __global__ void attention_backward_keys_256(const float *q, const float *k, const float *v, const float *dout, const float *lse, const float *delta, float *dk, float *dv, const int *key_tiles, const int *key_tile_ends, const int *spans, unsigned heads, unsigned kv_heads, unsigned d, unsigned window, float scale) {
    backward_keys<8>(q, k, v, dout, lse, delta, dk, dv, key_tiles, key_tile_ends, spans, heads, kv_heads, d, window, scale);
}
