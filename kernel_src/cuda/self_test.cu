// One block adds up its thread numbers through warp shuffles and shared memory, and every thread checks
// the sum: small, but it exercises the launch, the stream, barriers and the code chosen for this device.

#include "self_test.h"

#include "cuda/launch.h"

namespace flash_rwkv::cuda {
inline namespace self_test_unit {

constexpr int kWarpSize = 32;
constexpr int kNumWarps = kSelfTestThreads / kWarpSize;
constexpr int kExpectedSum = kSelfTestThreads * (kSelfTestThreads - 1) / 2;

__global__ void __launch_bounds__(kSelfTestThreads) self_test_kernel(int32_t* result) {
  __shared__ int warp_sums[kNumWarps];

  // Sum within the warp.
  int sum = static_cast<int>(threadIdx.x);
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  }
  if (threadIdx.x % kWarpSize == 0) warp_sums[threadIdx.x / kWarpSize] = sum;
  __syncthreads();

  // Every thread adds the warps and compares.
  int total = 0;
  for (int warp = 0; warp < kNumWarps; ++warp) total += warp_sums[warp];
  const int agreeing = __syncthreads_count(total == kExpectedSum);

  if (threadIdx.x == 0) {
    result[0] = agreeing;
#ifdef __CUDA_ARCH__
    result[1] = __CUDA_ARCH__;
#endif
  }
}

}  // namespace self_test_unit

cudaError_t launch_self_test(const SelfTestParams& params) {
  return launch(self_test_kernel, 1, kSelfTestThreads, 0, params.stream, params.result);
}

}  // namespace flash_rwkv::cuda
