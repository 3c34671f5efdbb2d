// gelu(x) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3), alone and as the gate of an MLP, and their gradients.
#include "common.cuh"

#define LINEAR 1.5957692f
#define CUBIC 0.044715f

__device__ inline float gate_of(float x) { return 1.0f / (1.0f + expf(-LINEAR * (x + CUBIC * x * x * x))); }

// The derivative of x s, s = gate_of(x).
__device__ inline float slope(float x, float s) {
    return s + x * s * (1.0f - s) * LINEAR * (1.0f + 3.0f * CUBIC * x * x);
}

extern "C" __global__ void gelu(const float *x, float *y, size_t n) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        y[i] = x[i] * gate_of(x[i]);
}

extern "C" __global__ void gelu_backward(const float *x, const float *dy, float *dx, size_t n) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        dx[i] = dy[i] * slope(x[i], gate_of(x[i]));
}

extern "C" __global__ void geglu(const float *gate, const float *up, float *y, size_t n) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        y[i] = gate[i] * gate_of(gate[i]) * up[i];
}

extern "C" __global__ void geglu_backward(const float *gate, const float *up, const float *dy, float *d_gate, float *d_up,
                                          size_t n) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        float g = gate[i], s = gate_of(g);
        d_up[i] = dy[i] * g * s;
        d_gate[i] = dy[i] * up[i] * slope(g, s);
    }
}
