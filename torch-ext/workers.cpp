#include "workers.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <memory>

namespace flash_rwkv {
namespace {

// Scratch of one thread, kept between calls: mapping fresh pages costs more than a decode step.
void* thread_scratch(size_t bytes) {
  thread_local std::unique_ptr<cpu::SharedBuffer> scratch;
  thread_local size_t size = 0;
  if (size < bytes) {
    size = 0;
    scratch.reset();
    scratch = std::make_unique<cpu::SharedBuffer>(bytes);
    size = bytes;
  }
  return scratch->data();
}

// Some 10 to 20 microseconds of work.
constexpr int64_t kUpdatesPerThread = int64_t{1} << 17;

void run(int threads, int64_t items, size_t scratch_bytes, cpu::Workers::Body body, void* context) {
  if (items == 0) return;
  // Items differ in length (packed sequences), so workers draw them one at a time.
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    void* scratch = thread_scratch(scratch_bytes);
    for (int64_t item = next.fetch_add(1); item < items; item = next.fetch_add(1)) body(context, item, scratch);
  };
  const int64_t used = std::min<int64_t>(items, threads);
  if (used == 1) return work();
  torch::stable::parallel_for(0, used, 1, [&](int64_t, int64_t) { work(); });
}

}  // namespace

cpu::Workers torch_workers(int64_t updates) {
  const int64_t busy = (updates + kUpdatesPerThread - 1) / kUpdatesPerThread;
  return {static_cast<int>(std::clamp<int64_t>(busy, 1, torch::stable::get_num_threads())), &run};
}

}  // namespace flash_rwkv
