// The vectors of aarch64: sixteen bytes, in registers that every such processor has. Included by simd.h.
#pragma once

#include <arm_neon.h>

namespace flash_rwkv::cpu::FLASH_RWKV_ISA {

template <>
struct Vec<float> {
  static constexpr int kLanes = 4;
  static constexpr int kRegisters = 32;
  float32x4_t x;
  static FLASH_RWKV_INLINE Vec load(const float* p) { return {vld1q_f32(p)}; }
  static FLASH_RWKV_INLINE Vec fill(float s) { return {vdupq_n_f32(s)}; }
  FLASH_RWKV_INLINE void store(float* p) const { vst1q_f32(p, x); }
};
FLASH_RWKV_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return {vaddq_f32(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<float> operator-(Vec<float> a, Vec<float> b) { return {vsubq_f32(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return {vmulq_f32(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<float> operator/(Vec<float> a, Vec<float> b) { return {vdivq_f32(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {vfmaq_f32(c.x, a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<float> select_less(Vec<float> a, Vec<float> b, Vec<float> c, Vec<float> d) {
  return {vbslq_f32(vcltq_f32(a.x, b.x), c.x, d.x)};
}
// By comparison: the instructions for them give NaN when either is.
FLASH_RWKV_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return select_less(a, b, a, b); }
FLASH_RWKV_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return select_less(b, a, a, b); }
// In two steps, so that results below the normal range come out right. |n| <= 250.
FLASH_RWKV_INLINE Vec<float> scale_by_power_of_two(Vec<float> a, Vec<float> n) {
  const int32x4_t whole = vcvtnq_s32_f32(n.x);
  const int32x4_t first = vshrq_n_s32(whole, 1);
  const int32x4_t second = vsubq_s32(whole, first);
  const int32x4_t bias = vdupq_n_s32(127);
  const float32x4_t f = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(first, bias), 23));
  const float32x4_t s = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(second, bias), 23));
  return {vmulq_f32(vmulq_f32(a.x, f), s)};
}
FLASH_RWKV_INLINE Vec<float> add_if_negative(Vec<float> sign, Vec<float> a, Vec<float> c) {
  const int32x4_t mask = vshrq_n_s32(vreinterpretq_s32_f32(sign.x), 31);
  return {vaddq_f32(c.x, vreinterpretq_f32_s32(vandq_s32(mask, vreinterpretq_s32_f32(a.x))))};
}
FLASH_RWKV_INLINE Vec<float> set_sign(Vec<float> a) {
  return {vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(a.x), vdupq_n_u32(0x80000000u)))};
}

template <>
struct Vec<double> {
  static constexpr int kLanes = 2;
  static constexpr int kRegisters = 32;
  float64x2_t x;
  static FLASH_RWKV_INLINE Vec load(const double* p) { return {vld1q_f64(p)}; }
  static FLASH_RWKV_INLINE Vec fill(double s) { return {vdupq_n_f64(s)}; }
  FLASH_RWKV_INLINE void store(double* p) const { vst1q_f64(p, x); }
};
FLASH_RWKV_INLINE Vec<double> operator+(Vec<double> a, Vec<double> b) { return {vaddq_f64(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<double> operator-(Vec<double> a, Vec<double> b) { return {vsubq_f64(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<double> operator*(Vec<double> a, Vec<double> b) { return {vmulq_f64(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<double> operator/(Vec<double> a, Vec<double> b) { return {vdivq_f64(a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {vfmaq_f64(c.x, a.x, b.x)}; }
FLASH_RWKV_INLINE Vec<double> select_less(Vec<double> a, Vec<double> b, Vec<double> c, Vec<double> d) {
  return {vbslq_f64(vcltq_f64(a.x, b.x), c.x, d.x)};
}
FLASH_RWKV_INLINE Vec<double> min(Vec<double> a, Vec<double> b) { return select_less(a, b, a, b); }
FLASH_RWKV_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return select_less(b, a, a, b); }
FLASH_RWKV_INLINE Vec<double> add_if_negative(Vec<double> sign, Vec<double> a, Vec<double> c) {
  const int64x2_t mask = vshrq_n_s64(vreinterpretq_s64_f64(sign.x), 63);
  return {vaddq_f64(c.x, vreinterpretq_f64_s64(vandq_s64(mask, vreinterpretq_s64_f64(a.x))))};
}
FLASH_RWKV_INLINE Vec<double> set_sign(Vec<double> a) {
  return {vreinterpretq_f64_u64(vorrq_u64(vreinterpretq_u64_f64(a.x), vdupq_n_u64(uint64_t{1} << 63)))};
}

// See simd.h: (x[0] + x[1]) + (x[2] + x[3]) of every row, pairwise additions being what the instructions offer.
template <int R>
FLASH_RWKV_INLINE void sum_rows(const Vec<float> (&rows)[R], float* out) {
  if constexpr (R % 4 == 0) {
    for (int i = 0; i < R; i += 4) {
      const float32x4_t low = vpaddq_f32(rows[i].x, rows[i + 1].x);
      const float32x4_t high = vpaddq_f32(rows[i + 2].x, rows[i + 3].x);
      vst1q_f32(out + i, vpaddq_f32(low, high));
    }
  } else {
    for (int i = 0; i < R; ++i) out[i] = vaddvq_f32(rows[i].x);
  }
}

template <int R>
FLASH_RWKV_INLINE void sum_rows(const Vec<double> (&rows)[R], double* out) {
  for (int i = 0; i < R; ++i) out[i] = vpaddd_f64(rows[i].x);
}

}  // namespace flash_rwkv::cpu::FLASH_RWKV_ISA
