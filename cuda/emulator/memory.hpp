// The emulated devices and their memory.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

#define API extern "C" __attribute__((visibility("default")))

// One call of the driver or a library: only one runs at a time.
class Call {
    std::lock_guard<std::recursive_mutex> lock;
    std::string name;

public:
    explicit Call(std::string name);
    // [from, from + bytes) has to lie in one allocation of the current device, or the process ends.
    void check(const void *from, size_t bytes, const std::string &what) const;
    [[noreturn]] void die(const std::string &why) const;
};
