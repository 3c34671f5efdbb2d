// CUDA's device language for a C++ compiler: what a .cu file needs to be compiled for the host, unchanged but for two
// spellings (emulate.sh). threads.cpp runs it.
#pragma once
// NVIDIA's headers first: they define the qualifiers for hosts, which are redefined below.
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "threads.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#undef __shared__
#undef __restrict__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
// Blocks run one after the other, all threads of a block on one thread of the host.
#define __shared__ static
// candle asks for the compiler's version, and for the architecture under this name: f16 and bf16, no f8.
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0
#define EMULATED_ARCH 800

#define threadIdx emulator::thread()
#define blockIdx emulator::block
#define blockDim emulator::block_size
#define gridDim emulator::grid_size

inline void __syncthreads() { emulator::wait_for_block(); }
inline void __syncwarp(unsigned = ~0u) { emulator::wait_for_warp(); }

// What another lane of the warp holds; its own value where there is no such lane.
template <class T> T of_lane(unsigned mask, T value, int lane) {
    static_assert(sizeof(T) <= 8, "shuffles are of up to 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = emulator::exchange(mask, bits, lane);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T> T __shfl_sync(unsigned mask, T x, int lane, int = 32) { return of_lane(mask, x, lane & 31); }
template <class T> T __shfl_xor_sync(unsigned mask, T x, int bits, int = 32) {
    return of_lane(mask, x, emulator::lane() ^ bits);
}
template <class T> T __shfl_down_sync(unsigned mask, T x, int by, int = 32) {
    return of_lane(mask, x, emulator::lane() + by);
}

template <class T, class U> T atomicAdd(T *at, U x) { T old = *at; *at = old + (T)x; return old; }
template <class T, class U> T atomicMax(T *at, U x) { T old = *at; *at = std::max(old, (T)x); return old; }
template <class T, class U> T atomicMin(T *at, U x) { T old = *at; *at = std::min(old, (T)x); return old; }
template <class T, class U, class V> T atomicCAS(T *at, U expected, V x) {
    T old = *at;
    if (old == (T)expected) *at = (T)x;
    return old;
}

template <class To, class From> To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "of one size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline float __uint_as_float(unsigned x) { return same_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return same_bits<float>(x); }
inline int __float_as_int(float x) { return same_bits<int>(x); }
inline double __longlong_as_double(long long x) { return same_bits<double>(x); }
inline long long __double_as_longlong(double x) { return same_bits<long long>(x); }

using std::isinf;
using std::isnan;
using std::max;
using std::min;
using std::signbit;
template <class T> T __ldg(const T *at) { return *at; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float normcdff(float x) { return 0.5f * std::erfc(-x * 0.707106781186547524f); }
inline double normcdf(double x) { return 0.5 * std::erfc(-x * 0.707106781186547524); }
// NVIDIA's headers have these for devices only.
#define OF_HALVES(name, f)                                                                          \
    inline __half name(__half x) { return __float2half(f(__half2float(x))); }                       \
    inline __nv_bfloat16 name(__nv_bfloat16 x) { return __float2bfloat16(f(__bfloat162float(x))); }
OF_HALVES(hsqrt, std::sqrt)
OF_HALVES(hsin, std::sin)
OF_HALVES(hcos, std::cos)
OF_HALVES(hlog, std::log)
OF_HALVES(hexp, std::exp)
