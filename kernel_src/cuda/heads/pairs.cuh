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

// The tokens of pair i, two bits each.
__host__ __device__ constexpr unsigned pairs_packed(bool later_ones) {
  unsigned packed = 0;
  for (int e = 0; e < kGroup; ++e)
    for (int l = e; l < kGroup; ++l) {
      const unsigned token = later_ones ? l : e;
      packed |= token << 2 * from_on(e, l);
      if (l > e) packed |= token << 2 * behind(e, l);
    }
  return packed;
}

// kSets sets of factors, one lane of each warp for each. Warps leave their shares in shared memory; after a barrier every
// warp adds them up for itself, in their order.
template <int kSets, int kWarps>
struct PairFactors {
  static constexpr int kFloats = kSets * kPairs;  // a warp

  // Which factor this lane deals with.
  int set = threadIdx.x / kPairs % kSets;
  int earlier = pairs_packed(false) >> 2 * (threadIdx.x % kPairs) & 3;
  int later = pairs_packed(true) >> 2 * (threadIdx.x % kPairs) & 3;
  bool is_behind = threadIdx.x % kPairs >= 10;

  // x, y: vectors of kCount elements in shared memory.
  template <int kCount>
  __device__ __forceinline__ static float dot(const float* x, const float* y) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      float u[4], v[4];
      elements_of(x + i, u);
      elements_of(y + i, v);
#pragma unroll
      for (int c = 0; c < 4; ++c) sum = fmaf(u[c], v[c], sum);
    }
    return sum;
  }

  // Of factor i.
  __device__ __forceinline__ static void leave(int i, float share, float* shares) {
    shares[static_cast<int>(threadIdx.x) / kWarp * kFloats + i] = share;
  }

  // Of what `earlier` writes to `later`, where a lane has that of both kinds.
  __device__ __forceinline__ static void leave(int set, int earlier, int later, float on, float later_on,
                                               float* shares) {
    float* const mine = shares + static_cast<int>(threadIdx.x) / kWarp * kFloats + set * kPairs;
    if (earlier <= later) mine[from_on(earlier, later)] = on;
    if (earlier < later) mine[behind(earlier, later)] = later_on;
  }

  // whole: this warp's own.
  __device__ __forceinline__ static void add_up(const float* shares, float* whole) {
    const int i = static_cast<int>(threadIdx.x) % kWarp;
    if (i < kFloats) whole[i] = sum(shares, i);
    __syncwarp();
  }

  // The same as tables of all later tokens for every token, with zeros where there is no factor.
  static constexpr int kTableFloats = 2 * kSets * kGroup * kGroup;
  __device__ static constexpr int row_of_table(bool is_behind, int set, int token) {
    return ((is_behind ? kSets : 0) + set) * kGroup * kGroup + token * kGroup;
  }
  __device__ __forceinline__ static void tabulate(const float* shares, float* table) {
    static_assert(kFloats == kWarp);
    const PairFactors pair;
    table[row_of_table(pair.is_behind, pair.set, pair.earlier) + pair.later] =
        sum(shares, static_cast<int>(threadIdx.x) % kWarp);
    table[row_of_table(pair.is_behind || pair.earlier == pair.later, pair.set, pair.later) + pair.earlier] = 0.0f;
    __syncwarp();
  }

 private:
  __device__ __forceinline__ static float sum(const float* shares, int i) {
    float x = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) x += shares[warp * kFloats + i];
    return x;
  }
};

}  // namespace flash_rwkv::cuda
