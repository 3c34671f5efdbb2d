// The threads of a block, one after the other on one thread of the host.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

#ifndef __VECTOR_TYPES_H__  // NVIDIA's headers have it too
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
#endif

namespace emulator {
// Of the launch and the block that run.
extern dim3 grid_size, block_size, block;
extern char dynamic_shared[];
const dim3 &thread();
int lane();

// Barriers: all threads of the block, or of the warp, have to arrive. Anything else ends the process.
void wait_for_block();
void wait_for_warp();
// A barrier at which each lane of a warp leaves 8 bytes and takes those of another; the mask has to be all lanes.
uint64_t exchange(unsigned mask, uint64_t bits, int lane);

// Runs the kernel for every thread of every block. Without `barriers` it may not wait for anything, and is faster.
void run(const std::function<void()> &kernel, dim3 grid, dim3 block, size_t shared, bool barriers);
constexpr size_t LARGEST_SHARED = 99 << 10;
}  // namespace emulator
