// d and its derivative from w, in the three forms that RWKV models store.
#pragma once

#include "simd.h"
#include "wkv_params.h"

namespace flash_rwkv::cpu::FLASH_RWKV_ISA {

template <class T>
struct DecayValue {
  Vec<T> d;           // in [0, 1]
  Vec<T> derivative;  // dd/dw, finite for every w
};

template <class T>
FLASH_RWKV_INLINE DecayValue<T> decay_value(Vec<T> w, Decay form) {
  const Vec<T> one = Vec<T>::fill(T(1));
  const Vec<T> zero = Vec<T>::fill(T(0));
  if (form == Decay::kExp) {  // d = e^{-e^w}
    // Past 1e30 d is 0 in either precision; the bound keeps 0 · infinity out of the derivative.
    const Vec<T> rate = min(Vec<T>::fill(T(1e30)), exp(w));
    const Vec<T> d = exp(zero - rate);
    return {d, (zero - rate) * d};
  }
  if (form == Decay::kSigmoid) {  // d = e^{-c sigma(w)}, c = e^{-1/2}
    const Vec<T> c = Vec<T>::fill(T(0.60653065971263342360));
    const Vec<T> away = exp(select_less(w, zero, w, zero - w));  // e^{-|w|}: no cancellation on either side
    const Vec<T> large = one / (one + away);
    const Vec<T> small = away * large;
    const Vec<T> d = exp(zero - c * select_less(w, zero, small, large));
    return {d, (zero - c * (large * small)) * d};
  }
  const Vec<T> d = exp(w);  // Decay::kLog
  return {d, d};
}

// In place: w becomes d. derivative receives dd/dw where it is wanted.
template <class T>
void decay_rows(T* w, T* derivative, int64_t count, Decay form) {
  for (int64_t i = 0; i < count; i += Vec<T>::kLanes) {
    const DecayValue<T> value = decay_value(Vec<T>::load(w + i), form);
    value.d.store(w + i);
    if (derivative != nullptr) value.derivative.store(derivative + i);
  }
}

}  // namespace flash_rwkv::cpu::FLASH_RWKV_ISA
