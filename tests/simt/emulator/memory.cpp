#include "memory.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "simt.h"

namespace simt {

char* map_memory(size_t bytes) {
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  return static_cast<char*>(memory);
}

void poison(void* from, size_t bytes) { std::memset(from, kPoison, bytes); }

bool is_poison(const char* from, size_t bytes) {
  return std::all_of(from, from + bytes, [](char byte) { return static_cast<unsigned char>(byte) == kPoison; });
}

// `__shared__` variables are thread_local: of one OS thread, so shared by its fibers, and side by side in memory.
static thread_local volatile char any_shared_variable;

Range static_shared() {
  any_shared_variable = 0;  // without a use there may be no memory yet
  Range range;
  dl_iterate_phdr(
      [](dl_phdr_info* module, size_t, void* out) {
        Range tls;
        bool ours = false;
        const auto here = reinterpret_cast<uintptr_t>(&static_shared);
        for (int i = 0; i < module->dlpi_phnum; ++i) {
          const auto& part = module->dlpi_phdr[i];
          const uintptr_t begin = module->dlpi_addr + part.p_vaddr;
          if (part.p_type == PT_LOAD) ours = ours || (begin <= here && here < begin + part.p_memsz);
          if (part.p_type == PT_TLS) tls = {static_cast<char*>(module->dlpi_tls_data), part.p_memsz};
        }
        if (ours) *static_cast<Range*>(out) = tls;
        return static_cast<int>(ours);
      },
      &range);
  return range;
}

char* dynamic_memory() {
  static char* const memory = map_memory(kGuard + kMostSharedBytes + kGuard);
  return memory + kGuard;
}

}  // namespace simt
