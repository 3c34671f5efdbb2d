// GELU alone, and its gradient.
#include "common.cuh"
#include "gelu.cuh"

extern "C" __global__ void gelu(const float *x, float *y, size_t n) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        y[i] = x[i] * gelu_open(x[i]);
}

extern "C" __global__ void gelu_backward(const float *x, const float *dy, float *dx, size_t n) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        dx[i] = dy[i] * gelu_slope(x[i], gelu_open(x[i]));
}
