#include "cuda/heads/forward.cuh"
#include "cuda/kernels.h"
#include "cuda/wkv7/recurrence.cuh"

namespace flash_rwkv::cuda {

cudaError_t wkv7_forward(const Wkv7Params& p, cudaStream_t stream) { return forward<Wkv7>(p, stream); }

}  // namespace flash_rwkv::cuda
