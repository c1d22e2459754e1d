// What is CUDA's own syntax in a launch. The emulator of tests/simt has this file in C++.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace flash_rwkv::cuda {

// Starts `blocks` blocks of `threads` threads, with `shared_bytes` of dynamic shared memory each.
template <class... Params, class... Arguments>
cudaError_t launch(void (*kernel)(Params...), int64_t blocks, int threads, int shared_bytes, cudaStream_t stream,
                   const Arguments&... arguments) {
#if defined(__CUDACC_RTC__)
  // No host's code is made of this; but a kernel is compiled if its address is asked for.
  return kernel == nullptr ? cudaErrorInvalidDeviceFunction : cudaSuccess;
#else
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
#endif
}

}  // namespace flash_rwkv::cuda
