// Every thread of a block is a fibre with a stack of its own, and goes on until it has to wait. Barriers and shuffles are
// real meetings, and the order is the least friendly that they allow: a warp runs until its next barrier before another
// warp starts. A forgotten barrier is then a wrong result. EMULATED_SEED shuffles warps and lanes besides.
//
// It holds what a kernel computes. It cannot show races inside a warp's lock step, weak memory order, or speed.
#include "threads.hpp"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

namespace emulator {
dim3 grid_size, block_size, block;
constexpr size_t STACK = 64 << 10, GUARD = 1 << 10;
alignas(256) char dynamic_shared[LARGEST_SHARED + GUARD];

namespace {
#if defined(__x86_64__)
// ucontext makes a system call at every switch; this is ten times as fast. It keeps what a called function has to.
struct Context { void *stack = nullptr; };
extern "C" void emulator_switch(void **save, void *load);
__asm__(R"(
.type emulator_switch,@function
emulator_switch:
    push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
    mov %rsp,(%rdi); mov %rsi,%rsp
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
    ret
)");
void switch_to(Context &from, Context &to) { emulator_switch(&from.stack, to.stack); }
void prepare(Context &context, char *stack, void (*start)()) {
    void **top = (void **)((uintptr_t)(stack + STACK) & ~(uintptr_t)15);
    *--top = nullptr;  // where `start` would return to: it starts as if it were called
    *--top = (void *)start;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    context.stack = top;
}
#else
typedef ucontext_t Context;
void switch_to(Context &from, Context &to) { swapcontext(&from, &to); }
void prepare(Context &context, char *stack, void (*start)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, start, 0);
}
#endif

enum Waiting { NOT, FOR_WARP, FOR_BLOCK };
struct Fibre {
    Context context;
    dim3 index;
    bool done = false;
    Waiting waiting = NOT;
    // To the other lanes, at even and odd exchanges: who gives again has seen all of them take the last but one.
    uint64_t given[2] = {0, 0};
    unsigned exchanges = 0;
};
std::vector<Fibre> fibres;
std::vector<std::unique_ptr<char[]>> stacks;  // kept from block to block
Context scheduler;
int current;
bool may_wait, in_order;
const std::function<void()> *kernel;

[[noreturn]] void fail(const char *what) {
    fprintf(stderr, "emulator: %s (block %u,%u, thread %d)\n", what, block.x, block.y, current);
    abort();
}

// Straight to the warp's next lane where it is its turn: the scheduler would do no other.
void leave() {
    Fibre &from = fibres[current];
    int next = current + 1;
    bool its_turn = in_order && next % 32 && next < (int)fibres.size() && !fibres[next].done && fibres[next].waiting == NOT;
    if (its_turn) current = next;
    switch_to(from.context, its_turn ? fibres[next].context : scheduler);
}

void wait(Waiting what) {
    if (!may_wait) fail("a kernel without barriers waits at one");
    fibres[current].waiting = what;
    leave();
}

void start() {
    (*kernel)();
    fibres[current].done = true;
    leave();
}

// Lets the fibres of a warp go on once all of them stand at a barrier of the warp.
bool release_warp(int first, int end) {
    for (int i = first; i < end; i++)
        if (fibres[i].done || fibres[i].waiting != FOR_WARP) return false;
    for (int i = first; i < end; i++) fibres[i].waiting = NOT;
    return true;
}

void release_block() {
    size_t waiting = 0, live = 0;
    for (auto &fibre : fibres) {
        live += !fibre.done;
        waiting += !fibre.done && fibre.waiting == FOR_BLOCK;
    }
    if (waiting != live) fail("deadlock: threads of a block wait at different barriers");
    if (live && live != fibres.size()) fail("__syncthreads() when some threads of the block have returned");
    for (auto &fibre : fibres) fibre.waiting = NOT;
}

dim3 index_of(unsigned i) {
    return dim3(i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y));
}

void run_fibres(int threads, std::mt19937 *random) {
    fibres.clear();
    fibres.resize(threads);
    for (int i = 0; i < threads; i++) {
        if ((int)stacks.size() <= i) stacks.emplace_back(new char[STACK]);
        fibres[i].index = index_of(i);
        prepare(fibres[i].context, stacks[i].get(), start);
    }
    std::vector<int> warps((threads + 31) / 32), lanes(32);
    for (size_t i = 0; i < warps.size(); i++) warps[i] = i;
    for (int i = 0; i < 32; i++) lanes[i] = i;
    auto live = [] { return std::any_of(fibres.begin(), fibres.end(), [](Fibre &f) { return !f.done; }); };
    while (live()) {
        if (random) std::shuffle(warps.begin(), warps.end(), *random);
        for (int warp : warps) {
            int first = warp * 32, end = std::min(threads, first + 32);
            do {
                if (random) std::shuffle(lanes.begin(), lanes.end(), *random);
                for (int lane : lanes) {
                    current = first + lane;
                    if (current >= end || fibres[current].done || fibres[current].waiting != NOT) continue;
                    switch_to(scheduler, fibres[current].context);
                }
            } while (release_warp(first, end));
        }
        release_block();
    }
}
}  // namespace

const dim3 &thread() { return fibres[current].index; }
int lane() { return current % 32; }
void wait_for_block() { wait(FOR_BLOCK); }
void wait_for_warp() { wait(FOR_WARP); }

uint64_t exchange(unsigned mask, uint64_t bits, int lane) {
    if (mask != ~0u) fail("shuffles of a part of a warp are not emulated");
    int turn = fibres[current].exchanges++ % 2;
    fibres[current].given[turn] = bits;
    wait(FOR_WARP);
    int other = current / 32 * 32 + lane;
    bool there = lane >= 0 && lane < 32 && other < (int)fibres.size();
    return fibres[there ? other : current].given[turn];
}

void run(const std::function<void()> &body, dim3 grid, dim3 size, size_t shared, bool barriers) {
    const char *text = getenv("EMULATED_SEED");
    int seed = text ? atoi(text) : 0;
    std::mt19937 random(seed);
    grid_size = grid;
    block_size = size;
    kernel = &body;
    may_wait = barriers;
    in_order = !seed;
    unsigned threads = size.x * size.y * size.z;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                block = dim3(x, y, z);
                if (shared) memset(dynamic_shared, 0xff, shared + GUARD);  // NaN
                if (barriers) {
                    run_fibres(threads, seed ? &random : nullptr);
                } else {
                    fibres.resize(1);
                    current = 0;
                    for (unsigned i = 0; i < threads; i++) {
                        fibres[0].index = index_of(i);
                        body();
                    }
                }
                for (size_t i = 0; shared && i < GUARD; i++)
                    if (dynamic_shared[shared + i] != (char)0xff) fail("a write past the dynamic shared memory");
            }
}
}  // namespace emulator
