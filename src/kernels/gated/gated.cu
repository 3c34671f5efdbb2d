// gate s(gate) * up, and its gradients: s is the sigmoid (SwiGLU), or the one that GELU multiplies by (GeGLU).
#include "common.cuh"
#include "gelu.cuh"

struct Silu {
    __device__ static float open(float g) { return 1.0f / (1.0f + expf(-g)); }
    __device__ static float slope(float by, float g, float s) { return by * s * (1.0f + g * (1.0f - s)); }
};

struct Gelu {
    __device__ static float open(float g) { return gelu_open(g); }
    __device__ static float slope(float by, float g, float s) { return by * gelu_slope(g, s); }
};

template <class Gate>
__device__ void gated(const float *gate, const float *up, float *y, size_t n) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        y[i] = gate[i] * Gate::open(gate[i]) * up[i];
}

template <class Gate>
__device__ void gated_backward(const float *gate, const float *up, const float *dy, float *d_gate, float *d_up, size_t n) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        float g = gate[i], s = Gate::open(g);
        d_up[i] = dy[i] * g * s;
        d_gate[i] = Gate::slope(dy[i] * up[i], g, s);
    }
}

extern "C" __global__ void swiglu(const float *gate, const float *up, float *y, size_t n) { gated<Silu>(gate, up, y, n); }

extern "C" __global__ void geglu(const float *gate, const float *up, float *y, size_t n) { gated<Gelu>(gate, up, y, n); }

extern "C" __global__ void swiglu_backward(const float *gate, const float *up, const float *dy, float *d_gate, float *d_up,
                                           size_t n) {
    gated_backward<Silu>(gate, up, dy, d_gate, d_up, n);
}

extern "C" __global__ void geglu_backward(const float *gate, const float *up, const float *dy, float *d_gate, float *d_up,
                                          size_t n) {
    gated_backward<Gelu>(gate, up, dy, d_gate, d_up, n);
}
