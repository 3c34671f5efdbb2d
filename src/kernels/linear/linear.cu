// What a linear layer needs besides its products: the bias, and column sums for its gradient.
#include "common.cuh"

// y[i] = (onto ? onto[i] : 0) + bias, row by row; `onto` may be y itself.
extern "C" __global__ void add_bias(const float *onto, const float *bias, float *y, unsigned rows, unsigned width,
                                    unsigned has_onto) {
    size_t n = (size_t)rows * width;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        y[i] = (has_onto ? onto[i] : 0.0f) + bias[i % width];
}

// Sums of `rows_per_block` rows at a time, in row order: sums[blockIdx.y][column]. With `accumulate` they are added to
// what is there. Two calls, many blocks and then one, sum any number of rows reproducibly.
extern "C" __global__ void column_sums(const float *x, float *sums, unsigned rows, unsigned width, unsigned rows_per_block,
                                       unsigned accumulate) {
    unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    unsigned from = blockIdx.y * rows_per_block, to = min(rows, from + rows_per_block);
    float *out = sums + (size_t)blockIdx.y * width + column;
    float sum = accumulate ? *out : 0.0f;
    for (unsigned row = from; row < to; row++) sum += x[(size_t)row * width + column];
    *out = sum;
}
