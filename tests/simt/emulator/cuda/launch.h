// In the place of the kernels' own cuda/launch.h.
#pragma once

#include "cuda_runtime_api.h"

namespace simt {

// As <<<blocks, threads, shared_bytes, stream>>>: the error is found by cudaGetLastError.
template <class... Params, class... Arguments>
void launch(void (*kernel)(Params...), int64_t blocks, int64_t threads, int64_t shared_bytes, cudaStream_t,
            const Arguments&... arguments) {
  auto call = [&] { kernel(arguments...); };
  const bool ran = run({reinterpret_cast<const void*>(kernel), blocks, threads, shared_bytes,
                        [](void* given) { (*static_cast<decltype(call)*>(given))(); }, &call});
  if (!ran) last_error = cudaErrorLaunchFailure;
}

}  // namespace simt

namespace flash_rwkv::cuda {

template <class... Params, class... Arguments>
cudaError_t launch(void (*kernel)(Params...), int64_t blocks, int threads, int shared_bytes, cudaStream_t stream,
                   const Arguments&... arguments) {
  simt::launch(kernel, blocks, threads, shared_bytes, stream, arguments...);
  return cudaGetLastError();
}

}  // namespace flash_rwkv::cuda
