// Forward pass of WKV6 and WKV5 on tensor cores.
#include "cuda/chunk/forward.cuh"
#include "cuda/kernels.h"
#include "cuda/wkv6/chunk_prepare.cuh"
#include "cuda/wkv6/chunk_state.cuh"

namespace flash_rwkv::cuda {
namespace {

template <class T, int kSize_, bool kDecayOfTokens, bool kSummarizes>
struct ChunkForward {
  using Type = T;
  using Params = Wkv6Params;
  static constexpr int kSize = kSize_;
  // Two blocks of ten warps, or one of twelve, leave a thread 96 or 168 registers.
  static constexpr int kMostWarps = kSize == 64 ? 10 : 12;
  static constexpr int kBlocksPerProcessor = kSize == 64 ? 2 : 1;
  using Summarize = ChunkForward<T, kSize, kDecayOfTokens, true>;
  using Stage = wkv6_chunk::Stage<T, kSize>;
  using Prepare = wkv6_chunk::Prepare<T, kSize, kDecayOfTokens, kSummarizes>;
  using StateWarp = wkv6_chunk::StateWarp<T, kSize>;

  static __host__ __device__ constexpr int memory_of_preparer(bool wide_decay) {
    return wkv6_chunk::PrepareMemory<T, kSize, kDecayOfTokens, kSummarizes>::bytes(wide_decay);
  }
};

// f(the Op), or nothing where there is none.
template <class F>
void dispatch(const Wkv6Params& p, const F& f) {
  const auto of_size = [&](auto type, auto size) {
    using T = decltype(type);
    if (p.decay_per_token) f(ChunkForward<T, size.value, true, false>());
    else f(ChunkForward<T, size.value, false, false>());
  };
  dispatch_dtype(p.r.dtype, [&](auto type) {
    if constexpr (sizeof(type) == 2) {
      if (p.head_size == 64) of_size(type, std::integral_constant<int, 64>());
      else if (p.head_size == 128) of_size(type, std::integral_constant<int, 128>());
    }
    return cudaSuccess;
  });
}

}  // namespace

int64_t wkv6_chunk_scratch_bytes(const Wkv6Params& p) {
  int64_t bytes = 0;
  dispatch(p, [&](auto op) { bytes = chunk::bytes_of_summaries<decltype(op)>(p); });
  return bytes;
}

cudaError_t wkv6_chunk_forward(const Wkv6Params& p, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  dispatch(p, [&](auto op) { error = chunk::launch_forward<decltype(op)>(p, stream); });
  return error;
}

}  // namespace flash_rwkv::cuda
