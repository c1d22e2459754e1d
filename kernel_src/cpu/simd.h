// One vector type an instruction set, chosen by the flags this translation unit is compiled with.
//
// Everything that an ISA translation unit includes lives in a namespace of that ISA: an inline function shared
// with baseline code could be the copy that the linker keeps, and crash an older processor. For the same reason
// these headers use no functions of the C++ standard library.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "wkv_params.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define FLASH_RWKV_ISA avx512
#elif defined(__AVX2__)
#define FLASH_RWKV_ISA avx2
#elif defined(__ARM_NEON)
#define FLASH_RWKV_ISA neon
#else
#define FLASH_RWKV_ISA portable
#endif

#define FLASH_RWKV_INLINE FLASH_RWKV_ALWAYS_INLINE

namespace flash_rwkv::cpu::FLASH_RWKV_ISA {

template <class T>
struct Vec;

}  // namespace flash_rwkv::cpu::FLASH_RWKV_ISA

#if defined(__ARM_NEON)
#include "neon.h"
#endif

namespace flash_rwkv::cpu::FLASH_RWKV_ISA {

#if defined(__AVX512F__)

template <>
struct Vec<float> {
  static constexpr int kLanes = 16;
  static constexpr int kRegisters = 32;
  __m512 x;
  static FLASH_RWKV_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static FLASH_RWKV_INLINE Vec fill(float s) { return {_mm512_set1_ps(s)}; }
  FLASH_RWKV_INLINE void store(float* p) const { _mm512_storeu_ps(p, x); }
};
FLASH_RWKV_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm512_add_ps(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<float> operator-(Vec<float> a, Vec<float> b) { return {_mm512_sub_ps(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm512_mul_ps(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<float> operator/(Vec<float> a, Vec<float> b) { return {_mm512_div_ps(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm512_fmadd_ps(a.x, b.x, c.x)}; }
// min and max return b when either is NaN.
FLASH_RWKV_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return {_mm512_min_ps(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return {_mm512_max_ps(a.x, b.x)}; }
// a < b ? c : d
FLASH_RWKV_INLINE Vec<float> select_less(Vec<float> a, Vec<float> b, Vec<float> c, Vec<float> d) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.x, b.x, _CMP_LT_OQ), d.x, c.x)};
}
FLASH_RWKV_INLINE Vec<float> scale_by_power_of_two(Vec<float> a, Vec<float> n) { return {_mm512_scalef_ps(a.x, n.x)}; }

// c + (a if the sign bit of `sign` is set, else 0)
FLASH_RWKV_INLINE Vec<float> add_if_negative(Vec<float> sign, Vec<float> a, Vec<float> c) {
  return {_mm512_mask_add_ps(c.x, _mm512_movepi32_mask(_mm512_castps_si512(sign.x)), c.x, a.x)};
}
FLASH_RWKV_INLINE Vec<float> set_sign(Vec<float> a) { return {_mm512_or_ps(a.x, _mm512_set1_ps(-0.0f))}; }

template <>
struct Vec<double> {
  static constexpr int kLanes = 8;
  static constexpr int kRegisters = 32;
  __m512d x;
  static FLASH_RWKV_INLINE Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static FLASH_RWKV_INLINE Vec fill(double s) { return {_mm512_set1_pd(s)}; }
  FLASH_RWKV_INLINE void store(double* p) const { _mm512_storeu_pd(p, x); }
};
FLASH_RWKV_INLINE Vec<double> operator+(Vec<double> a, Vec<double> b) { return {_mm512_add_pd(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<double> operator-(Vec<double> a, Vec<double> b) { return {_mm512_sub_pd(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<double> operator*(Vec<double> a, Vec<double> b) { return {_mm512_mul_pd(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<double> operator/(Vec<double> a, Vec<double> b) { return {_mm512_div_pd(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm512_fmadd_pd(a.x, b.x, c.x)};
}
FLASH_RWKV_INLINE Vec<double> min(Vec<double> a, Vec<double> b) { return {_mm512_min_pd(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return {_mm512_max_pd(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<double> select_less(Vec<double> a, Vec<double> b, Vec<double> c, Vec<double> d) {
  return {_mm512_mask_blend_pd(_mm512_cmp_pd_mask(a.x, b.x, _CMP_LT_OQ), d.x, c.x)};
}
FLASH_RWKV_INLINE Vec<double> add_if_negative(Vec<double> sign, Vec<double> a, Vec<double> c) {
  return {_mm512_mask_add_pd(c.x, _mm512_movepi64_mask(_mm512_castpd_si512(sign.x)), c.x, a.x)};
}
FLASH_RWKV_INLINE Vec<double> set_sign(Vec<double> a) { return {_mm512_or_pd(a.x, _mm512_set1_pd(-0.0))}; }

#elif defined(__AVX2__)

template <>
struct Vec<float> {
  static constexpr int kLanes = 8;
  static constexpr int kRegisters = 16;
  __m256 x;
  static FLASH_RWKV_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static FLASH_RWKV_INLINE Vec fill(float s) { return {_mm256_set1_ps(s)}; }
  FLASH_RWKV_INLINE void store(float* p) const { _mm256_storeu_ps(p, x); }
};
FLASH_RWKV_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm256_add_ps(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<float> operator-(Vec<float> a, Vec<float> b) { return {_mm256_sub_ps(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm256_mul_ps(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<float> operator/(Vec<float> a, Vec<float> b) { return {_mm256_div_ps(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm256_fmadd_ps(a.x, b.x, c.x)}; }
FLASH_RWKV_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return {_mm256_min_ps(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return {_mm256_max_ps(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<float> select_less(Vec<float> a, Vec<float> b, Vec<float> c, Vec<float> d) {
  return {_mm256_blendv_ps(d.x, c.x, _mm256_cmp_ps(a.x, b.x, _CMP_LT_OQ))};
}
// In two steps, so that results below the normal range come out right. |n| <= 250.
FLASH_RWKV_INLINE Vec<float> scale_by_power_of_two(Vec<float> a, Vec<float> n) {
  const __m256i whole = _mm256_cvtps_epi32(n.x);
  const __m256i first = _mm256_srai_epi32(whole, 1);
  const __m256i second = _mm256_sub_epi32(whole, first);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256 f = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(first, bias), 23));
  const __m256 s = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(second, bias), 23));
  return {_mm256_mul_ps(_mm256_mul_ps(a.x, f), s)};
}

FLASH_RWKV_INLINE Vec<float> add_if_negative(Vec<float> sign, Vec<float> a, Vec<float> c) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_srai_epi32(_mm256_castps_si256(sign.x), 31));
  return {_mm256_add_ps(c.x, _mm256_and_ps(mask, a.x))};
}
FLASH_RWKV_INLINE Vec<float> set_sign(Vec<float> a) { return {_mm256_or_ps(a.x, _mm256_set1_ps(-0.0f))}; }

template <>
struct Vec<double> {
  static constexpr int kLanes = 4;
  static constexpr int kRegisters = 16;
  __m256d x;
  static FLASH_RWKV_INLINE Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static FLASH_RWKV_INLINE Vec fill(double s) { return {_mm256_set1_pd(s)}; }
  FLASH_RWKV_INLINE void store(double* p) const { _mm256_storeu_pd(p, x); }
};
FLASH_RWKV_INLINE Vec<double> operator+(Vec<double> a, Vec<double> b) { return {_mm256_add_pd(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<double> operator-(Vec<double> a, Vec<double> b) { return {_mm256_sub_pd(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<double> operator*(Vec<double> a, Vec<double> b) { return {_mm256_mul_pd(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<double> operator/(Vec<double> a, Vec<double> b) { return {_mm256_div_pd(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm256_fmadd_pd(a.x, b.x, c.x)};
}
FLASH_RWKV_INLINE Vec<double> min(Vec<double> a, Vec<double> b) { return {_mm256_min_pd(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return {_mm256_max_pd(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<double> select_less(Vec<double> a, Vec<double> b, Vec<double> c, Vec<double> d) {
  return {_mm256_blendv_pd(d.x, c.x, _mm256_cmp_pd(a.x, b.x, _CMP_LT_OQ))};
}
FLASH_RWKV_INLINE Vec<double> add_if_negative(Vec<double> sign, Vec<double> a, Vec<double> c) {
  return {_mm256_add_pd(c.x, _mm256_blendv_pd(_mm256_setzero_pd(), a.x, sign.x))};
}
FLASH_RWKV_INLINE Vec<double> set_sign(Vec<double> a) { return {_mm256_or_pd(a.x, _mm256_set1_pd(-0.0))}; }

#elif !defined(__ARM_NEON)

template <int kBytes>
struct SignedOfSize;
template <>
struct SignedOfSize<4> {
  using type = int32_t;
};
template <>
struct SignedOfSize<8> {
  using type = int64_t;
};

// Sixteen bytes in the compiler's own vector extension: SSE2 on x86-64.
template <class T>
struct Vec {
  static constexpr int kLanes = 16 / sizeof(T);
  static constexpr int kRegisters = 16;
  typedef T Native __attribute__((vector_size(16)));
  Native x;
  static FLASH_RWKV_INLINE Vec load(const T* p) {
    Vec v;
    memcpy(&v.x, p, 16);
    return v;
  }
  static FLASH_RWKV_INLINE Vec fill(T s) { return {s - Native{}}; }
  FLASH_RWKV_INLINE void store(T* p) const { memcpy(p, &x, 16); }
  friend FLASH_RWKV_INLINE Vec operator+(Vec a, Vec b) { return {a.x + b.x}; }
  friend FLASH_RWKV_INLINE Vec operator-(Vec a, Vec b) { return {a.x - b.x}; }
  friend FLASH_RWKV_INLINE Vec operator*(Vec a, Vec b) { return {a.x * b.x}; }
  friend FLASH_RWKV_INLINE Vec operator/(Vec a, Vec b) { return {a.x / b.x}; }
  friend FLASH_RWKV_INLINE Vec fma(Vec a, Vec b, Vec c) { return {a.x * b.x + c.x}; }
  friend FLASH_RWKV_INLINE Vec min(Vec a, Vec b) { return {a.x < b.x ? a.x : b.x}; }
  friend FLASH_RWKV_INLINE Vec max(Vec a, Vec b) { return {a.x > b.x ? a.x : b.x}; }
  friend FLASH_RWKV_INLINE Vec select_less(Vec a, Vec b, Vec c, Vec d) { return {a.x < b.x ? c.x : d.x}; }
  friend FLASH_RWKV_INLINE Vec add_if_negative(Vec sign, Vec a, Vec c) {
    const auto negative = reinterpret_cast<Bits>(sign.x) < Bits{};
    return {c.x + reinterpret_cast<Native>(negative & reinterpret_cast<Bits>(a.x))};
  }
  friend FLASH_RWKV_INLINE Vec set_sign(Vec a) {
    const Native sign = T(-0.0) - Native{};
    return {reinterpret_cast<Native>(reinterpret_cast<Bits>(a.x) | reinterpret_cast<Bits>(sign))};
  }

 private:
  using Bit = typename SignedOfSize<sizeof(T)>::type;
  typedef Bit Bits __attribute__((vector_size(16)));
};

#endif

// sum_rows(rows, out): out[i] = sum of the lanes of rows[i], in an order that is the same for every i.

#if defined(__AVX2__)

FLASH_RWKV_INLINE __m256 fold(Vec<float> a) {
#if defined(__AVX512F__)
  return _mm256_add_ps(_mm512_castps512_ps256(a.x), _mm512_extractf32x8_ps(a.x, 1));
#else
  return a.x;
#endif
}
FLASH_RWKV_INLINE __m256d fold(Vec<double> a) {
#if defined(__AVX512F__)
  return _mm256_add_pd(_mm512_castpd512_pd256(a.x), _mm512_extractf64x4_pd(a.x, 1));
#else
  return a.x;
#endif
}

#if defined(__AVX512F__)
// Steps of sums over rows: the halves, then the quarters of a vector are added, and those of two share one.
FLASH_RWKV_INLINE __m512 add_halves(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
FLASH_RWKV_INLINE __m512 add_quarters(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
// Quarter i of the result holds what is left to add of row i.
FLASH_RWKV_INLINE __m512 quarters_of_four(const Vec<float>* rows) {
  return add_quarters(add_halves(rows[0].x, rows[1].x), add_halves(rows[2].x, rows[3].x));
}
FLASH_RWKV_INLINE void sum_four(const Vec<float>* rows, float* out) {
  const __m512 four = quarters_of_four(rows);
  const __m512 pairs = _mm512_add_ps(_mm512_shuffle_ps(four, four, 0x88), _mm512_shuffle_ps(four, four, 0xdd));
  const __m512 sums = _mm512_add_ps(pairs, _mm512_shuffle_ps(pairs, pairs, 0xb1));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(order, sums)));
}
FLASH_RWKV_INLINE void sum_eight(const Vec<float>* a, const Vec<float>* b, float* out_a, float* out_b) {
  const __m512 first = quarters_of_four(a);
  const __m512 second = quarters_of_four(b);
  const __m512 pairs = _mm512_add_ps(_mm512_shuffle_ps(first, second, 0x88), _mm512_shuffle_ps(first, second, 0xdd));
  const __m512 sums = _mm512_add_ps(pairs, _mm512_shuffle_ps(pairs, pairs, 0xb1));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m512 sorted = _mm512_permutexvar_ps(order, sums);
  _mm_storeu_ps(out_a, _mm512_castps512_ps128(sorted));
  _mm_storeu_ps(out_b, _mm512_extractf32x4_ps(sorted, 1));
}
#endif

template <int R>
FLASH_RWKV_INLINE void sum_rows(const Vec<float> (&rows)[R], float* out) {
#if defined(__AVX512F__)
  if constexpr (R % 4 == 0) {
    int i = 0;
    for (; i + 8 <= R; i += 8) sum_eight(rows + i, rows + i + 4, out + i, out + i + 4);
    for (; i < R; i += 4) sum_four(rows + i, out + i);
    return;
  }
#endif
  if constexpr (R % 4 == 0) {
    for (int i = 0; i < R; i += 4) {
      const __m256 low = _mm256_hadd_ps(fold(rows[i]), fold(rows[i + 1]));
      const __m256 high = _mm256_hadd_ps(fold(rows[i + 2]), fold(rows[i + 3]));
      const __m256 both = _mm256_hadd_ps(low, high);
      _mm_storeu_ps(out + i, _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1)));
    }
  } else {
    for (int i = 0; i < R; ++i) {
      const __m256 once = _mm256_hadd_ps(fold(rows[i]), fold(rows[i]));
      const __m256 twice = _mm256_hadd_ps(once, once);
      _mm_store_ss(out + i, _mm_add_ss(_mm256_castps256_ps128(twice), _mm256_extractf128_ps(twice, 1)));
    }
  }
}

template <int R>
FLASH_RWKV_INLINE void sum_rows(const Vec<double> (&rows)[R], double* out) {
  for (int i = 0; i < R; ++i) {
    const __m256d once = _mm256_hadd_pd(fold(rows[i]), fold(rows[i]));
    _mm_store_sd(out + i, _mm_add_sd(_mm256_castpd256_pd128(once), _mm256_extractf128_pd(once, 1)));
  }
}

#elif !defined(__ARM_NEON)

template <class T, int R>
FLASH_RWKV_INLINE void sum_rows(const Vec<T> (&rows)[R], T* out) {
  for (int i = 0; i < R; ++i) {
    if constexpr (Vec<T>::kLanes == 4) out[i] = (rows[i].x[0] + rows[i].x[2]) + (rows[i].x[1] + rows[i].x[3]);
    else out[i] = rows[i].x[0] + rows[i].x[1];
  }
}

#endif

// sum_rows of both, with the same bits.
template <class T, int R>
FLASH_RWKV_INLINE void sum_rows(const Vec<T> (&a)[R], const Vec<T> (&b)[R], T* out_a, T* out_b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4 && R % 4 == 0) {
    for (int i = 0; i < R; i += 4) sum_eight(a + i, b + i, out_a + i, out_b + i);
    return;
  }
#endif
  sum_rows(a, out_a);
  sum_rows(b, out_b);
}

// Has the values read back from memory, as operands of the instructions that spread them: a shuffle each would compete
// with the arithmetic.
template <class T, int R>
FLASH_RWKV_INLINE void keep_in_memory(T (&values)[R]) {
  asm("" : "+m"(values));
}

template <class T>
FLASH_RWKV_INLINE T sum_lanes(Vec<T> a) {
  const Vec<T> rows[1] = {a};
  T out;
  sum_rows(rows, &out);
  return out;
}

// e^x and e^x - 1, both from one reduction. Single precision within about 1 unit in the last place (of either), gradual
// underflow, infinities and NaN as in libm. kSmall: x is at most 88, or NaN.
template <class T>
struct Exponential {
  Vec<T> value;
  Vec<T> minus_one;
};

template <bool kSmall = false, class T>
FLASH_RWKV_INLINE Exponential<T> exponential(Vec<T> x) {
#if defined(__AVX2__) || defined(__ARM_NEON)
  if constexpr (sizeof(T) == 4) {
    const Vec<T> one = Vec<T>::fill(1.0f);
    const Vec<T> above = max(Vec<T>::fill(-110.0f), x);
    const Vec<T> bounded = kSmall ? above : min(Vec<T>::fill(100.0f), above);
    // Adding 1.5 · 2^23 rounds to a whole number.
    const Vec<T> whole = Vec<T>::fill(12582912.0f);
    const Vec<T> n = fma(bounded, Vec<T>::fill(1.44269504088896341f), whole) - whole;
    // ln 2 in two parts: the product of n and the first is exact.
    Vec<T> f = fma(n, Vec<T>::fill(-0.693359375f), bounded);
    f = fma(n, Vec<T>::fill(2.12194440e-4f), f);
    // Taylor's series of (e^f - 1) / f; |f| <= 0.35, so the term left out is below 6e-9 of e^f.
    Vec<T> p = Vec<T>::fill(1.0f / 5040);
    p = fma(p, f, Vec<T>::fill(1.0f / 720));
    p = fma(p, f, Vec<T>::fill(1.0f / 120));
    p = fma(p, f, Vec<T>::fill(1.0f / 24));
    p = fma(p, f, Vec<T>::fill(1.0f / 6));
    p = fma(p, f, Vec<T>::fill(0.5f));
    p = fma(p * f, f, f);  // e^f - 1, no digit lost for small f
    const Vec<T> power = scale_by_power_of_two(one, n);
    return {kSmall ? fma(power, p, power) : scale_by_power_of_two(one + p, n), fma(power, p, power - one)};
  }
#endif
  T value[Vec<T>::kLanes], minus_one[Vec<T>::kLanes];
  x.store(value);
  for (int i = 0; i < Vec<T>::kLanes; ++i) {
    if constexpr (sizeof(T) == 4) {
      minus_one[i] = ::expm1f(value[i]);
      value[i] = ::expf(value[i]);
    } else {
      minus_one[i] = ::expm1(value[i]);
      value[i] = ::exp(value[i]);
    }
  }
  return {Vec<T>::load(value), Vec<T>::load(minus_one)};
}

template <bool kSmall = false, class T>
FLASH_RWKV_INLINE Vec<T> exp(Vec<T> x) {
  return exponential<kSmall>(x).value;
}

}  // namespace flash_rwkv::cpu::FLASH_RWKV_ISA
