// Losses over rows of logits, one block per row: the student's row is replaced by its gradient. The CPU's row functions in
// src/loss are the reference; divergence.rs is the contract.
//
// A row passes twice: once for the sums of exponentials of both sides, once for value and gradient. Sums are f32 whatever
// the logits are, thread by thread and then in a tree: reproducible.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "common.cuh"

// Four neighbours at once, where they lie on a multiple of their size.
__device__ inline void load(const float *from, float (&x)[4]) {
    float4 four = *reinterpret_cast<const float4 *>(from);
    x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
}
__device__ inline void store(float *to, const float (&x)[4]) {
    *reinterpret_cast<float4 *>(to) = make_float4(x[0], x[1], x[2], x[3]);
}
template <class T> struct alignas(8) Four { T x[4]; };
template <class T> __device__ inline void load(const T *from, float (&x)[4]) {
    Four<T> four = *reinterpret_cast<const Four<T> *>(from);
    for (int i = 0; i < 4; i++) x[i] = (float)four.x[i];
}
template <class T> __device__ inline void store(T *to, const float (&x)[4]) {
    Four<T> four;
    for (int i = 0; i < 4; i++) four.x[i] = (T)x[i];
    *reinterpret_cast<Four<T> *>(to) = four;
}
template <class T> __device__ inline bool aligned(const T *row) {
    return reinterpret_cast<size_t>(row) % (4 * sizeof(T)) == 0;
}

// Running sums of exp((z - largest) / T) and, unless T = 1, of exp(z - largest).
struct Exponentials {
    float inverse_temperature, largest = -INFINITY, tempered = 0.0f, plain = 0.0f;

    __device__ explicit Exponentials(float inverse_temperature) : inverse_temperature(inverse_temperature) {}
    __device__ float of(float z) const { return expf((z - largest) * inverse_temperature); }
    __device__ void add(float z) {
        if (z == -INFINITY) return;
        if (z > largest) {
            float before = largest;
            largest = z;
            tempered *= expf((before - z) * inverse_temperature);
            if (inverse_temperature != 1.0f) plain *= expf(before - z);
        }
        tempered += of(z);
        if (inverse_temperature != 1.0f) plain += expf(z - largest);
    }
    // Over the threads of the block.
    __device__ void gather() {
        float all = block_max(largest);
        bool none = largest == -INFINITY;
        tempered = block_sum(none ? 0.0f : tempered * expf((largest - all) * inverse_temperature));
        plain = inverse_temperature == 1.0f ? tempered : block_sum(none ? 0.0f : plain * expf(largest - all));
        largest = all;
    }
    __device__ float log_sum() const { return largest * inverse_temperature + logf(tempered); }
    __device__ float plain_log_sum() const { return largest + logf(plain); }
};

__device__ inline float log_probability(float z, float inverse_temperature, float log_sum) {
    return z * inverse_temperature - log_sum;
}

// A divergence of whole rows: what one token adds to its value, and the gradient by the student's tempered logit.
// Another one is another such struct.
struct ForwardKl {
    __device__ static float value(float p, float log_p, float log_q) { return p > 0.0f ? p * (log_p - log_q) : 0.0f; }
    __device__ static float gradient(float p, float q) { return q - p; }
};

template <class Divergence, class T>
__device__ inline void rows(const T *teacher, T *student, const unsigned *labels, float *sums, float *teacher_lse,
                            unsigned vocab, unsigned teacher_stride, unsigned shared, float inverse_temperature,
                            float divergence_scale, float label_scale) {
    teacher += (size_t)blockIdx.x * teacher_stride;
    student += (size_t)blockIdx.x * vocab;
    unsigned label = labels[blockIdx.x];
    float of_label = (float)student[label];
    unsigned by_four = aligned(teacher) && aligned(student) ? shared / 4 * 4 : 0;

    Exponentials p_sum(inverse_temperature), q_sum(inverse_temperature);
    for (unsigned i = 4 * threadIdx.x; i < by_four; i += 4 * blockDim.x) {
        float y[4], z[4];
        load(teacher + i, y);
        load(student + i, z);
        for (int j = 0; j < 4; j++) {
            p_sum.add(y[j]);
            q_sum.add(z[j]);
        }
    }
    for (unsigned i = by_four + threadIdx.x; i < vocab; i += blockDim.x) {
        if (i < shared) p_sum.add((float)teacher[i]);
        q_sum.add((float)student[i]);
    }
    p_sum.gather();
    q_sum.gather();
    float p_log_sum = p_sum.log_sum(), q_log_sum = q_sum.log_sum(), label_log_sum = q_sum.plain_log_sum();

    float value = 0.0f, scale = divergence_scale * inverse_temperature;
    auto token = [&](unsigned i, float y, float z) {
        float log_p = log_probability(y, inverse_temperature, p_log_sum);
        float log_q = log_probability(z, inverse_temperature, q_log_sum);
        float p = expf(log_p), q = expf(log_q);
        value += Divergence::value(p, log_p, log_q);
        float gradient = scale * Divergence::gradient(p, q);
        if (label_scale != 0.0f) {
            float plain = inverse_temperature == 1.0f ? q : expf(z - label_log_sum);
            gradient += label_scale * (plain - (i == label ? 1.0f : 0.0f));
        }
        return gradient;
    };
    for (unsigned i = 4 * threadIdx.x; i < by_four; i += 4 * blockDim.x) {
        float y[4], z[4];
        load(teacher + i, y);
        load(student + i, z);
        for (int j = 0; j < 4; j++) z[j] = token(i + j, y[j], z[j]);
        store(student + i, z);
    }
    for (unsigned i = by_four + threadIdx.x; i < vocab; i += blockDim.x)
        student[i] = (T)token(i, i < shared ? (float)teacher[i] : -INFINITY, (float)student[i]);
    value = block_sum(value);
    if (threadIdx.x == 0) {
        sums[2 * blockIdx.x] = value;
        sums[2 * blockIdx.x + 1] = label_log_sum - of_label;
        teacher_lse[blockIdx.x] = p_log_sum;
    }
}

template <class T>
__device__ inline void label_rows(T *student, const unsigned *labels, float *sums, unsigned vocab, float label_scale) {
    student += (size_t)blockIdx.x * vocab;
    unsigned label = labels[blockIdx.x], by_four = aligned(student) ? vocab / 4 * 4 : 0;
    float of_label = (float)student[label];
    Exponentials q_sum(1.0f);
    for (unsigned i = 4 * threadIdx.x; i < by_four; i += 4 * blockDim.x) {
        float z[4];
        load(student + i, z);
        for (int j = 0; j < 4; j++) q_sum.add(z[j]);
    }
    for (unsigned i = by_four + threadIdx.x; i < vocab; i += blockDim.x) q_sum.add((float)student[i]);
    q_sum.gather();
    float log_sum = q_sum.log_sum();
    auto token = [&](unsigned i, float z) { return label_scale * (expf(z - log_sum) - (i == label ? 1.0f : 0.0f)); };
    for (unsigned i = 4 * threadIdx.x; i < by_four; i += 4 * blockDim.x) {
        float z[4];
        load(student + i, z);
        for (int j = 0; j < 4; j++) z[j] = token(i + j, z[j]);
        store(student + i, z);
    }
    for (unsigned i = by_four + threadIdx.x; i < vocab; i += blockDim.x) student[i] = (T)token(i, (float)student[i]);
    if (threadIdx.x == 0) {
        sums[2 * blockIdx.x] = 0.0f;
        sums[2 * blockIdx.x + 1] = log_sum - of_label;
    }
}

__device__ inline float term(float log_p, float log_q) {
    return log_p > -INFINITY ? expf(log_p) * (log_p - log_q) : 0.0f;
}

// Forward KL between the k known tokens and one bucket of all others. Dynamic shared memory: k floats.
template <class T>
__device__ inline void top_k_rows(const unsigned *ids, const float *log_p, const float *log_tails, T *student,
                                  const unsigned *labels, float *sums, unsigned vocab, unsigned k,
                                  float inverse_temperature, float divergence_scale, float label_scale) {
    extern __shared__ float known[];
    ids += (size_t)blockIdx.x * k;
    log_p += (size_t)blockIdx.x * k;
    student += (size_t)blockIdx.x * vocab;
    unsigned label = labels[blockIdx.x];
    float log_tail = log_tails[blockIdx.x], of_label = (float)student[label];
    for (unsigned i = threadIdx.x; i < k; i += blockDim.x) known[i] = (float)student[ids[i]];
    __syncthreads();
    // Without the known tokens the row is the bucket: its sum is over the others, because 1 - sum would cancel.
    for (unsigned i = threadIdx.x; i < k; i += blockDim.x) student[ids[i]] = (T)-INFINITY;
    __syncthreads();

    Exponentials rest(inverse_temperature), p_sum(inverse_temperature);
    for (unsigned i = threadIdx.x; i < vocab; i += blockDim.x) rest.add((float)student[i]);
    Exponentials all = rest;
    for (unsigned i = threadIdx.x; i < k; i += blockDim.x) {
        all.add(known[i]);
        p_sum.add(log_p[i]);
    }
    rest.gather();
    all.gather();
    p_sum.gather();
    float rest_log_sum = rest.log_sum(), log_sum = all.log_sum(), label_log_sum = all.plain_log_sum();
    float log_known = logf(-expm1f(log_tail)), p_log_sum = p_sum.log_sum() - log_known;
    bool any_rest = rest.largest > -INFINITY;
    float log_q_rest = any_rest ? rest_log_sum - log_sum : -INFINITY;
    float scale = divergence_scale * inverse_temperature, pull = scale * (expf(log_q_rest) - expf(log_tail));

    auto hard = [&](unsigned i, float z) {
        return label_scale == 0.0f ? 0.0f : label_scale * (expf(z - label_log_sum) - (i == label ? 1.0f : 0.0f));
    };
    for (unsigned i = threadIdx.x; i < vocab; i += blockDim.x) {
        float z = (float)student[i];
        float share = any_rest ? expf(log_probability(z, inverse_temperature, rest_log_sum)) : 0.0f;
        student[i] = (T)(pull * share + hard(i, z));
    }
    __syncthreads();
    float value = 0.0f;
    for (unsigned i = threadIdx.x; i < k; i += blockDim.x) {
        float log_p_i = log_probability(log_p[i], inverse_temperature, p_log_sum);
        float log_q_i = log_probability(known[i], inverse_temperature, log_sum);
        value += term(log_p_i, log_q_i);
        student[ids[i]] = (T)(scale * (expf(log_q_i) - expf(log_p_i)) + hard(ids[i], known[i]));
    }
    value = block_sum(value);
    if (threadIdx.x == 0) {
        sums[2 * blockIdx.x] = value + term(log_tail, log_q_rest);
        sums[2 * blockIdx.x + 1] = label_log_sum - of_label;
    }
}

#define KERNELS(T, NAME)                                                                                                  \
    extern "C" __global__ void forward_kl_##NAME(const T *teacher, T *student, const unsigned *labels, float *sums,       \
                                                 float *teacher_lse, unsigned vocab, unsigned teacher_stride,             \
                                                 unsigned shared, float inverse_temperature, float divergence_scale,      \
                                                 float label_scale) {                                                     \
        rows<ForwardKl>(teacher, student, labels, sums, teacher_lse, vocab, teacher_stride, shared, inverse_temperature,  \
                        divergence_scale, label_scale);                                                                   \
    }                                                                                                                     \
    extern "C" __global__ void cross_entropy_##NAME(T *student, const unsigned *labels, float *sums, unsigned vocab,      \
                                                    float label_scale) {                                                  \
        label_rows(student, labels, sums, vocab, label_scale);                                                            \
    }                                                                                                                     \
    extern "C" __global__ void forward_kl_top_k_##NAME(const unsigned *ids, const float *log_p, const float *log_tails,   \
                                                       T *student, const unsigned *labels, float *sums, unsigned vocab,   \
                                                       unsigned k, float inverse_temperature, float divergence_scale,     \
                                                       float label_scale) {                                               \
        top_k_rows(ids, log_p, log_tails, student, labels, sums, vocab, k, inverse_temperature, divergence_scale,         \
                   label_scale);                                                                                          \
    }

KERNELS(float, f32)
KERNELS(__nv_bfloat16, bf16)
KERNELS(__half, f16)
