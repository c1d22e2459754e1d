// Decays between the tokens of a chunk, without a reciprocal.
//
// A query q_t meets a key k_i, i < t, with all decays of the tokens between them. Both are scaled at the middle of the
// smallest aligned block of 2, 4, 8 or 16 tokens that holds both: the query by the decays from there up to t, the key
// by those from behind i up to there. All are products of decays, never above 1, so nothing overflows, and what becomes
// 0 is 0. A block of 2 h tokens, h = 1, 2, 4, 8, has h keys in its lower and h queries in its upper half; over all
// blocks of a level these are eight of each.
//
// Lane (g, t) has tokens 2g and 2g + 1, in four columns. From level to level it multiplies its queries, if it is in the
// upper half of a block, by the decays of the lower half, and else its keys by those of the upper one. For the tensor
// cores the queries are to be in rows 0 … 7, but only every other lane has queries, of two tokens: it hands one of them
// over to the lane as far from the middle on the other side, and takes a key for it.
#pragma once

#include "cuda/chunk/fragments.cuh"
#include "cuda/heads/decay.cuh"
#include "cuda/heads/layout.cuh"

namespace flash_rwkv::cuda::chunk {

constexpr int kLevels = 4;

// Base-2 logarithms of decays, added up over tokens: for decays near one a sum is more exact than a product.
template <int kRows, int kColumns>
__device__ __forceinline__ void log2_decays(Decay form, float (&w)[kRows][kColumns]) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kSigmoidScale = 0.60653065971263342360f * kLog2E;
  const auto for_each = [&](const auto& f) {
#pragma unroll
    for (int i = 0; i < kRows * kColumns; ++i) w[i / kColumns][i % kColumns] = f(w[i / kColumns][i % kColumns]);
  };
  // Two cases only: of three the compiler makes a table of addresses, and a jump that waits for it.
  if (form == Decay::kSigmoid) {
    for_each(
        [](float x) { return -kSigmoidScale * ptx::rcp_approx_ftz_f32(1.0f + ptx::ex2_approx_ftz_f32(-kLog2E * x)); });
  } else {
    for_each([form](float x) {
      const float scaled = kLog2E * x;
      return form == Decay::kLog ? scaled : -kLog2E * ptx::ex2_approx_ftz_f32(scaled);
    });
  }
}

// From gradients of log d, the natural one, to those of w.
template <int kRows, int kColumns>
__device__ __forceinline__ void to_gradients_of_w(Decay form, const float (&w)[kRows][kColumns],
                                                  float (&x)[kRows][kColumns]) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kSigmoidScale = 0.60653065971263342360f;
  const auto for_each = [&](const auto& derivative) {
#pragma unroll
    for (int i = 0; i < kRows * kColumns; ++i)
      x[i / kColumns][i % kColumns] *= derivative(w[i / kColumns][i % kColumns]);
  };
  if (form == Decay::kExp) {
    // Past 1e30 a decay is 0; the bound keeps 0 times infinity out of the gradient.
    for_each([](float w) { return -fminf(ptx::ex2_approx_ftz_f32(kLog2E * w), 1e30f); });
  } else if (form == Decay::kSigmoid) {
    for_each([](float w) {
      const float away = ptx::ex2_approx_ftz_f32(-kLog2E * fabsf(w));
      const float part = ptx::rcp_approx_ftz_f32(1.0f + away);
      return -kSigmoidScale * away * part * part;
    });
  }
}

// Two rows of a slice of columns as an operand: `top` in rows 0 … 7.
template <class T>
__device__ __forceinline__ Fragment left_of(const float (&top)[4], const float (&bottom)[4]) {
  return {{Pair<T>::pack(top[0], top[1]), Pair<T>::pack(bottom[0], bottom[1]), Pair<T>::pack(top[2], top[3]),
           Pair<T>::pack(bottom[2], bottom[3])}};
}
template <class T>
__device__ __forceinline__ RightFragment right_of(const float (&top)[4], const float (&bottom)[4]) {
  return as_right(left_of<T>(top, bottom));
}

// Lanes g of level `level` >= 1 have their partner at g ^ partner, and are in the upper half if that bit is set.
__device__ __forceinline__ constexpr int partner(int level) { return 1 << (level - 1); }
__device__ __forceinline__ bool is_upper(int g, int level) { return g & partner(level); }

// After a level's exchange: the tokens, as slots, whose query and whose key lane g has. Level 0 needs no exchange.
__device__ __forceinline__ int query_slot(int g, int level) {
  if (level == 0) return 8 + g;
  return is_upper(g, level) ? g : 8 + (g ^ partner(level));
}
__device__ __forceinline__ int key_slot(int g, int level) {
  if (level == 0) return g;
  return is_upper(g, level) ? 8 + (g ^ partner(level)) : g;
}
// Whether a query and a key that these lanes have are of one block.
__device__ __forceinline__ bool same_block(int query, int key, int level) { return query >> level == key >> level; }

struct Operands {
  Fragment queries;
  RightFragment keys;
};

// The operands of level `level` >= 1, from those of the lane's even and odd tokens, scaled for that level.
template <int kLevel>
__device__ __forceinline__ Operands exchanged(int g, const Operands& even, const Operands& odd) {
  const bool upper = is_upper(g, kLevel);
  Operands out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned sent = upper ? odd.queries.x[i] : odd.keys.x[i];
    const unsigned got = __shfl_xor_sync(kAllLanes, sent, 4 * partner(kLevel));
    out.queries.x[i] = upper ? even.queries.x[i] : got;
    out.keys.x[i] = upper ? got : even.keys.x[i];
  }
  return out;
}

// Goes from one level to the next: the decays of the other half of the lane's block, and the sum of log decays of what is
// then its half of a block.
template <int kLevel>
__device__ __forceinline__ void ascend(float (&log2_decay)[4], float (&decays)[4]) {
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const float other = __shfl_xor_sync(kAllLanes, log2_decay[c], 4 * partner(kLevel));
    decays[c] = ptx::ex2_approx_ftz_f32(other);
    log2_decay[c] += other;
  }
}

// The same as factors for the lane's queries and keys.
template <int kLevel>
__device__ __forceinline__ void ascend(int g, float (&log2_decay)[4], float (&for_queries)[4], float (&for_keys)[4]) {
  const bool upper = is_upper(g, kLevel);
  float decays[4];
  ascend<kLevel>(log2_decay, decays);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    for_queries[c] = upper ? decays[c] : 1.0f;
    for_keys[c] = upper ? 1.0f : decays[c];
  }
}

// What of a fragment, tokens by tokens, belongs to a level: a mask for words 1 and 2 at level 0, where the others have
// nothing, and for all words at the others.
__device__ __forceinline__ unsigned level_mask(int g, int t, int level) {
  // Words of lane (g, t) are of tokens 2g or 2g + 1 and of 4t and 4t + 2 or of one more.
  const int apart = g / 2 ^ t;  // blocks of four tokens
  if (level == 3) return apart > 1 ? 0xffffffffu : 0;
  if (level == 2) return apart == 1 ? 0xffffffffu : 0;
  const bool second = level == 0 ? g % 2 == 1 : g % 2 == 0;  // of the pairs in a block of four
  return apart != 0 ? 0 : second ? 0xffff0000u : 0x0000ffffu;
}

}  // namespace flash_rwkv::cuda::chunk
