// y = (x - mean x) / sqrt(var x + epsilon) * w + b, one warp per row.
#include "common.cuh"

struct Moments {
    float mean, r;
};

// Deviations are squared after the mean is known, or large means would cancel.
__device__ inline Moments moments(const float *x, unsigned width, unsigned lane, float epsilon) {
    float sum = 0.0f, squares = 0.0f;
    for (unsigned i = lane; i < width; i += 32) sum += x[i];
    const float mean = warp_sum(sum) / (float)width;
    for (unsigned i = lane; i < width; i += 32) squares += (x[i] - mean) * (x[i] - mean);
    Moments moments = {mean, 1.0f / sqrtf(warp_sum(squares) / (float)width + epsilon)};
    return moments;
}

extern "C" __global__ void layer_norm(const float *x, const float *w, const float *b, float *y, unsigned rows,
                                      unsigned width, float epsilon) {
    unsigned row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;  // a whole warp
    x += (size_t)row * width;
    y += (size_t)row * width;
    const Moments m = moments(x, width, lane, epsilon);
    for (unsigned i = lane; i < width; i += 32) y[i] = (x[i] - m.mean) * m.r * w[i] + b[i];
}

// With n = (x - mean) r and g = dy w: dx = onto + r (g - mean g - n mean(g n)); n dy is kept for the weight's gradient.
extern "C" __global__ void layer_norm_backward(const float *x, const float *w, const float *dy, const float *onto,
                                               float *dx, float *products, unsigned rows, unsigned width,
                                               float epsilon, unsigned has_onto) {
    unsigned row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    size_t at = (size_t)row * width;
    const Moments m = moments(x + at, width, lane, epsilon);
    float sum = 0.0f, dot = 0.0f;
    for (unsigned i = lane; i < width; i += 32) {
        sum += dy[at + i] * w[i];
        dot += dy[at + i] * w[i] * (x[at + i] - m.mean);
    }
    const float level = warp_sum(sum) / (float)width, pull = warp_sum(dot) * m.r * m.r / (float)width;
    for (unsigned i = lane; i < width; i += 32) {
        const float away = x[at + i] - m.mean;
        products[at + i] = away * m.r * dy[at + i];
        dx[at + i] = (has_onto ? onto[at + i] : 0.0f) + m.r * (dy[at + i] * w[i] - level - away * pull);
    }
}
