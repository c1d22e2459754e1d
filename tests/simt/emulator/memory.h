// Memory of the device, and what of it nobody has written.
#pragma once

#include <cstddef>

namespace simt {

struct Range {
  char* begin = nullptr;
  size_t bytes = 0;
  bool holds(const void* at, size_t size) const {
    const char* const first = static_cast<const char*>(at);
    return begin <= first && first + size <= begin + bytes;
  }
};

char* map_memory(size_t bytes);
void poison(void* from, size_t bytes);
bool is_poison(const char* from, size_t bytes);

// All `__shared__` variables of the module.
Range static_shared();

// Bytes before and behind dynamic shared memory that must stay poison.
constexpr size_t kGuard = 4096;
char* dynamic_memory();

}  // namespace simt
