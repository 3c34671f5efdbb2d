// gelu(x) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).
#pragma once

#define GELU_LINEAR 1.5957692f
#define GELU_CUBIC 0.044715f

// What x is multiplied by.
__device__ inline float gelu_open(float x) { return 1.0f / (1.0f + expf(-GELU_LINEAR * (x + GELU_CUBIC * x * x * x))); }

// The derivative of x s, s = gelu_open(x).
__device__ inline float gelu_slope(float x, float s) {
    return s + x * s * (1.0f - s) * GELU_LINEAR * (1.0f + 3.0f * GELU_CUBIC * x * x);
}
