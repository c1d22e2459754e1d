// WKV4, one channel. With (p, q, o) the state before a token:
//   m = max(o, u + k);  y = (e^{o-m} p + e^{u+k-m} v) / (e^{o-m} q + e^{u+k-m})
//   m' = max(w + o, k); p <- e^{w+o-m'} p + e^{k-m'} v; q <- e^{w+o-m'} q + e^{k-m'}; o <- m'
//
// Every product is an operand of a written-out fmaf or of another product, so there is nothing left that a compiler
// could contract differently from one place of use to another: any path through the tokens gives the same bits.
#pragma once

#include "cuda/elements.cuh"
#include "wkv_params.h"

namespace flash_rwkv::cuda {

struct Wkv4State {
  float p = 0.0f;
  float q = 0.0f;
  float o = -1e38f;
};

// e^{x - max(x, y)} and e^{y - max(x, y)} of gap = x - y. One of them is 1, so one exponential is enough.
struct Wkv4Weights {
  float first, second;

  Wkv4Weights() = default;
  FLASH_RWKV_ALWAYS_INLINE explicit Wkv4Weights(float gap) {
    const float small = expf(-fabsf(gap));
    first = gap < 0.0f ? small : 1.0f;
    second = gap < 0.0f ? 1.0f : small;
  }
};

// Within 2 ulp for |divisor| < 2^126; exact division branches, which would keep tokens from overlapping.
FLASH_RWKV_ALWAYS_INLINE float wkv4_divide(float dividend, float divisor) {
#ifdef __CUDA_ARCH__
  return __fdividef(dividend, divisor);
#else
  return dividend / divisor;
#endif
}

// y of a token, with s the state before it.
FLASH_RWKV_ALWAYS_INLINE float wkv4_output(const Wkv4State& s, float k, float v, float u) {
  const Wkv4Weights e(s.o - (u + k));
  return wkv4_divide(fmaf(e.first, s.p, e.second * v), fmaf(e.first, s.q, e.second));
}

// s through kCount tokens: the states before each, and the weights of w + o and k. In phases that each leave the
// hardware much to overlap; how tokens are grouped changes no bit.
template <int kCount>
FLASH_RWKV_ALWAYS_INLINE void wkv4_walk(Wkv4State& s, const float (&k)[kCount], const float (&v)[kCount], float w,
                                        Wkv4State (&before)[kCount], Wkv4Weights (&next)[kCount]) {
  // The maxima are a chain of one sum and one comparison a token; all else hangs off it.
  float gap[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    before[i].o = s.o;
    gap[i] = w + s.o - k[i];
    s.o = fmaxf(w + s.o, k[i]);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) next[i] = Wkv4Weights(gap[i]);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    before[i].p = s.p;
    before[i].q = s.q;
    s.p = fmaf(next[i].first, s.p, next[i].second * v[i]);
    s.q = fmaf(next[i].first, s.q, next[i].second);
  }
}

}  // namespace flash_rwkv::cuda
