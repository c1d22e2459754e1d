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

// d = e^x with dx/dw = slope.
template <class T>
FLASH_RWKV_INLINE DecayValue<T> decay_of_log(Vec<T> x, Vec<T> slope) {
  const Exponential<T> e = exponential(x);
  const Vec<T> zero = Vec<T>::fill(T(0));
  const Vec<T> near_one = select_less(zero, x, e.value, set_sign(e.minus_one));  // past 1 as it is
  return {select_less(x, Vec<T>::fill(T(-0.69)), e.value, near_one), slope * e.value};
}

template <class T>
FLASH_RWKV_INLINE DecayValue<T> decay_value(Vec<T> w, Decay form) {
  const Vec<T> one = Vec<T>::fill(T(1));
  const Vec<T> zero = Vec<T>::fill(T(0));
  if (form == Decay::kExp) {  // d = e^{-e^w}
    // Past 1e30 d is 0 in either precision; the bound keeps 0 · infinity out of the derivative.
    const Vec<T> rate = zero - min(Vec<T>::fill(T(1e30)), exp(w));
    return decay_of_log(rate, rate);
  }
  if (form == Decay::kSigmoid) {  // d = e^{-c sigma(w)}, c = e^{-1/2}
    const Vec<T> c = Vec<T>::fill(T(0.60653065971263342360));
    const Vec<T> away = exp(select_less(w, zero, w, zero - w));  // e^{-|w|}: no cancellation on either side
    const Vec<T> large = one / (one + away);
    const Vec<T> small = away * large;
    return decay_of_log(zero - c * select_less(w, zero, small, large), zero - c * (large * small));
  }
  return decay_of_log(w, one);  // Decay::kLog
}

// In place: w becomes the retention. derivative receives dd/dw where it is wanted.
template <class T>
void decay_rows(T* w, T* derivative, int64_t count, Decay form) {
  for (int64_t i = 0; i < count; i += Vec<T>::kLanes) {
    const DecayValue<T> value = decay_value(Vec<T>::load(w + i), form);
    value.retention.store(w + i);
    if (derivative != nullptr) value.derivative.store(derivative + i);
  }
}

}  // namespace flash_rwkv::cpu::FLASH_RWKV_ISA
