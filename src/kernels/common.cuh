// Sums and maxima over the threads of a warp or a block, handed to all of them. The order is fixed: results are
// reproducible. Every thread of the warp or block has to call.
#pragma once

__device__ inline float warp_sum(float x) {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

__device__ inline float warp_max(float x) {
    for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}

// blockDim.x is a multiple of 32, up to 1024.
__device__ inline float block_sum(float x) {
    __shared__ float of_warps[32];
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_sum(x);
    __syncthreads();  // the last call's readers are done
    if (lane == 0) of_warps[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? of_warps[lane] : 0.0f);
}

__device__ inline float block_max(float x) {
    __shared__ float of_warps[32];
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_max(x);
    __syncthreads();
    if (lane == 0) of_warps[warp] = x;
    __syncthreads();
    return warp_max(lane < warps ? of_warps[lane] : -INFINITY);
}
