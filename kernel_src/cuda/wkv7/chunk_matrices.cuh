// The matrices over the tokens of a chunk: scores, put where they belong, and the inverse.
#pragma once

#include "cuda/chunk/dyadic.cuh"
#include "cuda/wkv7/chunk.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

// Right operands in shared memory. What no pair of tokens belongs to stays zero. Rest: what rounding has left over;
// of both matrices or of none. kAll: ak and rk too.
template <class T, bool kParts, bool kAll = true>
struct TokenMatrices {
  uint4 *ab, *ak, *rb, *rk, *rb_rest, *rk_rest;

  __device__ __forceinline__ void clear() const {
    ab[lane()] = rb[lane()] = make_uint4(0, 0, 0, 0);
    if constexpr (kAll) ak[lane()] = rk[lane()] = make_uint4(0, 0, 0, 0);
    if constexpr (kParts) rb_rest[lane()] = rk_rest[lane()] = make_uint4(0, 0, 0, 0);
    __syncwarp();
  }

  __device__ __forceinline__ void store_scores(const Sums (&scores)[kLevels]) const {
#pragma unroll
    for (int level = 0; level < 2; ++level)
#pragma unroll
      for (int i = 0; i < 2; ++i) store_scores<false>(scores[level], level, 2 * t() + i, i);
    // From here on keys of lanes 2t and 2t + 1 are neighbours.
#pragma unroll
    for (int level = 2; level < kLevels; ++level) store_scores<true>(scores[level], level, 2 * t(), 0);
  }

  // Nothing decays between a token and itself. The four lanes that share two tokens take one sum each.
  __device__ __forceinline__ void store_diagonal(float (&x)[4]) const {
    using Sum = ScatteredSums<2, 1, 4>;
    Sum::reduce(x);
    const int which = Sum::owned();
    const int slot = g() + which % 2 * 8;
    if (!kAll && which >= 2) return;
    store_in_parts<false>(which < 2 ? rb : rk, which < 2 ? rb_rest : rk_rest, element_of_right(slot, slot), x[0], 0.0f);
  }

  // (I - A_ab)^-1, from blocks of 2 tokens to those of 4, 8 and 16: with P' the inverse of P, that of
  // [[P, 0], [-A, Q]] is [[P', 0], [Q' A P', Q']]. T + T A T has it where T has P' and Q', and A is what A_ab has
  // between them. Powers of A_ab would do with fewer steps, but grow as binomial coefficients do where keys repeat, and
  // cancel then.
  __device__ __forceinline__ Fragment inverse() const {
    const RightFragment a = load_fragment<RightFragment>(ab, lane());
    const RightFragment a_t = as_right(transposed({{a.x[0], a.x[2], a.x[1], a.x[3]}}));
    Sums x, x_t;  // T and its transposed
    const unsigned pairs = level_mask(g(), t(), 0);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Words 0 and 3 are of rows and columns that can be the same; i counts in the order of right operands.
      const bool same = i % 3 == 0;
      float (&to)[4] = x.x[i % 2], (&to_t)[4] = x_t.x[i % 2];
      to[i / 2 * 2] = same ? (g() == 2 * t() ? 1.0f : 0.0f) : Pair<T>::first(a.x[i] & pairs);
      to[i / 2 * 2 + 1] = same ? (g() == 2 * t() + 1 ? 1.0f : 0.0f) : Pair<T>::second(a.x[i] & pairs);
      to_t[i / 2 * 2] = same ? to[i / 2 * 2] : Pair<T>::first(a_t.x[i] & pairs);
      to_t[i / 2 * 2 + 1] = same ? to[i / 2 * 2 + 1] : Pair<T>::second(a_t.x[i] & pairs);
    }
#pragma unroll
    for (int level = 1; level < kLevels; ++level) {
      const Fragment inner = rounded<T>(x), inner_t = rounded<T>(x_t);
      const unsigned mask = level_mask(g(), t(), level);
      RightFragment between, between_t;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        between.x[i] = a.x[i] & mask;
        between_t.x[i] = a_t.x[i] & mask;
      }
      Sums product = zero_sums();
      multiply_add<T>(product, inner, between_t);  // T A
      multiply_add<T>(x, rounded<T>(product), as_right(inner_t));
      if (level + 1 < kLevels) {
        Sums product_t = zero_sums();
        multiply_add<T>(product_t, inner_t, between);
        multiply_add<T>(x_t, rounded<T>(product_t), as_right(inner));
      }
    }
    return rounded<T>(x);
  }

 private:
  // Two elements of a row that lie side by side, or the first of them alone.
  template <bool kPair>
  __device__ __forceinline__ static void store_elements(uint4* matrix, int element, float x, float y) {
    T* const to = reinterpret_cast<T*>(matrix) + element;
    if constexpr (kPair) *reinterpret_cast<unsigned*>(to) = Pair<T>::pack(x, y);
    else *to = from_float<T>(x);
  }

  // Of A_rb or A_rk, in two parts where one is not enough.
  template <bool kPair>
  __device__ __forceinline__ void store_in_parts(uint4* matrix, uint4* rest, int element, float x, float y) const {
    store_elements<kPair>(matrix, element, x, y);
    if constexpr (kParts)
      store_elements<kPair>(rest, element, x - to_float(from_float<T>(x)), y - to_float(from_float<T>(y)));
  }

  // Keys `key` and, for a pair, key + 1 of a level.
  template <bool kPair>
  __device__ __forceinline__ void store_scores(const Sums& s, int level, int key, int i) const {
    if (!same_block(g(), key, level)) return;
    const int element = element_of_right(query_slot(g(), level), key_slot(key, level));
    store_elements<kPair>(ab, element, s.x[0][i], s.x[0][i + kPair]);
    store_in_parts<kPair>(rb, rb_rest, element, s.x[0][2 + i], s.x[0][2 + i + kPair]);
    if constexpr (kAll) {
      store_elements<kPair>(ak, element, s.x[1][i], s.x[1][i + kPair]);
      store_in_parts<kPair>(rk, rk_rest, element, s.x[1][2 + i], s.x[1][2 + i + kPair]);
    }
  }

  __device__ __forceinline__ static int lane() { return threadIdx.x % kWarp; }
  __device__ __forceinline__ static int g() { return threadIdx.x % kWarp / 4; }
  __device__ __forceinline__ static int t() { return threadIdx.x % 4; }
};

}  // namespace flash_rwkv::cuda::wkv7_chunk
