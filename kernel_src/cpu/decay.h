// d and its derivative from w, in the three forms that RWKV models store.
//
// A decay is stored as a *retention*: d itself below 1/2, and d - 1 with its sign bit set from there to 1. Most decays
// are close to 1, where d in single precision is off by up to 3e-8; the same d meets the state at every token, so over
// T tokens that would add up to T times as much. d - 1 has no such limit, and small decays lose nothing either.
#pragma once

#include "simd.h"
#include "wkv_params.h"

namespace flash_rwkv::cpu::FLASH_RWKV_ISA {

// d · state + added
template <class T>
FLASH_RWKV_INLINE Vec<T> retain(Vec<T> retention, Vec<T> state, Vec<T> added) {
  return fma(retention, state, add_if_negative(retention, state, added));
}

template <class T>
struct DecayValue {
  Vec<T> retention;
  Vec<T> derivative;  // dd/dw, finite for every w
};

// d = e^x with dx/dw = slope. kDecays: x <= 0.
template <bool kDecays, class T>
FLASH_RWKV_INLINE DecayValue<T> decay_of_log(Vec<T> x, Vec<T> slope) {
  const Exponential<T> e = exponential<kDecays>(x);
  const Vec<T> zero = Vec<T>::fill(T(0));
  Vec<T> near_one = set_sign(e.minus_one);
  if constexpr (!kDecays) near_one = select_less(zero, x, e.value, near_one);  // past 1 as it is
  return {select_less(x, Vec<T>::fill(T(-0.69)), e.value, near_one), slope * e.value};
}

template <Decay kForm, class T>
FLASH_RWKV_INLINE DecayValue<T> decay_value(Vec<T> w) {
  const Vec<T> one = Vec<T>::fill(T(1));
  const Vec<T> zero = Vec<T>::fill(T(0));
  if constexpr (kForm == Decay::kExp) {  // d = e^{-e^w}
    // Past e^69 d is 0 in either precision; the bound keeps 0 · infinity out of the derivative.
    const Vec<T> rate = zero - exp<true>(min(Vec<T>::fill(T(69)), w));
    return decay_of_log<true>(rate, rate);
  } else if constexpr (kForm == Decay::kSigmoid) {  // d = e^{-c sigma(w)}, c = e^{-1/2}
    const Vec<T> c = Vec<T>::fill(T(0.60653065971263342360));
    const Vec<T> away = exp<true>(select_less(w, zero, w, zero - w));  // e^{-|w|}: no cancellation on either side
    const Vec<T> large = one / (one + away);
    const Vec<T> small = away * large;
    return decay_of_log<true>(zero - c * select_less(w, zero, small, large), zero - c * (large * small));
  } else {
    return decay_of_log<false>(w, one);  // Decay::kLog
  }
}

template <Decay kForm, class T>
FLASH_RWKV_INLINE void decay_rows_of(T* w, T* derivative, int64_t count) {
  if (derivative == nullptr) {
    for (int64_t i = 0; i < count; i += Vec<T>::kLanes) decay_value<kForm>(Vec<T>::load(w + i)).retention.store(w + i);
    return;
  }
  for (int64_t i = 0; i < count; i += Vec<T>::kLanes) {
    const DecayValue<T> value = decay_value<kForm>(Vec<T>::load(w + i));
    value.retention.store(w + i);
    value.derivative.store(derivative + i);
  }
}

// In place: w becomes the retention. derivative receives dd/dw where it is wanted.
template <class T>
void decay_rows(T* w, T* derivative, int64_t count, Decay form) {
  if (form == Decay::kExp) return decay_rows_of<Decay::kExp>(w, derivative, count);
  if (form == Decay::kSigmoid) return decay_rows_of<Decay::kSigmoid>(w, derivative, count);
  return decay_rows_of<Decay::kLog>(w, derivative, count);
}

}  // namespace flash_rwkv::cpu::FLASH_RWKV_ISA
