// Divergences and cross-entropy of rows of logits, as in loss/: a block per target. Each row is read twice, once for
// log Σ exp and once for what follows from it, and the student's row becomes its gradient on the way.
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

// A divergence is a sum of terms over tokens, with a gradient by each z / T that follows from the token alone. Others
// are structs with the same functions and their parameters as members; one whose gradient takes another sum over the
// row (such as D itself) adds a pass for it.
struct ForwardKl {
    // 0 · log 0 = 0: log p may be −∞ here.
    __device__ float term(float p, float log_p, float log_q) const { return p > 0.0f ? p * (log_p - log_q) : 0.0f; }
    __device__ float gradient(float p, float q) const { return difference(q, p); }
};

template <class Walk, class Divergence, class T>
__device__ void divergence_row(const Divergence& divergence, const T* teacher, T* student, Label label, float* sums,
                               float* teacher_lse, unsigned vocab, unsigned shared, float inverse_temperature,
                               float divergence_scale) {
    Exponentials of_teacher(inverse_temperature), of_student(inverse_temperature, true);
    for (unsigned start = 0; start < vocab; start += Walk::step()) {
        float y[Walk::LENGTH], z[Walk::LENGTH];
        Walk::load(teacher, start, shared, y);
        Walk::load(student, start, vocab, z);
        of_teacher.add(y);
        of_student.add(z);
    }
    const LogSoftmax log_p = of_teacher.over_block().at_temperature;
    const LogSoftmaxes log_q = of_student.over_block();
    const float scale = divergence_scale * inverse_temperature;
    float sum = 0.0f;
    for (unsigned start = 0; start < vocab; start += Walk::step()) {
        float y[Walk::LENGTH], z[Walk::LENGTH];
        Walk::load(teacher, start, shared, y);
        Walk::load(student, start, vocab, z);
#pragma unroll
        for (int n = 0; n < Walk::LENGTH; n++) {
            const float log_p_i = log_p(y[n]), log_q_i = log_q.at_temperature(z[n]);
            const float p = expf(log_p_i), q = expf(log_q_i);
            sum += divergence.term(p, log_p_i, log_q_i);
            float gradient = scale * divergence.gradient(p, q);
            if (label.scale != 0.0f) {
                const float q_at_one = inverse_temperature == 1.0f ? q : expf(log_q.at_one(z[n]));
                gradient += label.gradient(Walk::index(start, n), q_at_one);
            }
            z[n] = gradient;
        }
        Walk::store(student, start, vocab, z);
    }
    sum = block_sum(sum);
    if (threadIdx.x > 0) return;
    sums[0] = sum;
    sums[1] = -log_q.at_one(label.logit);
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

// The teacher's k known tokens and one bucket for all others, on both sides.
template <class Walk, class T>
__device__ void forward_kl_top_k_row(const unsigned* ids, const float* log_probabilities, float log_p_rest, T* student,
                                     float* known, Label label, float* sums, unsigned vocab, unsigned k,
                                     float inverse_temperature, float divergence_scale) {
    const ForwardKl divergence;
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
        of_teacher.add({log_probabilities[i]});
    }
    const LogSoftmaxes log_q = of_student.over_block();
    LogSoftmax log_share = of_rest.over_block().at_temperature; // within the rest
    const LogSoftmax log_p_known = of_teacher.over_block().at_temperature;
    // What the known tokens hold together at this temperature: 1 − p_rest, exact where the rest is small.
    const float log_known = logf(fmaxf(-expm1f(log_p_rest), 0.0f));
    const float log_q_rest = log_q.at_temperature(log_share.largest) + log_share.log_sum;
    const float scale = divergence_scale * inverse_temperature;
    // Shares within the rest times one factor: no difference of large numbers however sure the student is.
    const float pull = scale * (expf(log_q_rest) - expf(log_p_rest));
    if (log_share.log_sum == -INFINITY) log_share.log_sum = 0.0f; // no rest: shares of 0
    for (unsigned start = 0; start < vocab; start += Walk::step()) {
        float z[Walk::LENGTH];
        Walk::load(student, start, vocab, z);
#pragma unroll
        for (int n = 0; n < Walk::LENGTH; n++) {
            float gradient = pull * expf(log_share(z[n]));
            if (label.scale != 0.0f) gradient += label.gradient(Walk::index(start, n), expf(log_q.at_one(z[n])));
            z[n] = gradient;
        }
        Walk::store(student, start, vocab, z);
    }
    __syncthreads(); // the known tokens' gradients replace what the loop wrote
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < k; i += blockDim.x) {
        const float log_p_i = log_p_known(log_probabilities[i]) + log_known, log_q_i = log_q.at_temperature(known[i]);
        const float p = expf(log_p_i), q = expf(log_q_i);
        sum += divergence.term(p, log_p_i, log_q_i);
        float gradient = scale * divergence.gradient(p, q);
        if (label.scale != 0.0f) gradient += label.gradient(ids[i], expf(log_q.at_one(known[i])));
        from_float(gradient, student[ids[i]]);
    }
    sum = block_sum(sum);
    if (threadIdx.x > 0) return;
    sums[0] = sum + divergence.term(expf(log_p_rest), log_p_rest, log_q_rest);
    sums[1] = -log_q.at_one(label.logit);
}

// Draws from the teacher's distribution: Σ ŵ (log p − log q), with the weights as they are. An entry of weight 0 is padding.
template <class Walk, class T>
__device__ void forward_kl_sampled_row(const unsigned* ids, const float* log_probabilities, const float* weights,
                                       T* student, float* known, Label label, float* sums, unsigned vocab, unsigned n,
                                       float inverse_temperature, float divergence_scale) {
    Exponentials of_student(inverse_temperature, true);
    float weight = 0.0f;
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        known[i] = to_float(student[ids[i]]);
        weight += weights[i];
    }
    add_row<Walk>(of_student, student, vocab);
    const LogSoftmaxes log_q = of_student.over_block();
    const float scale = divergence_scale * inverse_temperature, pull = scale * block_sum(weight);
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
        const float log_q_i = log_q.at_temperature(known[i]);
        sum += weights[i] * difference(log_probabilities[i], log_q_i);
        float gradient = difference(pull * expf(log_q_i), scale * weights[i]);
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

template <class T, class Divergence>
__device__ void divergence(const Divergence& divergence, const T* teacher, T* student, const unsigned* labels,
                           float* sums, float* teacher_lse, unsigned vocab, unsigned teacher_stride, unsigned shared,
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
    const size_t row = blockIdx.x;
    student += row * vocab;
    const Label label(labels[row], student, label_scale);
    walk<T>(aligned(student),
            [&](auto walk) { cross_entropy_row<decltype(walk)>(student, label, sums + 2 * row, vocab); });
}

template <class T>
__device__ void forward_kl_top_k(const unsigned* ids, const float* log_p, const float* log_tails, T* student,
                                 const unsigned* labels, float* sums, unsigned vocab, unsigned k,
                                 float inverse_temperature, float divergence_scale, float label_scale) {
    __shared__ float known[MAX_TOP_K];
    const size_t row = blockIdx.x;
    student += row * vocab;
    const Label label(labels[row], student, label_scale);
    walk<T>(aligned(student), [&](auto walk) {
        forward_kl_top_k_row<decltype(walk)>(ids + row * k, log_p + row * k, log_tails[row], student, known, label,
                                             sums + 2 * row, vocab, k, inverse_temperature, divergence_scale);
    });
}

template <class T>
__device__ void forward_kl_sampled(const unsigned* ids, const float* log_p, const float* weights, T* student,
                                   const unsigned* labels, float* sums, unsigned vocab, unsigned n,
                                   float inverse_temperature, float divergence_scale, float label_scale) {
    __shared__ float known[MAX_TOP_K];
    const size_t row = blockIdx.x;
    student += row * vocab;
    const Label label(labels[row], student, label_scale);
    walk<T>(aligned(student), [&](auto walk) {
        forward_kl_sampled_row<decltype(walk)>(ids + row * n, log_p + row * n, weights + row * n, student, known, label,
                                               sums + 2 * row, vocab, n, inverse_temperature, divergence_scale);
    });
}

#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)

// forward_kl: teacher_lse [rows] gets log Σ exp(y / T), finite unless the teacher's logits are broken. Its rows lie
// teacher_stride apart, of which the first `shared` ≤ vocab elements count.
// forward_kl_top_k: log_p are at T = 1, log_tails (of what all other tokens hold) at T; k ≤ MAX_TOP_K.
// forward_kl_sampled: log_p are at T; n ≤ MAX_TOP_K; ids of a row are distinct but where weights are 0.
// All: grid (rows), no dynamic shared memory. student [rows, vocab] becomes the gradient; sums [rows, 2] get D at T (0
// for cross_entropy) and the cross-entropy at T = 1, in nats, which with label_scale 0 is only told. labels [rows] and
// ids [rows, k] are less than vocab.
#define KERNELS(NAME, T)                                                                                               \
    KERNEL forward_kl_##NAME(const T* teacher, T* student, const unsigned* labels, float* sums, float* teacher_lse,    \
                             unsigned vocab, unsigned teacher_stride, unsigned shared, float inverse_temperature,      \
                             float divergence_scale, float label_scale) {                                              \
        divergence(ForwardKl(), teacher, student, labels, sums, teacher_lse, vocab, teacher_stride, shared,            \
                   inverse_temperature, divergence_scale, label_scale);                                                \
    }                                                                                                                  \
    KERNEL cross_entropy_##NAME(T* student, const unsigned* labels, float* sums, unsigned vocab, float label_scale) {  \
        cross_entropy(student, labels, sums, vocab, label_scale);                                                      \
    }                                                                                                                  \
    KERNEL forward_kl_top_k_##NAME(const unsigned* ids, const float* log_p, const float* log_tails, T* student,        \
                                   const unsigned* labels, float* sums, unsigned vocab, unsigned k,                    \
                                   float inverse_temperature, float divergence_scale, float label_scale) {             \
        forward_kl_top_k(ids, log_p, log_tails, student, labels, sums, vocab, k, inverse_temperature,                  \
                         divergence_scale, label_scale);                                                               \
    }                                                                                                                  \
    KERNEL forward_kl_sampled_##NAME(const unsigned* ids, const float* log_p, const float* weights, T* student,        \
                                     const unsigned* labels, float* sums, unsigned vocab, unsigned n,                  \
                                     float inverse_temperature, float divergence_scale, float label_scale) {           \
        forward_kl_sampled(ids, log_p, weights, student, labels, sums, vocab, n, inverse_temperature,                  \
                           divergence_scale, label_scale);                                                             \
    }

KERNELS(f32, float)
KERNELS(bf16, __nv_bfloat16)
KERNELS(f16, __half)
