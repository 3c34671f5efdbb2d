// silu(gate) * up, and its gradients.
#include "common.cuh"

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

extern "C" __global__ void swiglu(const float *gate, const float *up, float *y, size_t n) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        y[i] = gate[i] * sigmoid(gate[i]) * up[i];
}

extern "C" __global__ void swiglu_backward(const float *gate, const float *up, const float *dy, float *d_gate, float *d_up,
                                           size_t n) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        float g = gate[i], s = sigmoid(g);
        d_up[i] = dy[i] * g * s;
        d_gate[i] = dy[i] * up[i] * s * (1.0f + g * (1.0f - s));
    }
}
