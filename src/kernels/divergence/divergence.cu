// Divergences and cross-entropy of rows of logits, as in loss/: a block per target. Each row is read twice, once for
// log Σ exp and once for what follows from it, and the student's row becomes its gradient on the way. All but forward KL
// read it once more, for a sum over the row that the gradient takes, and reverse KL for the student's mass where p is.
//
// Blocks are 32 n threads, up to THREADS, on which results depend in their last bits; 512 let two rows share a
// multiprocessor. Rows are read fastest where they start at a multiple of 16 bytes.

#include <cfloat>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common.cuh"

// Tokens that a truncated teacher may know, at most.
#define MAX_TOP_K 2048
#define THREADS 512

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

__device__ inline void from_float(float x, float& to) { to = x; }
__device__ inline void from_float(float x, __nv_bfloat16& to) { to = __float2bfloat16(x); }
__device__ inline void from_float(float x, __half& to) { to = __float2half(x); }

// a − b as it is rounded, not fused with a product that a or b comes from: 0 where they are equal.
__device__ inline float difference(float a, float b) { return __fsub_rn(a, b); }

template <class T>
struct alignas(16) Vector {
    static constexpr int LENGTH = 16 / sizeof(T);
    T x[LENGTH];
};

__device__ inline bool aligned(const void* row) { return (size_t)row % 16 == 0; }

// How the block's threads walk along a row: each takes LENGTH elements a step, neighbours if ALIGNED (one load, then),
// every blockDim-th otherwise.
template <class T, bool ALIGNED>
struct Walk {
    static constexpr int LENGTH = Vector<T>::LENGTH;

    __device__ static unsigned step() { return blockDim.x * LENGTH; }

    __device__ static unsigned index(unsigned start, int n) {
        return start + (ALIGNED ? threadIdx.x * LENGTH + n : n * blockDim.x + threadIdx.x);
    }

    // −∞ beyond the row's end: the logit of a token that is not there.
    __device__ static void load(const T* row, unsigned start, unsigned length, float (&x)[LENGTH]) {
        const unsigned first = index(start, 0);
        if (ALIGNED && first + LENGTH <= length) {
            const Vector<T> vector = *(const Vector<T>*)(row + first);
#pragma unroll
            for (int n = 0; n < LENGTH; n++) x[n] = to_float(vector.x[n]);
            return;
        }
#pragma unroll
        for (int n = 0; n < LENGTH; n++) x[n] = index(start, n) < length ? to_float(row[index(start, n)]) : -INFINITY;
    }

    __device__ static void store(T* row, unsigned start, unsigned length, const float (&x)[LENGTH]) {
        const unsigned first = index(start, 0);
        if (ALIGNED && first + LENGTH <= length) {
            Vector<T> vector;
#pragma unroll
            for (int n = 0; n < LENGTH; n++) from_float(x[n], vector.x[n]);
            *(Vector<T>*)(row + first) = vector;
            return;
        }
#pragma unroll
        for (int n = 0; n < LENGTH; n++)
            if (index(start, n) < length) from_float(x[n], row[index(start, n)]);
    }
};

// log softmax(z / T). The largest logit is subtracted from a logit first, so that large ones lose nothing.
struct LogSoftmax {
    float largest, inverse_temperature, log_sum;

    __device__ float operator()(float z) const { return fmaf(z - largest, inverse_temperature, -log_sum); }
    __device__ float log_sum_exp() const { return fmaf(largest, inverse_temperature, log_sum); }
};

// At T and at 1.
struct LogSoftmaxes {
    LogSoftmax at_temperature, at_one;
};

// Σ exp((z − largest) / T) over the logits met so far; at T = 1 too, if that is another sum.
struct Exponentials {
    float inverse_temperature, largest, sum, sum_at_one;
    bool both;

    __device__ explicit Exponentials(float inverse_temperature, bool both = false)
        : inverse_temperature(inverse_temperature),
          largest(-FLT_MAX), // finite: where all logits are −∞ there is no ∞ − ∞
          sum(0.0f),
          sum_at_one(0.0f),
          both(both && inverse_temperature != 1.0f) {}

    template <int N>
    __device__ void add(const float (&z)[N]) {
        float most = largest;
#pragma unroll
        for (int n = 0; n < N; n++) most = fmaxf(most, z[n]);
        rescale(most);
#pragma unroll
        for (int n = 0; n < N; n++) {
            sum += expf((z[n] - largest) * inverse_temperature);
            if (both) sum_at_one += expf(z[n] - largest);
        }
    }

    __device__ void rescale(float to) {
        if (to == largest) return;
        sum *= expf((largest - to) * inverse_temperature);
        if (both) sum_at_one *= expf(largest - to);
        largest = to;
    }

    // Of what all threads have met.
    __device__ LogSoftmaxes over_block() {
        rescale(block_max(largest));
        const LogSoftmax at_temperature = {largest, inverse_temperature, logf(block_sum(sum))};
        if (!both) return {at_temperature, at_temperature};
        return {at_temperature, {largest, 1.0f, logf(block_sum(sum_at_one))}};
    }
};

template <class Walk, class T>
__device__ void add_row(Exponentials& sums, const T* row, unsigned length) {
    for (unsigned start = 0; start < length; start += Walk::step()) {
        float z[Walk::LENGTH];
        Walk::load(row, start, length, z);
        sums.add(z);
    }
}

// How hard labels pull: label_scale · (q − 1[label]) is added to the gradient.
struct Label {
    unsigned id;
    float logit, scale;

    template <class T>
    __device__ Label(unsigned id, const T* row, float scale) : id(id), logit(to_float(row[id])), scale(scale) {}

    __device__ float gradient(unsigned i, float q) const { return scale * (q - (i == id ? 1.0f : 0.0f)); }
};

// φ and e of a token, as in loss/terms.rs: a divergence is Σ φ, and its gradient by z / T is e − q Σ e.
struct Term {
    float value, e;
};

// p · x, 0 where p is, whatever x is.
__device__ inline float times(float p, float x) { return p > 0.0f ? p * x : 0.0f; }

struct ForwardKl {
    // Σ e = −Σ p is known.
    static constexpr bool SUMS_E = false;

    __device__ bool compares(float) const { return true; }

    __device__ Term operator()(float log_p, float log_q) const {
        const float p = expf(log_p);
        // 0 · log 0 = 0: log p may be −∞ here.
        return {p > 0.0f ? p * (log_p - log_q) : 0.0f, -p};
    }

    // Of a drawn token, over p.
    __device__ Term of_draw(float log_p, float log_q) const { return {difference(log_p, log_q), -1.0f}; }
};

enum Kind { REVERSE_KL, JSD, SKEW_KL, SKEW_REVERSE_KL, TOTAL_VARIATION };

// Any of the others. A branch that all threads take alike costs less than a kernel for each.
struct Terms {
    static constexpr bool SUMS_E = true;
    unsigned kind;
    // β of jsd, λ of the skewed ones.
    float weight;
    // Of jsd.
    float factor;

    // Whether a token counts. reverse_kl is over the tokens that p has, q renormalised there; exp of the CPU is 0 below −87.
    __device__ bool compares(float log_p) const { return kind != REVERSE_KL || log_p >= -87.0f; }

    __device__ Term operator()(float log_p, float log_q) const {
        const float p = expf(log_p), q = expf(log_q);
        if (kind == REVERSE_KL) {
            const float value = times(q, log_q - log_p);
            return {value, value + q};
        }
        if (kind == TOTAL_VARIATION) return {0.5f * fabsf(p - q), q > p ? 0.5f * q : q < p ? -0.5f * q : 0.0f};
        // log(p / m) and log(q / m) for m = w p + (1 − w) q, of which neither overflows.
        const float w = kind == SKEW_REVERSE_KL ? 1.0f - weight : weight;
        const float d = log_p - log_q;
        const float of_likelier = -log1pf((d > 0.0f ? 1.0f - w : w) * (expf(-fabsf(d)) - 1.0f));
        const float of_other = of_likelier - fabsf(d);
        const float of_p = d > 0.0f ? of_likelier : of_other, of_q = d > 0.0f ? of_other : of_likelier;
        if (isnan(d)) return {0.0f, 0.0f}; // p = q = 0
        if (kind == SKEW_KL) return {times(p, of_p), -(1.0f - weight) * p * expf(of_q)};
        const float of_student = times(q, of_q);
        if (kind == SKEW_REVERSE_KL) return {of_student, of_student + q * (1.0f - weight * expf(of_q))};
        const float e = factor * (1.0f - weight) * of_student;
        return {factor * weight * times(p, of_p) + e, e};
    }

    __device__ Term of_draw(float log_p, float log_q) const {
        const Term term = (*this)(log_p, log_q);
        const float p = expf(log_p);
        return {term.value / p, term.e / p};
    }
};

// Calls what(start, y, z) for each step of the block's walk along both rows.
template <class Walk, class T, class What>
__device__ void walk_both(const T* teacher, const T* student, unsigned vocab, unsigned shared, What what) {
    for (unsigned start = 0; start < vocab; start += Walk::step()) {
        float y[Walk::LENGTH], z[Walk::LENGTH];
        Walk::load(teacher, start, shared, y);
        Walk::load(student, start, vocab, z);
        what(start, y, z);
    }
}

template <class Walk, class Divergence, class T>
__device__ void divergence_row(const Divergence& divergence, const T* teacher, T* student, Label label, float* sums,
                               float* teacher_lse, unsigned vocab, unsigned shared, float inverse_temperature,
                               float divergence_scale) {
    Exponentials of_teacher(inverse_temperature), of_student(inverse_temperature, true);
    walk_both<Walk>(teacher, student, vocab, shared, [&](unsigned, auto& y, auto& z) {
        of_teacher.add(y);
        of_student.add(z);
    });
    const LogSoftmax log_p = of_teacher.over_block().at_temperature;
    const LogSoftmaxes log_q_of_all = of_student.over_block();
    LogSoftmax log_q = log_q_of_all.at_temperature;
    if (!divergence.compares(-INFINITY)) {
        Exponentials of_compared(inverse_temperature);
        walk_both<Walk>(teacher, student, vocab, shared, [&](unsigned, auto& y, auto& z) {
#pragma unroll
            for (int n = 0; n < Walk::LENGTH; n++)
                if (!divergence.compares(log_p(y[n]))) z[n] = -INFINITY;
            of_compared.add(z);
        });
        log_q = of_compared.over_block().at_temperature;
    }
    const auto log_q_where_compared = [&](float log_p_i, float z) {
        return divergence.compares(log_p_i) ? log_q(z) : -INFINITY;
    };
    float e_sum = -1.0f;
    if (Divergence::SUMS_E) {
        float e = 0.0f;
        walk_both<Walk>(teacher, student, vocab, shared, [&](unsigned, auto& y, auto& z) {
#pragma unroll
            for (int n = 0; n < Walk::LENGTH; n++)
                e += divergence(log_p(y[n]), log_q_where_compared(log_p(y[n]), z[n])).e;
        });
        e_sum = block_sum(e);
    }
    const float scale = divergence_scale * inverse_temperature;
    float sum = 0.0f;
    walk_both<Walk>(teacher, student, vocab, shared, [&](unsigned start, auto& y, auto& z) {
#pragma unroll
        for (int n = 0; n < Walk::LENGTH; n++) {
            const float log_p_i = log_p(y[n]), log_q_i = log_q_where_compared(log_p_i, z[n]);
            const Term term = divergence(log_p_i, log_q_i);
            sum += term.value;
            float gradient = scale * difference(term.e, expf(log_q_i) * e_sum);
            if (label.scale != 0.0f) gradient += label.gradient(Walk::index(start, n), expf(log_q_of_all.at_one(z[n])));
            z[n] = gradient;
        }
        Walk::store(student, start, vocab, z);
    });
    sum = block_sum(sum);
    if (threadIdx.x > 0) return;
    sums[0] = sum;
    sums[1] = -log_q_of_all.at_one(label.logit);
    *teacher_lse = log_p.log_sum_exp();
}

template <class Walk, class T>
__device__ void cross_entropy_row(T* student, Label label, float* sums, unsigned vocab) {
    Exponentials exponentials(1.0f);
    add_row<Walk>(exponentials, student, vocab);
    const LogSoftmax log_q = exponentials.over_block().at_one;
    for (unsigned start = 0; start < vocab; start += Walk::step()) {
        float z[Walk::LENGTH];
        Walk::load(student, start, vocab, z);
#pragma unroll
        for (int n = 0; n < Walk::LENGTH; n++) z[n] = label.gradient(Walk::index(start, n), expf(log_q(z[n])));
        Walk::store(student, start, vocab, z);
    }
    if (threadIdx.x > 0) return;
    sums[0] = 0.0f;
    sums[1] = -log_q(label.logit);
}

// What a stored signal says of a row: its `count` tokens' ids and log-probabilities.
struct Stored {
    const unsigned* ids;
    const float* log_probabilities;
    unsigned count;
};

// The teacher's known tokens and one bucket for all others, on both sides; with `renormalize` without it, and log_p_rest −∞.
template <class Walk, class Divergence, class T>
__device__ void top_k_row(const Divergence& divergence, Stored stored, float log_p_rest, bool renormalize, T* student,
                          float* known, Label label, float* sums, unsigned vocab, float inverse_temperature,
                          float divergence_scale) {
    const unsigned k = stored.count, *ids = stored.ids;
    // The known tokens leave the row: what the others hold is a sum over them, because 1 − Σ would cancel.
    for (unsigned i = threadIdx.x; i < k; i += blockDim.x) known[i] = to_float(student[ids[i]]);
    __syncthreads(); // every thread has read the label's logit
    for (unsigned i = threadIdx.x; i < k; i += blockDim.x) from_float(-INFINITY, student[ids[i]]);
    __syncthreads();
    Exponentials of_rest(inverse_temperature, true), of_teacher(inverse_temperature);
    add_row<Walk>(of_rest, student, vocab);
    Exponentials of_student = of_rest;
    for (unsigned i = threadIdx.x; i < k; i += blockDim.x) {
        of_student.add({known[i]});
        of_teacher.add({stored.log_probabilities[i]});
    }
    const LogSoftmaxes log_q_of_all = of_student.over_block();
    const LogSoftmax log_p_known = of_teacher.over_block().at_temperature;
    // What the known tokens hold together at this temperature: 1 − p_rest, exact where the rest is small.
    const float log_known = logf(fmaxf(-expm1f(log_p_rest), 0.0f));
    const auto log_p = [&](unsigned i) { return log_p_known(stored.log_probabilities[i]) + log_known; };
    const bool with_rest = !renormalize && divergence.compares(log_p_rest);
    LogSoftmax log_q_where = log_q_of_all.at_temperature;
    if (!with_rest || !divergence.compares(-INFINITY)) {
        Exponentials of_compared = with_rest ? of_rest : Exponentials(inverse_temperature);
        for (unsigned i = threadIdx.x; i < k; i += blockDim.x)
            if (divergence.compares(log_p(i))) of_compared.add({known[i]});
        log_q_where = of_compared.over_block().at_temperature;
    }
    const auto log_q = [&](unsigned i) { return divergence.compares(log_p(i)) ? log_q_where(known[i]) : -INFINITY; };
    LogSoftmax log_share = of_rest.over_block().at_temperature; // within the rest
    const float log_q_rest = with_rest ? log_q_where(log_share.largest) + log_share.log_sum : -INFINITY;
    const Term of_bucket = with_rest ? divergence(log_p_rest, log_q_rest) : Term{0.0f, 0.0f};
    float e_sum = -1.0f;
    if (Divergence::SUMS_E) {
        float e = 0.0f;
        for (unsigned i = threadIdx.x; i < k; i += blockDim.x) e += divergence(log_p(i), log_q(i)).e;
        e_sum = block_sum(e) + of_bucket.e;
    }
    const float scale = divergence_scale * inverse_temperature;
    // Shares within the rest times one factor: no difference of large numbers however sure the student is.
    const float pull = scale * difference(of_bucket.e, expf(log_q_rest) * e_sum);
    if (log_share.log_sum == -INFINITY) log_share.log_sum = 0.0f; // no rest: shares of 0
    for (unsigned start = 0; start < vocab; start += Walk::step()) {
        float z[Walk::LENGTH];
        Walk::load(student, start, vocab, z);
#pragma unroll
        for (int n = 0; n < Walk::LENGTH; n++) {
            float gradient = pull * expf(log_share(z[n]));
            if (label.scale != 0.0f) gradient += label.gradient(Walk::index(start, n), expf(log_q_of_all.at_one(z[n])));
            z[n] = gradient;
        }
        Walk::store(student, start, vocab, z);
    }
    __syncthreads(); // the known tokens' gradients replace what the loop wrote
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < k; i += blockDim.x) {
        const float log_q_i = log_q(i);
        const Term term = divergence(log_p(i), log_q_i);
        sum += term.value;
        float gradient = scale * difference(term.e, expf(log_q_i) * e_sum);
        if (label.scale != 0.0f) gradient += label.gradient(ids[i], expf(log_q_of_all.at_one(known[i])));
        from_float(gradient, student[ids[i]]);
    }
    sum = block_sum(sum);
    if (threadIdx.x > 0) return;
    sums[0] = sum + of_bucket.value;
    sums[1] = -log_q_of_all.at_one(label.logit);
}

// Draws from the teacher's distribution: Σ ŵ φ / p, with the weights as they are. An entry of weight 0 is padding.
template <class Walk, class Divergence, class T>
__device__ void sampled_row(const Divergence& divergence, Stored stored, const float* weights, T* student, float* known,
                            Label label, float* sums, unsigned vocab, float inverse_temperature,
                            float divergence_scale) {
    const unsigned n = stored.count, *ids = stored.ids;
    Exponentials of_student(inverse_temperature, true);
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) known[i] = to_float(student[ids[i]]);
    add_row<Walk>(of_student, student, vocab);
    const LogSoftmaxes log_q = of_student.over_block();
    const auto term = [&](unsigned i) {
        const Term draw = divergence.of_draw(stored.log_probabilities[i], log_q.at_temperature(known[i]));
        return Term{weights[i] * draw.value, weights[i] * draw.e};
    };
    float e = 0.0f;
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x)
        if (weights[i] != 0.0f) e += term(i).e;
    const float scale = divergence_scale * inverse_temperature, pull = -scale * block_sum(e);
    __syncthreads(); // every thread has read the logits that it needs
    for (unsigned start = 0; start < vocab; start += Walk::step()) {
        float z[Walk::LENGTH];
        Walk::load(student, start, vocab, z);
#pragma unroll
        for (int i = 0; i < Walk::LENGTH; i++) {
            float gradient = pull * expf(log_q.at_temperature(z[i]));
            if (label.scale != 0.0f) gradient += label.gradient(Walk::index(start, i), expf(log_q.at_one(z[i])));
            z[i] = gradient;
        }
        Walk::store(student, start, vocab, z);
    }
    __syncthreads(); // the drawn tokens' gradients replace what the loop wrote
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        if (weights[i] == 0.0f) continue;
        const Term of_draw = term(i);
        sum += of_draw.value;
        float gradient = difference(pull * expf(log_q.at_temperature(known[i])), -scale * of_draw.e);
        if (label.scale != 0.0f) gradient += label.gradient(ids[i], expf(log_q.at_one(known[i])));
        from_float(gradient, student[ids[i]]);
    }
    sum = block_sum(sum);
    if (threadIdx.x > 0) return;
    sums[0] = sum;
    sums[1] = -log_q.at_one(label.logit);
}

// Calls run with the walk along rows of this alignment.
template <class T, class Run>
__device__ void walk(bool aligned, const Run& run) {
    if (aligned)
        run(Walk<T, true>());
    else
        run(Walk<T, false>());
}

// Calls run with the walk along this block's row, the row, and its label.
template <class T, class Run>
__device__ void on_row(T* student, const unsigned* labels, unsigned vocab, float label_scale, const Run& run) {
    student += (size_t)blockIdx.x * vocab;
    const Label label(labels[blockIdx.x], student, label_scale);
    walk<T>(aligned(student), [&](auto walk) { run(walk, student, label); });
}

__device__ inline Stored stored_row(const unsigned* ids, const float* log_p, unsigned count) {
    const size_t first = (size_t)blockIdx.x * count;
    return {ids + first, log_p + first, count};
}

template <class T, class Divergence>
__device__ void dense(const Divergence& divergence, const T* teacher, T* student, const unsigned* labels, float* sums,
                      float* teacher_lse, unsigned vocab, unsigned teacher_stride, unsigned shared,
                      float inverse_temperature, float divergence_scale, float label_scale) {
    const size_t row = blockIdx.x;
    teacher += row * teacher_stride;
    student += row * vocab;
    const Label label(labels[row], student, label_scale);
    walk<T>(aligned(teacher) && aligned(student), [&](auto walk) {
        divergence_row<decltype(walk)>(divergence, teacher, student, label, sums + 2 * row, teacher_lse + row, vocab,
                                       shared, inverse_temperature, divergence_scale);
    });
}

template <class T>
__device__ void cross_entropy(T* student, const unsigned* labels, float* sums, unsigned vocab, float label_scale) {
    on_row(student, labels, vocab, label_scale, [&](auto walk, T* student, Label label) {
        cross_entropy_row<decltype(walk)>(student, label, sums + 2 * (size_t)blockIdx.x, vocab);
    });
}

template <class T, class Divergence>
__device__ void top_k(const Divergence& divergence, const unsigned* ids, const float* log_p, const float* log_tails,
                      T* student, const unsigned* labels, float* sums, unsigned vocab, unsigned k, bool renormalize,
                      float inverse_temperature, float divergence_scale, float label_scale) {
    __shared__ float known[MAX_TOP_K];
    const float log_tail = renormalize ? -INFINITY : log_tails[blockIdx.x];
    on_row(student, labels, vocab, label_scale, [&](auto walk, T* student, Label label) {
        top_k_row<decltype(walk)>(divergence, stored_row(ids, log_p, k), log_tail, renormalize, student, known, label,
                                  sums + 2 * (size_t)blockIdx.x, vocab, inverse_temperature, divergence_scale);
    });
}

template <class T, class Divergence>
__device__ void sampled(const Divergence& divergence, const unsigned* ids, const float* log_p, const float* weights,
                        T* student, const unsigned* labels, float* sums, unsigned vocab, unsigned n,
                        float inverse_temperature, float divergence_scale, float label_scale) {
    __shared__ float known[MAX_TOP_K];
    const float* of_row = weights + (size_t)blockIdx.x * n;
    on_row(student, labels, vocab, label_scale, [&](auto walk, T* student, Label label) {
        sampled_row<decltype(walk)>(divergence, stored_row(ids, log_p, n), of_row, student, known, label,
                                    sums + 2 * (size_t)blockIdx.x, vocab, inverse_temperature, divergence_scale);
    });
}

#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)

// …_dense: teacher_lse [rows] gets log Σ exp(y / T), finite unless the teacher's logits are broken. Its rows lie
// teacher_stride apart, of which the first `shared` ≤ vocab elements count.
// …_top_k: log_p are at T = 1, log_tails (of what all other tokens hold, not read with renormalize) at T; k ≤ MAX_TOP_K.
// …_sampled: log_p are at T; n ≤ MAX_TOP_K; ids of a row are distinct but where weights are 0.
// All: grid (rows), no dynamic shared memory. student [rows, vocab] becomes the gradient; sums [rows, 2] get D at T (0
// for cross_entropy) and the cross-entropy at T = 1, in nats, which with label_scale 0 is only told. labels [rows] and
// ids [rows, k] are less than vocab. kind, weight and factor are those of Terms; forward_kl takes them and reads none.
#define DIVERGENCE(NAME, T, WHICH)                                                                                     \
    KERNEL NAME##_dense(const T* teacher, T* student, const unsigned* labels, float* sums, float* teacher_lse,         \
                        unsigned vocab, unsigned teacher_stride, unsigned shared, unsigned kind, float weight,         \
                        float factor, float inverse_temperature, float divergence_scale, float label_scale) {          \
        dense(WHICH, teacher, student, labels, sums, teacher_lse, vocab, teacher_stride, shared, inverse_temperature,  \
              divergence_scale, label_scale);                                                                          \
    }                                                                                                                  \
    KERNEL NAME##_top_k(const unsigned* ids, const float* log_p, const float* log_tails, T* student,                   \
                        const unsigned* labels, float* sums, unsigned vocab, unsigned k, unsigned renormalize,         \
                        unsigned kind, float weight, float factor, float inverse_temperature, float divergence_scale,  \
                        float label_scale) {                                                                           \
        top_k(WHICH, ids, log_p, log_tails, student, labels, sums, vocab, k, renormalize != 0, inverse_temperature,    \
              divergence_scale, label_scale);                                                                          \
    }                                                                                                                  \
    KERNEL NAME##_sampled(const unsigned* ids, const float* log_p, const float* weights, T* student,                   \
                          const unsigned* labels, float* sums, unsigned vocab, unsigned n, unsigned kind,              \
                          float weight, float factor, float inverse_temperature, float divergence_scale,               \
                          float label_scale) {                                                                         \
        sampled(WHICH, ids, log_p, weights, student, labels, sums, vocab, n, inverse_temperature, divergence_scale,    \
                label_scale);                                                                                          \
    }

#define KERNELS(NAME, T)                                                                                               \
    DIVERGENCE(forward_kl_##NAME, T, ForwardKl())                                                                      \
    KERNEL cross_entropy_##NAME(T* student, const unsigned* labels, float* sums, unsigned vocab, float label_scale) {  \
        cross_entropy(student, labels, sums, vocab, label_scale);                                                      \
    }

KERNELS(f32, float)
KERNELS(bf16, __nv_bfloat16)
KERNELS(f16, __half)
DIVERGENCE(terms_f32, float, (Terms{kind, weight, factor}))
