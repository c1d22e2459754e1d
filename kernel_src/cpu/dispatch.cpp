// Chooses the kernels that this processor can run. Compiled for the oldest processor we serve.
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace flash_rwkv::cpu {
namespace {

struct Candidate {
  const KernelTable* table;
  bool supported;
};

// Every flag that isa_<name>.cpp is compiled with must be asked for here. Best first.
const Candidate* candidates(int* count) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  static const Candidate all[] = {{&avx512::table, has_avx512}, {&avx2::table, has_avx2}, {&portable::table, true}};
#elif defined(__ARM_NEON)
  static const Candidate all[] = {{&neon::table, true}};
#else
  static const Candidate all[] = {{&portable::table, true}};
#endif
  *count = sizeof(all) / sizeof(all[0]);
  return all;
}

const KernelTable& choose() {
  int count = 0;
  const Candidate* all = candidates(&count);
  const char* wanted = std::getenv("FLASH_RWKV_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    for (int i = 0; i < count; ++i)
      if (all[i].supported) return *all[i].table;
  }
  std::string names;
  for (int i = 0; i < count; ++i) {
    if (!all[i].supported) continue;
    if (std::string(all[i].table->isa) == wanted) return *all[i].table;
    names += (names.empty() ? "" : ", ") + std::string(all[i].table->isa);
  }
  throw std::runtime_error("FLASH_RWKV_CPU_ISA must be one of the instruction sets of this processor (" + names +
                           "), got '" + wanted + "'; unset it to take the best one");
}

}  // namespace

const KernelTable& kernels() {
  static const KernelTable& table = choose();
  return table;
}

SharedBuffer::SharedBuffer(size_t bytes) : data_(std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64)) {
  if (data_ == nullptr) throw std::bad_alloc();
}

SharedBuffer::~SharedBuffer() { std::free(data_); }

}  // namespace flash_rwkv::cpu
