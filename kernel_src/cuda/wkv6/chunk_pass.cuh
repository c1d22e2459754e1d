// A pass over the tokens of a head, forwards or back, for chunk/forward.cuh. Back, with k for r, r for k and y's gradient
// for v, it makes what forward has as y the gradient of v, and its state is the gradient of the state.
#pragma once

#include "cuda/chunk/forward.cuh"
#include "cuda/wkv6/chunk_prepare.cuh"
#include "cuda/wkv6/chunk_state.cuh"

namespace flash_rwkv::cuda::wkv6_chunk {

template <class T, int kSize_, bool kDecayOfTokens, bool kBack_, bool kSummarizes = false>
struct Pass {
  using Type = T;
  using Params = Wkv6Params;
  static constexpr int kSize = kSize_;
  static constexpr bool kBack = kBack_;
  // Two blocks of ten warps, or one of twelve, leave a thread 96 or 168 registers.
  static constexpr int kMostWarps = kSize == 64 ? 10 : 12;
  static constexpr int kBlocksPerProcessor = kSize == 64 ? 2 : 1;
  using Summarize = Pass<T, kSize, kDecayOfTokens, kBack, true>;
  using Stage = wkv6_chunk::Stage<Operand<T, kBack>, kSize>;
  using Prepare = wkv6_chunk::Prepare<T, kSize, kDecayOfTokens, kBack, kSummarizes>;
  using StateWarp = wkv6_chunk::StateWarp<T, kSize, kBack>;

  static __host__ __device__ constexpr int memory_of_preparer(bool wide_decay) {
    return PrepareMemory<T, kSize, kDecayOfTokens, kBack, kSummarizes>::bytes(wide_decay);
  }
};

// f(T(), size, whether decays are of tokens), the latter two as types, or nothing for what no kernel is for.
template <class F>
void dispatch(const Wkv6Params& p, const F& f) {
  const auto of_size = [&](auto type, auto size) {
    if (p.decay_per_token) f(type, size, std::true_type());
    else f(type, size, std::false_type());
  };
  dispatch_dtype(p.r.dtype, [&](auto type) {
    if constexpr (sizeof(type) == 2) {
      if (p.head_size == 64) of_size(type, std::integral_constant<int, 64>());
      else if (p.head_size == 128) of_size(type, std::integral_constant<int, 128>());
    }
    return cudaSuccess;
  });
}

}  // namespace flash_rwkv::cuda::wkv6_chunk
