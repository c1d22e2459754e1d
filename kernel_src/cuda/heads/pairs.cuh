// What one token of a group sends to a later one, or to itself, in the recurrences of single columns and rows: a factor
// for every pair of tokens, which is a dot product over columns or over rows.
#pragma once

#include "cuda/heads/layout.cuh"
#include "cuda/heads/stage.cuh"

namespace flash_rwkv::cuda {

constexpr int kGroup = kStageTokens;
constexpr int kPairs = 16;  // ten of a token with itself or a later one, then six with a later one

__host__ __device__ constexpr int from_on(int earlier, int later) {
  return earlier * (2 * kGroup + 1 - earlier) / 2 + later - earlier;
}
__host__ __device__ constexpr int behind(int earlier, int later) {
  return 10 + earlier * (2 * kGroup - 1 - earlier) / 2 + later - earlier - 1;
}

// kSets sets of factors, a set by kLanesEach lanes of each warp. Warps leave their shares in shared memory; after a
// barrier every warp adds them up for itself, in their order.
template <int kSets, int kWarps>
struct PairFactors {
  static constexpr int kLanesEach = kWarp / kSets;
  static constexpr int kFloats = kSets * kPairs;  // a warp
  using Sums = ScatteredSums<kLanesEach / 2, 1, kPairs>;

  __device__ static __forceinline__ int set() { return static_cast<int>(threadIdx.x) % kWarp / kLanesEach; }
  __device__ static __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kLanesEach; }

  __device__ static __forceinline__ void leave(float (&mine)[kPairs], float* shares) {
    Sums::reduce(mine);
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    if (Sums::owns_first()) shares[warp * kFloats + set() * kPairs + Sums::owned()] = mine[0];
  }

  // whole: this warp's own.
  __device__ static __forceinline__ void add_up(const float* shares, float* whole) {
    const int i = static_cast<int>(threadIdx.x) % kWarp;
    if (i < kFloats) {
      float sum = 0.0f;
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) sum += shares[warp * kFloats + i];
      whole[i] = sum;
    }
    __syncwarp();
  }
};

}  // namespace flash_rwkv::cuda
