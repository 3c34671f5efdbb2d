// Rotates the two halves of each head by its token's angles; direction -1 rotates back.
#include "common.cuh"

extern "C" __global__ void rope(const float *x, const float *cos, const float *sin, float *y, unsigned rows, unsigned heads,
                                unsigned half, float direction) {
    size_t n = (size_t)rows * heads * half;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        unsigned at = i % half;
        size_t head = i / half, angle = head / heads * half + at, first = head * 2 * half + at;
        float c = cos[angle], s = sin[angle] * direction, a = x[first], b = x[first + half];
        y[first] = a * c - b * s;
        y[first + half] = b * c + a * s;
    }
}
