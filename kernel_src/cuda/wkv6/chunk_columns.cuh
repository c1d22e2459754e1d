// Sixteen columns of a chunk: scaled for the products of every pair of tokens, and for those with the state.
#pragma once

#include <type_traits>

#include "cuda/chunk/dyadic.cuh"

namespace flash_rwkv::cuda::wkv6_chunk {

using namespace chunk;

// Of this lane's two tokens, 2g and 2g + 1, four columns each.
struct Columns {
  float r[2][4], k[2][4];
};

// Decays of tokens, as base-2 logarithms. How a pair of tokens is scaled: chunk/dyadic.cuh.
struct DecaysOfTokens {
  float log2_decay[2][4];

  __device__ __forceinline__ float log2_of_token(int token, int column) const { return log2_decay[token][column]; }

  // From single tokens to pairs of them.
  __device__ __forceinline__ void start() {
#pragma unroll
    for (int c = 0; c < 4; ++c) log2_decay[0][c] += log2_decay[1][c];
  }
  template <int kLevel>
  __device__ __forceinline__ void ascend(int g, float (&for_queries)[4], float (&for_keys)[4]) {
    chunk::ascend<kLevel>(g, log2_decay[0], for_queries, for_keys);
  }
  __device__ __forceinline__ float log2_of_chunk(int column) const { return log2_decay[0][column]; }
};

// How many tokens of a sequence there are in what a lane's tokens are scaled by: where there are none nothing decays.
struct Counts {
  float tokens[2];       // the lane's own
  float other[kLevels];  // of level >= 1: the other half of the block
  float chunk;

  // Of the chunk's tokens, those from `missing` to `length` are there; both may lie outside of the chunk.
  __device__ __forceinline__ Counts(int g, int length, int missing) {
    const auto of = [&](int first, int count) {
      const int begin = first < missing ? missing : first;
      const int end = first + count < length ? first + count : length;
      return static_cast<float>(begin < end ? end - begin : 0);
    };
    tokens[0] = of(2 * g, 1);
    tokens[1] = of(2 * g + 1, 1);
    other[0] = 0.0f;
#pragma unroll
    for (int level = 1; level < kLevels; ++level)
      other[level] = of(2 * ((g ^ partner(level)) & -partner(level)), 2 * partner(level));
    chunk = of(0, kTokens);
  }
};

// The same decay for all tokens.
struct ConstantDecays {
  float log2_decay[4];
  const Counts& counts;

  __device__ __forceinline__ float log2_of_token(int token, int column) const {
    return counts.tokens[token] * log2_decay[column];
  }
  __device__ __forceinline__ void start() const {}
  template <int kLevel>
  __device__ __forceinline__ void ascend(int g, float (&for_queries)[4], float (&for_keys)[4]) const {
    const bool upper = is_upper(g, kLevel);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float decay = ptx::ex2_approx_ftz_f32(counts.other[kLevel] * log2_decay[c]);
      for_queries[c] = upper ? decay : 1.0f;
      for_keys[c] = upper ? 1.0f : decay;
    }
  }
  __device__ __forceinline__ float log2_of_chunk(int column) const { return counts.chunk * log2_decay[column]; }
};

// Scales r and k: before level `kLevel`, level(integral_constant) is called; after all of them these are R~ and K^.
template <class Decays, class Level>
__device__ __forceinline__ void scale(int g, Columns& x, Decays& decays, const Level& level) {
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    x.r[1][c] *= ptx::ex2_approx_ftz_f32(decays.log2_of_token(0, c));
    x.k[0][c] *= ptx::ex2_approx_ftz_f32(decays.log2_of_token(1, c));
  }
  decays.start();
  const auto ascend = [&](auto at) {
    level(at);
    float for_queries[4], for_keys[4];
    decays.template ascend<at.value>(g, for_queries, for_keys);
#pragma unroll
    for (int token = 0; token < 2; ++token)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        x.r[token][c] *= for_queries[c];
        x.k[token][c] *= for_keys[c];
      }
  };
  ascend(std::integral_constant<int, 1>());
  ascend(std::integral_constant<int, 2>());
  ascend(std::integral_constant<int, 3>());
}

// Products of all queries with all keys at each level: of these, those count that belong to it. At level 0 that are odd
// tokens with the even ones before them, in [2] and [3].
struct Scores {
  float pairs[4] = {};
  Sums level[kLevels] = {};  // from 1 on
  float diagonal[2] = {};    // this lane's columns

  // Adds what these columns have to say, and leaves R~ and K^. raw_r, raw_k: the columns as they came.
  template <class T, class Decays>
  __device__ __forceinline__ void add(int g, const Fragment& raw_r, const Fragment& raw_k, const float (&bonus)[4],
                                      Columns& x, Decays& decays) {
    // Nothing lies between an odd token and the even one before it.
    mma<T>(pairs, raw_r.x, raw_k.x[0], raw_k.x[2]);
#pragma unroll
    for (int c = 0; c < 4; ++c)
#pragma unroll
      for (int token = 0; token < 2; ++token)
        diagonal[token] = fmaf(x.r[token][c] * bonus[c], x.k[token][c], diagonal[token]);
    scale(g, x, decays,
          [&](auto at) { multiply_add<T>(level[at.value], left_of<T>(x.r[0], x.r[1]), right_of<T>(x.k[0], x.k[1])); });
  }

  // The scores [token, token] of this warp's lanes, once all columns have been added.
  __device__ __forceinline__ Sums matrix(int g, int t) {
#pragma unroll
    for (int token = 0; token < 2; ++token) {
      diagonal[token] += __shfl_xor_sync(kAllLanes, diagonal[token], 1);
      diagonal[token] += __shfl_xor_sync(kAllLanes, diagonal[token], 2);
    }
    Sums a;
#pragma unroll
    for (int key = 0; key < 2; ++key)  // even or odd
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int query = i / 2, column = i % 2;
        const int apart = g ^ (2 * t + column);
        const float below = apart > 3 ? level[3].x[key][i] : apart > 1 ? level[2].x[key][i] : level[1].x[key][i];
        float same = 0.0f;
        if (query == key) same = diagonal[query];
        else if (query > key) same = pairs[i];
        a.x[key][i] = apart == 0 ? same : g > 2 * t + column ? below : 0.0f;
      }
    return a;
  }
};

}  // namespace flash_rwkv::cuda::wkv6_chunk
