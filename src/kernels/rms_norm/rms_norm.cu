// y = x / sqrt(mean(x^2) + epsilon) * (offset + w), one warp per row.
#include "common.cuh"

__device__ inline float reciprocal_rms(const float *x, unsigned width, unsigned lane, float epsilon) {
    float sum = 0.0f;
    for (unsigned i = lane; i < width; i += 32) sum += x[i] * x[i];
    return 1.0f / sqrtf(warp_sum(sum) / (float)width + epsilon);
}

extern "C" __global__ void rms_norm(const float *x, const float *w, float *y, unsigned rows, unsigned width,
                                    float offset, float epsilon) {
    unsigned row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;  // a whole warp
    x += (size_t)row * width;
    y += (size_t)row * width;
    float r = reciprocal_rms(x, width, lane, epsilon);
    for (unsigned i = lane; i < width; i += 32) y[i] = x[i] * r * (w[i] + offset);
}

// With w for offset + w, dx = onto + r (dy w - x r^2 mean(dy w x)); the rows' r are kept for the weight's gradient.
extern "C" __global__ void rms_norm_backward(const float *x, const float *w, const float *dy, const float *onto, float *dx,
                                             float *reciprocals, unsigned rows, unsigned width, float offset,
                                             float epsilon, unsigned has_onto) {
    unsigned row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    size_t at = (size_t)row * width;
    float r = reciprocal_rms(x + at, width, lane, epsilon), dot = 0.0f;
    for (unsigned i = lane; i < width; i += 32) dot += dy[at + i] * (w[i] + offset) * x[at + i];
    float pull = warp_sum(dot) * r * r * r / (float)width;
    for (unsigned i = lane; i < width; i += 32)
        dx[at + i] = (has_onto ? onto[at + i] : 0.0f) + dy[at + i] * (w[i] + offset) * r - x[at + i] * pull;
    if (lane == 0) reciprocals[row] = r;
}

// sum of x r dy over `rows_per_block` rows at a time: partial[blockIdx.y][column].
extern "C" __global__ void rms_norm_weight(const float *x, const float *dy, const float *reciprocals, float *partial,
                                           unsigned rows, unsigned width, unsigned rows_per_block) {
    unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    unsigned from = blockIdx.y * rows_per_block, to = min(rows, from + rows_per_block);
    float sum = 0.0f;
    for (unsigned row = from; row < to; row++) {
        size_t at = (size_t)row * width + column;
        sum += x[at] * reciprocals[row] * dy[at];
    }
    partial[(size_t)blockIdx.y * width + column] = sum;
}
