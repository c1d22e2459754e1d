#include "cuda/heads/decode.cuh"
#include "cuda/kernels.h"
#include "cuda/wkv7/recurrence.cuh"

namespace flash_rwkv::cuda {

// Several tokens, and states of an odd layout, are a short forward pass over the caller's own states.
cudaError_t wkv7_step(const Wkv7Params& p, cudaStream_t stream) {
  const bool simple = p.sequences.tokens == 1 && has_aligned_rows(p.state, 16);
  return simple ? decode<Wkv7>(p, stream) : wkv7_forward(p, stream);
}

}  // namespace flash_rwkv::cuda
