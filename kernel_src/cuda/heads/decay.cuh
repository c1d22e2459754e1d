// d and its derivative from w, in the three forms that RWKV models store.
//
// A decay is stored as a *retention*, as on the CPU (kernel_src/cpu/decay.h says why): d itself below 1/2 and past 1,
// and d - 1 with its sign bit set in between. So S d is fma(retention, S, sign bit set ? S : 0) with one rounding.
#pragma once

#include "wkv_params.h"

namespace flash_rwkv::cuda {

__device__ __forceinline__ bool is_near_one(float retention) { return __float_as_int(retention) < 0; }

// d · state + added. kAllNear: every retention at hand is near one, so nothing needs to be chosen.
template <bool kAllNear>
__device__ __forceinline__ float kept(float retention, float state) {
  return kAllNear || is_near_one(retention) ? state : 0.0f;
}

// Whether that holds for all lanes of the warp: most tokens of most models.
template <int kCount>
__device__ __forceinline__ bool all_near_one(const float (&retention)[kCount]) {
  int signs = -1;
#pragma unroll
  for (int i = 0; i < kCount; ++i) signs &= __float_as_int(retention[i]);
  return __all_sync(0xffffffffu, signs < 0);
}

struct DecayValue {
  float retention;
  float derivative;  // dd/dw, finite for every w
};

// d = e^x with dx/dw = slope.
__device__ __forceinline__ DecayValue decay_of_log(float x, float slope) {
  const float d = expf(x);
  const bool near = x >= -0.69f && !(x > 0.0f);
  return {near ? -fabsf(expm1f(x)) : d, slope * d};
}

__device__ __forceinline__ DecayValue decay_value(float w, Decay form) {
  if (form == Decay::kLog) return decay_of_log(w, 1.0f);
  if (form == Decay::kExp) {
    // d = e^{-e^w}. Past 1e30 d is 0; the bound keeps 0 · infinity out of the derivative.
    const float rate = -fminf(1e30f, expf(w));
    return decay_of_log(isnan(w) ? w : rate, rate);
  }
  // d = e^{-c sigma(w)}, c = e^{-1/2}; e^{-|w|} so that neither side cancels.
  constexpr float c = 0.60653065971263342360f;
  const float away = expf(-fabsf(w));
  const float large = 1.0f / (1.0f + away);
  const float small = away * large;
  return decay_of_log(-c * (w < 0.0f ? small : large), -c * (large * small));
}

// Keeps the state as it is: for tokens past the end of a sequence.
constexpr float kKeepAll = -0.0f;

}  // namespace flash_rwkv::cuda
