// The CPU kernels as the rest of the project sees them: one table of functions an instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "wkv_params.h"

namespace flash_rwkv::cpu {

// Runs body(context, item, scratch) for every item in [0, items). scratch holds scratch_bytes of 64-byte aligned
// memory of the calling worker's own. Items may run in any order, on up to `threads` threads.
struct Workers {
  using Body = void (*)(void* context, int64_t item, void* scratch);
  int threads = 1;
  void (*run)(int threads, int64_t items, size_t scratch_bytes, Body body, void* context) = nullptr;
};

// 64-byte aligned memory that every worker of one call can see; freed with the object.
class SharedBuffer {
 public:
  explicit SharedBuffer(size_t bytes);
  ~SharedBuffer();
  SharedBuffer(const SharedBuffer&) = delete;
  SharedBuffer& operator=(const SharedBuffer&) = delete;
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

struct KernelTable {
  const char* isa;
  void (*wkv4_forward)(const Wkv4Params&, const Workers&);
  void (*wkv4_backward)(const Wkv4Params&, const Wkv4Gradients&, const Workers&);
  void (*wkv6_forward)(const Wkv6Params&, const Workers&);
  void (*wkv6_backward)(const Wkv6Params&, const Wkv6Gradients&, const Workers&);
  void (*wkv7_forward)(const Wkv7Params&, const Workers&);
  void (*wkv7_backward)(const Wkv7Params&, const Wkv7Gradients&, const Workers&);
};

// One definition in each isa_*.cpp.
#if defined(__ARM_NEON)
namespace neon {
extern const KernelTable table;
}
#else
namespace portable {
extern const KernelTable table;
}
#endif
#if defined(__x86_64__)
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
#endif

// The best table that this processor runs, or the one that FLASH_RWKV_CPU_ISA names (avx512, avx2, portable, neon).
// Throws std::runtime_error when that name is unknown or the processor lacks the instructions.
const KernelTable& kernels();

}  // namespace flash_rwkv::cpu
