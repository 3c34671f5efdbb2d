// Reductions over warps and blocks: shuffles in a fixed order, so that results repeat bit for bit.
#pragma once

__device__ inline float warp_sum(float x) {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffff, x, offset);
    return x;
}

// NaNs are passed over.
__device__ inline float warp_max(float x) {
    for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, offset));
    return x;
}

// Gives every thread the value of its lane's warp: thread i gets `x` of warp i % 32, `missing` where there is none.
__device__ inline float of_warp(float x, float missing) {
    __shared__ float of_warps[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (lane == 0) of_warps[warp] = x;
    __syncthreads();
    x = lane * 32 < blockDim.x ? of_warps[lane] : missing;
    __syncthreads(); // of_warps may be written again
    return x;
}

// The sum over the block, in all its threads: every one of them has to call, 32 n of them, up to 1024.
__device__ inline float block_sum(float x) { return warp_sum(of_warp(warp_sum(x), 0.0f)); }

// The largest value in the block, in all its threads, like block_sum. NaNs are passed over.
__device__ inline float block_max(float x) { return warp_max(of_warp(warp_max(x), -INFINITY)); }
