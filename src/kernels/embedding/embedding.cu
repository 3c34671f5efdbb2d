// Rows of a table by index, and the scattered sum that is its gradient.
#include <cuda_bf16.h>
#include "common.cuh"

template <class T> __device__ inline void gather_rows(const T *table, const unsigned *indices, float *out, unsigned width) {
    const T *from = table + (size_t)indices[blockIdx.x] * width;
    float *to = out + (size_t)blockIdx.x * width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) to[i] = (float)from[i];
}

extern "C" __global__ void gather_f32(const float *table, const unsigned *indices, float *out, unsigned width) {
    gather_rows(table, indices, out, width);
}

extern "C" __global__ void gather_bf16(const __nv_bfloat16 *table, const unsigned *indices, float *out, unsigned width) {
    gather_rows(table, indices, out, width);
}

// One block per distinct index, which adds that index's rows in order: no two blocks write the same row, so that the
// result is reproducible. Rows order[starts[b]..starts[b + 1]] go to table row targets[b].
extern "C" __global__ void add_rows(float *table, const unsigned *targets, const unsigned *starts, const unsigned *order,
                                    const float *rows, unsigned width) {
    float *to = table + (size_t)targets[blockIdx.x] * width;
    unsigned begin = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = to[i];
        for (unsigned k = begin; k < end; k++) sum += rows[(size_t)order[k] * width + i];
        to[i] = sum;
    }
}
