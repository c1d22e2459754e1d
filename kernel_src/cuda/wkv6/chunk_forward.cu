// Forward pass of WKV6 and WKV5 on tensor cores.
#include "cuda/kernels.h"
#include "cuda/wkv6/chunk_pass.cuh"

namespace flash_rwkv::cuda {
inline namespace wkv6_chunk_forward_unit {

// f(the Op), or nothing where there is none.
template <class F>
void dispatch_forward(const Wkv6Params& p, const F& f) {
  wkv6_chunk::dispatch(p, [&](auto type, auto size, auto decay_of_tokens) {
    f(wkv6_chunk::Pass<decltype(type), size.value, decay_of_tokens.value, false>());
  });
}

}  // namespace wkv6_chunk_forward_unit

int64_t wkv6_chunk_scratch_bytes(const Wkv6Params& p) {
  int64_t bytes = 0;
  dispatch_forward(p, [&](auto op) { bytes = chunk::bytes_of_summaries<decltype(op)>(p); });
  return bytes;
}

cudaError_t wkv6_chunk_forward(const Wkv6Params& p, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  dispatch_forward(p, [&](auto op) { error = chunk::launch_forward<decltype(op)>(p, stream); });
  return error;
}

}  // namespace flash_rwkv::cuda
