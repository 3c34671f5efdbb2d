// A CUDA driver on the CPU: as much of one as candle, cudarc and this program call. Kernels are functions of this library,
// compiled from the same .cu files as the PTX; the PTX is read only for what parameters a kernel has, and whether it has
// barriers.
//
// From the environment:
//   EMULATED_DEVICES=2      how many GPUs there are (1)
//   EMULATED_MEMORY=1000000 bytes of memory that each has (8 GiB)
//   EMULATED_SEED=1         another order of threads
//   EMULATED_TRACE=1        counts of calls and launches at the end; 2: every launch
#include "memory.hpp"
#include "threads.hpp"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

namespace {
enum Result { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NOT_FOUND = 500 };

long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atol(text) : otherwise;
}

std::recursive_mutex one_at_a_time;
std::map<std::string, long> counts;

struct Device { size_t used = 0, peak = 0; };
std::vector<Device> &devices() {
    static std::vector<Device> all(setting("EMULATED_DEVICES", 1));
    return all;
}
size_t memory_size() {
    static size_t size = setting("EMULATED_MEMORY", 8L << 30);
    return size;
}
thread_local Device *current;  // a context is its device

struct Allocation { size_t bytes; Device *device; };
std::map<uintptr_t, Allocation> allocations;

const Allocation *allocation_of(uintptr_t from, size_t bytes) {
    auto after = allocations.upper_bound(from);
    if (after == allocations.begin()) return nullptr;
    auto &[start, allocation] = *--after;
    return from + bytes <= start + allocation.bytes ? &allocation : nullptr;
}

struct Parameter { size_t bytes; bool is_float, is_pointer; };
struct Function {
    std::string name;
    std::vector<Parameter> parameters;
    bool barriers;
    void *host = nullptr;
    size_t shared_allowed = 48 << 10;
};
typedef std::map<std::string, Function> Module;

// "<what comes before>.param .u64 .ptr .align 1 name" or "… .align 2 .b8 name[2]"
Parameter parameter(const std::string &text) {
    auto has = [&](const char *what) { return text.find(what) != std::string::npos; };
    size_t array = text.find('[');
    if (array != std::string::npos) return {(size_t)atoi(text.c_str() + array + 1), false, false};
    size_t bytes = has("64 ") ? 8 : has("32 ") ? 4 : has("16 ") ? 2 : 1;
    return {bytes, has(".f32 ") || has(".f64 "), has(".ptr ")};
}

Module *read_ptx(const std::string &ptx) {
    auto *module = new Module;
    const std::string entry = ".entry ";
    for (size_t at = ptx.find(entry); at != std::string::npos;) {
        size_t open = ptx.find('(', at), close = ptx.find(')', open), next = ptx.find(entry, close);
        Function function;
        function.name = ptx.substr(at + entry.size(), open - at - entry.size());
        function.name.erase(function.name.find_last_not_of(" \t\n") + 1);
        std::string list = ptx.substr(open + 1, close - open - 1) + ",";
        for (size_t from = 0, comma; (comma = list.find(',', from)) != std::string::npos; from = comma + 1)
            if (list.find(".param", from) < comma) function.parameters.push_back(parameter(list.substr(from, comma - from)));
        std::string body = ptx.substr(close, std::min(next, ptx.size()) - close);
        // They may also be in a function that it calls.
        for (const char *what : {"bar.", "barrier", "shfl", "vote", "call"})
            function.barriers |= body.find(what) != std::string::npos;
        (*module)[function.name] = function;
        at = next;
    }
    return module;
}
}  // namespace

Call::Call(std::string name) : lock(one_at_a_time), name(name) {
    static bool traced = setting("EMULATED_TRACE", 0) && !atexit([] {
        for (auto &[name, count] : counts) fprintf(stderr, "emulator: %8ld x %s\n", count, name.c_str());
    });
    if (traced) counts[name]++;
}

void Call::die(const std::string &why) const {
    fprintf(stderr, "emulator: %s: %s\n", name.c_str(), why.c_str());
    abort();
}

void Call::check(const void *from, size_t bytes, const std::string &what) const {
    if (!bytes) return;
    const Allocation *allocation = allocation_of((uintptr_t)from, bytes);
    if (!allocation) die(what + " is not memory of a GPU, or goes past its end");
    if (allocation->device != current) die(what + " is memory of another GPU");
}

API int cuInit(unsigned) { return SUCCESS; }
API int cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
API int cuGetErrorName(int code, const char **text) {
    static thread_local char name[40];
    snprintf(name, sizeof name, "CUDA_ERROR_%d", code);
    *text = name;
    return SUCCESS;
}
API int cuGetErrorString(int code, const char **text) { return cuGetErrorName(code, text); }

API int cuDeviceGetCount(int *count) { *count = devices().size(); return SUCCESS; }
API int cuDeviceGet(int *device, int n) {
    *device = n;
    return n >= 0 && n < (int)devices().size() ? SUCCESS : INVALID_DEVICE;
}
API int cuDeviceGetName(char *name, int size, int) { snprintf(name, size, "emulated"); return SUCCESS; }
API int cuDeviceTotalMem_v2(size_t *bytes, int) { *bytes = memory_size(); return SUCCESS; }
API int cuDeviceGetAttribute(int *value, int attribute, int) {
    // enum CUdevice_attribute
    static const std::map<int, int> values{
        {1, 1024},                               // threads of a block
        {8, 48 << 10},                           // shared memory of a block
        {10, 32},                                // threads of a warp
        {16, 4},                                 // multiprocessors
        {39, 2048},                              // threads of a multiprocessor
        {75, 8}, {76, 0},                        // compute capability
        {97, (int)emulator::LARGEST_SHARED},     // shared memory of a block that asks for it
        {115, 1},                                // memory pools
    };
    auto found = values.find(attribute);
    *value = found == values.end() ? 0 : found->second;
    return SUCCESS;
}

API int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &devices()[device]; return SUCCESS; }
API int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API int cuCtxSetCurrent(void *context) { current = (Device *)context; return SUCCESS; }
API int cuCtxGetCurrent(void **context) { *context = current; return SUCCESS; }
API int cuCtxGetDevice(int *device) { *device = current - devices().data(); return SUCCESS; }
API int cuCtxSynchronize() { return SUCCESS; }

// Nothing runs later than it is asked for, so streams and events are names only.
API int cuStreamCreate(void **stream, unsigned) { *stream = malloc(1); return SUCCESS; }
API int cuStreamDestroy_v2(void *stream) { free(stream); return SUCCESS; }
API int cuStreamSynchronize(void *) { return SUCCESS; }
API int cuStreamWaitEvent(void *, void *, unsigned) { return SUCCESS; }
API int cuStreamIsCapturing(void *, int *status) { *status = 0; return SUCCESS; }
API int cuEventCreate(void **event, unsigned) { *event = malloc(1); return SUCCESS; }
API int cuEventDestroy_v2(void *event) { free(event); return SUCCESS; }
API int cuEventRecord(void *, void *) { return SUCCESS; }
API int cuEventSynchronize(void *) { return SUCCESS; }
API int cuEventQuery(void *) { return SUCCESS; }

API int cuMemAlloc_v2(void **to, size_t bytes) {
    Call call(__func__);
    if (!bytes || !current) return INVALID_VALUE;
    // Exactly as many as asked for, so that AddressSanitizer sees the end.
    if (bytes > memory_size() - current->used || posix_memalign(to, 256, bytes)) return OUT_OF_MEMORY;
    memset(*to, 0xff, bytes);  // NaN: what is read before it is written shows
    allocations[(uintptr_t)*to] = {bytes, current};
    current->used += bytes;
    current->peak = std::max(current->peak, current->used);
    return SUCCESS;
}
API int cuMemAllocAsync(void **to, size_t bytes, void *) { return cuMemAlloc_v2(to, bytes); }
API int cuMemFree_v2(void *memory) {
    Call call(__func__);
    if (!memory) return SUCCESS;
    auto found = allocations.find((uintptr_t)memory);
    if (found == allocations.end()) call.die("that was never allocated");
    found->second.device->used -= found->second.bytes;
    allocations.erase(found);
    free(memory);
    return SUCCESS;
}
API int cuMemFreeAsync(void *memory, void *) { return cuMemFree_v2(memory); }
API int cuMemGetInfo_v2(size_t *free, size_t *total) {
    Call call(__func__);
    *total = memory_size();
    *free = *total - (current ? current->used : 0);
    return SUCCESS;
}
API int cuDeviceGetDefaultMemPool(void **pool, int device) { *pool = &devices()[device]; return SUCCESS; }
API int cuMemPoolSetAttribute(void *pool, int attribute, void *) {
    if (attribute == 8) ((Device *)pool)->peak = ((Device *)pool)->used;
    return SUCCESS;
}
API int cuMemPoolGetAttribute(void *pool, int attribute, uint64_t *value) {
    auto *device = (Device *)pool;
    *value = attribute == 7 ? device->used : attribute == 8 ? device->peak : 0;
    return SUCCESS;
}

API int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, void *) {
    Call call(__func__);
    call.check(to, bytes, "its destination");
    memcpy(to, from, bytes);
    return SUCCESS;
}
API int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t bytes, void *) {
    Call call(__func__);
    call.check(from, bytes, "its source");
    memcpy(to, from, bytes);
    return SUCCESS;
}
API int cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t bytes, void *) {
    Call call(__func__);
    call.check(to, bytes, "its destination");
    call.check(from, bytes, "its source");
    memmove(to, from, bytes);
    return SUCCESS;
}
API int cuMemcpyPeerAsync(void *to, void *to_device, const void *from, void *from_device, size_t bytes, void *) {
    Call call(__func__);
    Device *before = current;
    current = (Device *)to_device;
    call.check(to, bytes, "its destination");
    current = (Device *)from_device;
    call.check(from, bytes, "its source");
    current = before;
    memmove(to, from, bytes);
    return SUCCESS;
}
API int cuMemsetD8Async(void *to, unsigned char value, size_t bytes, void *) {
    Call call(__func__);
    call.check(to, bytes, "its destination");
    memset(to, value, bytes);
    return SUCCESS;
}

API int cuModuleLoadData(void **module, const char *ptx) { Call call(__func__); *module = read_ptx(ptx); return SUCCESS; }
API int cuModuleUnload(void *) { return SUCCESS; }
API int cuModuleGetFunction(void **function, Module *module, const char *name) {
    Call call(__func__);
    auto found = module->find(name);
    if (found == module->end()) return NOT_FOUND;
    static void *self = [] {
        Dl_info info;
        dladdr((void *)cuInit, &info);
        return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    }();
    found->second.host = dlsym(self, name);
    if (!found->second.host) call.die(std::string(name) + " is not among the kernels that were compiled for the host");
    *function = &found->second;
    return SUCCESS;
}
API int cuFuncGetAttribute(int *value, int, void *) { *value = 0; return SUCCESS; }
API int cuFuncSetAttribute(Function *function, int attribute, int value) {
    Call call(__func__);
    constexpr int MAX_DYNAMIC_SHARED_SIZE_BYTES = 8;
    if (attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES) return SUCCESS;
    if (value < 0 || (size_t)value > emulator::LARGEST_SHARED) return INVALID_VALUE;
    function->shared_allowed = value;
    return SUCCESS;
}

API int cuLaunchKernel(Function *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                       unsigned shared, void *, void **arguments, void **) {
    Call call(function->name);
    static bool loud = setting("EMULATED_TRACE", 0) > 1;
    if (loud)
        fprintf(stderr, "emulator: %s<<<(%u, %u, %u), (%u, %u, %u), %u>>>%s\n", function->name.c_str(), gx, gy, gz, bx, by,
                bz, shared, function->barriers ? " with barriers" : "");
    bool grid_fits = gx && gy && gz && gx < 1u << 31 && gy < 1 << 16 && gz < 1 << 16;
    bool block_fits = bx && by && bz && bx <= 1024 && by <= 1024 && bz <= 64 && bx * by * bz <= 1024;
    if (!grid_fits || !block_fits || shared > function->shared_allowed) return INVALID_VALUE;

    // By the calling conventions of x86_64 and aarch64, integers and pointers are passed apart from floats, each in order,
    // and what is left over on the stack: one signature fits every kernel of up to 16 of these and 8 of those.
    uint64_t n[16] = {0};
    double f[8] = {0};  // the bytes of a float or a double
    size_t integers = 0, floats = 0;
    for (size_t i = 0; i < function->parameters.size(); i++) {
        const Parameter &parameter = function->parameters[i];
        uint64_t value = 0;
        if (parameter.bytes > sizeof value || integers == 16 || floats == 8) call.die("more parameters than are emulated");
        memcpy(&value, arguments[i], parameter.bytes);
        if (parameter.is_pointer && value) call.check((void *)value, 1, "parameter " + std::to_string(i));
        if (parameter.is_float)
            memcpy(&f[floats++], &value, sizeof value);
        else
            n[integers++] = value;
    }
    typedef uint64_t U;
    typedef double D;
    auto kernel = (void (*)(U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, D, D, D, D, D, D, D, D))function->host;
    auto body = [&] {
        kernel(n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12], n[13], n[14], n[15], f[0],
               f[1], f[2], f[3], f[4], f[5], f[6], f[7]);
    };
    emulator::run(body, dim3(gx, gy, gz), dim3(bx, by, bz), shared, function->barriers);
    return SUCCESS;
}
