// AdamW in one pass, and the sums of squares that clipping asks for.
#include "common.cuh"

extern "C" __global__ void adamw(float *w, const float *gradient, float *first, float *second, size_t n, float beta1,
                                 float beta2, float gradient_scale, float step_size, float inverse_correction2, float epsilon,
                                 float keep) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        float g = gradient[i] * gradient_scale;
        float m = beta1 * first[i] + (1.0f - beta1) * g;
        float v = beta2 * second[i] + (1.0f - beta2) * g * g;
        first[i] = m;
        second[i] = v;
        w[i] = w[i] * keep - step_size * m / (sqrtf(v) * inverse_correction2 + epsilon);
    }
}

// One partial sum per block; the host adds them in order.
extern "C" __global__ void sum_of_squares(const float *x, float *partial, size_t n) {
    float sum = 0.0f;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        sum += x[i] * x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
