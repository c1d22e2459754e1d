// d and its derivative from w, in the three forms that RWKV models store.
//
// A decay is stored as a *retention*, as on the CPU (kernel_src/cpu/decay.h says why): d itself below 1/2 and past 1,
// and d - 1 with its sign bit set in between. So S d is fma(retention, S, sign bit set ? S : 0) with one rounding.
#pragma once

#include "cuda/ptx.cuh"
#include "wkv_params.h"

namespace flash_rwkv::cuda {

__device__ __forceinline__ bool is_near_one(float retention) { return __float_as_int(retention) < 0; }

// What is added to retention · state to make d · state. kAllNear: every retention at hand is near one, so nothing needs
// to be chosen.
template <bool kAllNear>
__device__ __forceinline__ float kept(float retention, float state) {
  return kAllNear || is_near_one(retention) ? state : 0.0f;
}

// Whether that holds for the columns of all lanes of the warp: most tokens of most models.
template <int kCount>
__device__ __forceinline__ bool all_near_one(const float (&retention)[kCount]) {
  int signs = -1;
#pragma unroll
  for (int i = 0; i < kCount; ++i) signs &= __float_as_int(retention[i]);
  return __all_sync(0xffffffffu, signs < 0);
}

// Keeps the state as it is: for tokens past the end of a sequence.
constexpr float kKeepAll = -0.0f;

// e^x within about 2 units in the last place; below the normal range it is 0, and NaN stays NaN.
__device__ __forceinline__ float exponential(float x) {
  const float bounded = fminf(150.0f, fmaxf(-150.0f, x));
  // x log2(e) in two parts, since what the product rounds away counts |x| times over.
  const float high = __fmul_rn(bounded, 1.44269504088896341f);
  const float low = fmaf(bounded, 1.92596299e-8f, fmaf(bounded, 1.44269504088896341f, -high));
  const float power = ptx::ex2_approx_ftz_f32(high);
  return x != x ? x : fmaf(__fmul_rn(power, low), 0.693147180559945309f, power);
}

// e^x - 1 for x in [-0.7, 0], by Taylor's series: the term left out is below 1e-8 of it.
__device__ __forceinline__ float exponential_minus_one(float x) {
  float p = 1.0f / 362880;
  p = fmaf(p, x, 1.0f / 40320);
  p = fmaf(p, x, 1.0f / 5040);
  p = fmaf(p, x, 1.0f / 720);
  p = fmaf(p, x, 1.0f / 120);
  p = fmaf(p, x, 1.0f / 24);
  p = fmaf(p, x, 1.0f / 6);
  p = fmaf(p, x, 0.5f);
  return fmaf(__fmul_rn(p, x), x, x);
}

struct DecayValue {
  float retention;
  float derivative;  // dd/dw, finite for every w
};

// d = e^x with dx/dw = slope.
__device__ __forceinline__ DecayValue decay_of_log(float x, float slope) {
  const float d = exponential(x);
  const bool near = x >= -0.69f && !(x > 0.0f);
  return {near ? -fabsf(exponential_minus_one(x)) : d, __fmul_rn(slope, d)};
}

__device__ __forceinline__ DecayValue decay_of_exp(float w) {
  // d = e^{-e^w}. Past 1e30 d is 0; the bound keeps 0 · infinity out of the derivative, and NaN passes.
  const float e = exponential(w);
  const float rate = e > 1e30f ? -1e30f : -e;
  return decay_of_log(rate, rate);
}

__device__ __forceinline__ DecayValue decay_of_sigmoid(float w) {
  // d = e^{-c sigma(w)}, c = e^{-1/2}, always near one; through e^{-|w|} so that neither side cancels.
  constexpr float c = 0.60653065971263342360f;
  const float away = exponential(-fabsf(w));
  const float large = __fdividef(1.0f, 1.0f + away);
  const float small = __fmul_rn(away, large);
  const float minus_one = exponential_minus_one(-c * (w < 0.0f ? small : large));
  return {-fabsf(minus_one), -c * __fmul_rn(large, small) * (1.0f + minus_one)};
}

// f(i, value of w[i]), by the form.
template <int kCount, class F>
__device__ __forceinline__ void for_each_decay(const float (&w)[kCount], Decay form, const F& f) {
  if (form == Decay::kLog) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) f(i, decay_of_log(w[i], 1.0f));
  } else if (form == Decay::kExp) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) f(i, decay_of_exp(w[i]));
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) f(i, decay_of_sigmoid(w[i]));
  }
}

template <int kCount>
__device__ __forceinline__ void retentions(const float (&w)[kCount], Decay form, float (&out)[kCount]) {
  for_each_decay(w, form, [&](int i, DecayValue value) { out[i] = value.retention; });
}

}  // namespace flash_rwkv::cuda
