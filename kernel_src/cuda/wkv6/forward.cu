#include "cuda/heads/forward.cuh"
#include "cuda/kernels.h"
#include "cuda/wkv6/recurrence.cuh"

namespace flash_rwkv::cuda {

cudaError_t wkv6_forward(const Wkv6Params& p, cudaStream_t stream) { return forward<Wkv6>(p, stream); }

}  // namespace flash_rwkv::cuda
