// Launches: one block after the other.
#include "simt.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>
#include <optional>
#include <random>
#include <vector>

#include "block.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {
namespace {

std::string last_message;
std::map<const void*, size_t> allowed_bytes;

// One launch at a time: what kernels see of it is in global variables.
std::mutex& launches() {
  static std::mutex mutex;
  return mutex;
}

bool refuse(const std::string& why) {
  last_message = why;
  return false;
}

struct Order {
  bool reverse = false;
  std::optional<std::minstd_rand> chance;
};

std::optional<Order> wanted_order() {
  const char* const text = std::getenv("FLASH_RWKV_SIMT_ORDER");
  if (text == nullptr || std::strcmp(text, "forward") == 0) return Order{};
  if (std::strcmp(text, "reverse") == 0) return Order{true, {}};
  char* end = nullptr;
  const unsigned long seed = std::strtoul(text, &end, 10);
  if (end == text || *end != 0) return std::nullopt;
  return Order{false, std::minstd_rand(static_cast<unsigned>(seed) + 1)};
}

}  // namespace

const std::string& message() { return last_message; }

void allow_shared_bytes(const void* kernel, int bytes) {
  const std::lock_guard lock(launches());
  allowed_bytes[kernel] = bytes;
}

bool run(const Launch& launch) {
  const std::lock_guard lock(launches());
  const auto found = allowed_bytes.find(launch.kernel);
  const size_t allowed = std::max(kSharedBytes, found == allowed_bytes.end() ? 0 : found->second);
  if (launch.blocks < 1 || launch.threads < 1 || launch.threads > kMostThreads)
    return refuse(std::to_string(launch.blocks) + " blocks of " + std::to_string(launch.threads) + " threads");
  if (launch.shared_bytes < 0 || static_cast<size_t>(launch.shared_bytes) > allowed)
    return refuse(std::to_string(launch.shared_bytes) + " bytes of dynamic shared memory, of which " +
                  std::to_string(allowed) + " are allowed");
  std::optional<Order> order = wanted_order();
  if (!order) return refuse("FLASH_RWKV_SIMT_ORDER is neither forward nor reverse nor a number");

  gridDim = {static_cast<unsigned>(launch.blocks), 1, 1};
  blockDim = {static_cast<unsigned>(launch.threads), 1, 1};
  std::minstd_rand* const chance = order->chance ? &*order->chance : nullptr;
  std::vector<int64_t> blocks(launch.blocks);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (order->reverse) std::reverse(blocks.begin(), blocks.end());
  if (chance != nullptr) std::shuffle(blocks.begin(), blocks.end(), *chance);
  Block running(launch, static_shared());
  block = &running;
  for (const int64_t index : blocks) {
    running.run(index, order->reverse, chance);
    if (!running.failure.empty()) return refuse("block " + std::to_string(index) + ": " + running.failure);
  }
  return true;
}

}  // namespace simt
