#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

namespace flash_rwkv::cuda {

inline constexpr int kSelfTestThreads = 1024;

// What the self test writes: how many threads saw the right sum (all, if the device executes this
// binary), and the architecture of the code that ran, e.g. 900 for capability 9.0.
struct SelfTestParams {
  int32_t* result;  // [2], on the device
  cudaStream_t stream;
};

cudaError_t launch_self_test(const SelfTestParams& params);

}  // namespace flash_rwkv::cuda
