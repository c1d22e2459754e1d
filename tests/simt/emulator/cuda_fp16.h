// float16 as CUDA has it, as far as the kernels use it.
#pragma once

#include "cuda_runtime_api.h"

struct __half_raw {
  unsigned short x;
};

struct __half {
  unsigned short bits;
  __half() = default;
  explicit __half(__half_raw raw) : bits(raw.x) {}
};
struct alignas(4) __half2 {
  __half x, y;
};
using half = __half;
using half2 = __half2;

inline float __half2float(__half x) {
  const unsigned sign = (x.bits & 0x8000u) << 16, exponent = x.bits >> 10 & 31, fraction = x.bits & 0x3ffu;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) return copysignf(static_cast<float>(fraction) * 0x1p-24f, __uint_as_float(sign));
  return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}

inline __half __float2half_rn(float x) {
  const unsigned sign = __float_as_uint(x) >> 16 & 0x8000u;
  const float size = fabsf(x);
  unsigned bits;
  if (x != x) {
    return __half(__half_raw{0x7fff});
  } else if (size >= 65520.0f) {
    bits = 0x7c00u;
  } else if (size < 0x1p-14f) {
    bits = static_cast<unsigned>(rintf(size * 0x1p24f));  // at 1024 it is the least normal number
  } else {
    const unsigned wide = __float_as_uint(size);
    bits = (wide + 0xfff + (wide >> 13 & 1) - (112u << 23)) >> 13;
  }
  return __half(__half_raw{static_cast<unsigned short>(sign | bits)});
}
inline __half __float2half(float x) { return __float2half_rn(x); }

inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __half2 __float22half2_rn(float2 x) { return __floats2half2_rn(x.x, x.y); }
inline float2 __half22float2(__half2 x) { return {__half2float(x.x), __half2float(x.y)}; }

inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short bits) { return __half(__half_raw{bits}); }
