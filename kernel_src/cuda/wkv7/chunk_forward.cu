// Forward pass of WKV7 on tensor cores.
#include "cuda/chunk/forward.cuh"
#include "cuda/kernels.h"
#include "cuda/wkv7/chunk_prepare.cuh"
#include "cuda/wkv7/chunk_state.cuh"

namespace flash_rwkv::cuda {
inline namespace wkv7_chunk_forward_unit {

using namespace wkv7_chunk;

template <class T, int kSize_>
struct ChunkForward {
  using Type = T;
  using Params = Wkv7Params;
  static constexpr int kSize = kSize_;
  // Two blocks of eight warps, or one of twelve, leave a thread 128 or 168 registers.
  static constexpr int kMostWarps = kSize == 64 ? 8 : 12;
  static constexpr int kBlocksPerProcessor = kSize == 64 ? 2 : 1;
  using Summarize = void;
  using Stage = wkv7_chunk::Stage<kSize>;
  using Prepare = wkv7_chunk::Prepare<T, kSize>;
  using StateWarp = wkv7_chunk::StateWarp<T, kSize>;

  static __host__ __device__ constexpr int memory_of_preparer(bool wide_decay) {
    return PrepareMemory<kSize>::bytes(wide_decay);
  }
};

}  // namespace wkv7_chunk_forward_unit

cudaError_t wkv7_chunk_forward(const Wkv7Params& p, cudaStream_t stream) {
  return dispatch_dtype(p.r.dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (sizeof(T) == 2) {
      if (p.head_size == 64) return chunk::launch_forward<ChunkForward<T, 64>>(p, stream);
      if (p.head_size == 128) return chunk::launch_forward<ChunkForward<T, 128>>(p, stream);
    }
    return cudaErrorInvalidValue;
  });
}

}  // namespace flash_rwkv::cuda
