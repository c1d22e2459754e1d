// Forward pass of WKV6 and WKV5 on tensor cores.
#include "cuda/chunk/forward.cuh"
#include "cuda/kernels.h"
#include "cuda/wkv6/chunk_prepare.cuh"
#include "cuda/wkv6/chunk_state.cuh"

namespace flash_rwkv::cuda {
namespace {

template <class T, int kSize_, bool kDecayOfTokens>
struct ChunkForward {
  using Type = T;
  using Params = Wkv6Params;
  static constexpr int kSize = kSize_;
  // Two blocks of ten warps, or one of twelve, leave a thread 96 or 168 registers.
  static constexpr int kMostWarps = kSize == 64 ? 10 : 12;
  static constexpr int kBlocksPerProcessor = kSize == 64 ? 2 : 1;
  using Stage = wkv6_chunk::Stage<T, kSize>;
  using Prepare = wkv6_chunk::Prepare<T, kSize, kDecayOfTokens>;
  using StateWarp = wkv6_chunk::StateWarp<T, kSize>;

  static __host__ __device__ constexpr int memory_of_preparer(bool wide_decay) {
    return wkv6_chunk::PrepareMemory<T, kSize, kDecayOfTokens>::bytes(wide_decay);
  }
};

template <class T, int kSize>
cudaError_t launch_chunks(const Wkv6Params& p, cudaStream_t stream) {
  return p.decay_per_token ? chunk::launch_forward<ChunkForward<T, kSize, true>>(p, stream)
                           : chunk::launch_forward<ChunkForward<T, kSize, false>>(p, stream);
}

}  // namespace

cudaError_t wkv6_chunk_forward(const Wkv6Params& p, cudaStream_t stream) {
  return dispatch_dtype(p.r.dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (sizeof(T) == 2) {
      if (p.head_size == 64) return launch_chunks<T, 64>(p, stream);
      if (p.head_size == 128) return launch_chunks<T, 128>(p, stream);
    }
    return cudaErrorInvalidValue;
  });
}

}  // namespace flash_rwkv::cuda
