// Rows of any dtype and stride to and from contiguous rows of the compute type.
#pragma once

#include "simd.h"
#include "wkv_params.h"

namespace flash_rwkv::cpu::FLASH_RWKV_ISA {

FLASH_RWKV_INLINE float from_bits(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

FLASH_RWKV_INLINE uint32_t to_bits(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}

FLASH_RWKV_INLINE float bfloat16_to_float(uint16_t h) { return from_bits(static_cast<uint32_t>(h) << 16); }

// Round to nearest, ties to even; NaN stays a (quiet) NaN.
FLASH_RWKV_INLINE uint16_t float_to_bfloat16(float f) {
  const uint32_t bits = to_bits(f);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

FLASH_RWKV_INLINE float float16_to_float(uint16_t h) {
#if defined(__F16C__)
  return _cvtsh_ss(h);
#elif defined(__ARM_NEON)
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0);
#else
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t body = static_cast<uint32_t>(h & 0x7fffu) << 13;
  if (body >= (31u << 23)) return from_bits(sign | 0x7f800000u | (body & 0x7fffffu));
  // Multiplying by 2^112 moves the exponent's bias, and turns subnormal halves into normal floats.
  return from_bits(sign | to_bits(from_bits(body) * from_bits((127u + 112u) << 23)));
#endif
}

FLASH_RWKV_INLINE uint16_t float_to_float16(float f) {
#if defined(__F16C__)
  return _cvtss_sh(f, 0);
#elif defined(__ARM_NEON)
  return vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(f))), 0);
#else
  const uint32_t bits = to_bits(f);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);
  // Adding 0.5 leaves the mantissa of a subnormal half, rounded, in the lowest bits.
  if (magnitude < 0x38800000u)
    return static_cast<uint16_t>(sign | (to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u));
  const uint32_t rebased = magnitude - (112u << 23);
  return static_cast<uint16_t>(sign | ((rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13));
#endif
}

FLASH_RWKV_INLINE int64_t element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

template <class T>
FLASH_RWKV_INLINE T load_element(const void* data, DType dtype, int64_t offset) {
  switch (dtype) {
    case DType::kFloat32: return static_cast<T>(static_cast<const float*>(data)[offset]);
    case DType::kFloat64: return static_cast<T>(static_cast<const double*>(data)[offset]);
    case DType::kBFloat16: return bfloat16_to_float(static_cast<const uint16_t*>(data)[offset]);
    case DType::kFloat16: return float16_to_float(static_cast<const uint16_t*>(data)[offset]);
  }
  return T(0);
}

template <class T>
FLASH_RWKV_INLINE void store_element(void* data, DType dtype, int64_t offset, T value) {
  switch (dtype) {
    case DType::kFloat32: static_cast<float*>(data)[offset] = static_cast<float>(value); return;
    case DType::kFloat64: static_cast<double*>(data)[offset] = static_cast<double>(value); return;
    case DType::kBFloat16: static_cast<uint16_t*>(data)[offset] = float_to_bfloat16(static_cast<float>(value)); return;
    case DType::kFloat16: static_cast<uint16_t*>(data)[offset] = float_to_float16(static_cast<float>(value)); return;
  }
}

// The loops below stand alone, each with one dtype and stride 1, so that the compiler makes them vectors.
template <class T, class S>
void copy_row(const S* source, T* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(source[i]);
}

inline void load_bfloat16_row(const uint16_t* source, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = bfloat16_to_float(source[i]);
}

inline void store_bfloat16_row(const float* source, uint16_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = float_to_bfloat16(source[i]);
}

inline void load_float16_row(const uint16_t* source, float* out, int64_t n) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(half));
  }
#elif defined(__ARM_NEON)
  for (; i + 4 <= n; i += 4) vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(source + i))));
#endif
  for (; i < n; ++i) out[i] = float16_to_float(source[i]);
}

inline void store_float16_row(const float* source, uint16_t* out, int64_t n) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(source + i), 0));
#elif defined(__ARM_NEON)
  for (; i + 4 <= n; i += 4) vst1_u16(out + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(source + i))));
#endif
  for (; i < n; ++i) out[i] = float_to_float16(source[i]);
}

// out[0, n) = n elements from offset on, stride apart.
template <class T>
void load_row(const View& view, int64_t offset, int64_t stride, int64_t n, T* out) {
  if (stride == 1) {
    if (view.dtype == DType::kFloat32) return copy_row(static_cast<const float*>(view.data) + offset, out, n);
    if constexpr (sizeof(T) == 8) {
      if (view.dtype == DType::kFloat64) return copy_row(static_cast<const double*>(view.data) + offset, out, n);
    } else {
      const uint16_t* half = static_cast<const uint16_t*>(view.data) + offset;
      if (view.dtype == DType::kBFloat16) return load_bfloat16_row(half, out, n);
      if (view.dtype == DType::kFloat16) return load_float16_row(half, out, n);
    }
  }
  for (int64_t i = 0; i < n; ++i) out[i] = load_element<T>(view.data, view.dtype, offset + i * stride);
}

template <class T>
void store_row(const View& view, int64_t offset, int64_t stride, int64_t n, const T* source) {
  if (stride == 1) {
    if (view.dtype == DType::kFloat32) return copy_row(source, static_cast<float*>(view.data) + offset, n);
    if constexpr (sizeof(T) == 8) {
      if (view.dtype == DType::kFloat64) return copy_row(source, static_cast<double*>(view.data) + offset, n);
    } else {
      uint16_t* half = static_cast<uint16_t*>(view.data) + offset;
      if (view.dtype == DType::kBFloat16) return store_bfloat16_row(source, half, n);
      if (view.dtype == DType::kFloat16) return store_float16_row(source, half, n);
    }
  }
  for (int64_t i = 0; i < n; ++i) store_element(view.data, view.dtype, offset + i * stride, source[i]);
}

template <class T>
FLASH_RWKV_INLINE void fill_row(T* out, int64_t n, T value) {
  for (int64_t i = 0; i < n; ++i) out[i] = value;
}

// Where a block of tokens of one head begins.
struct Place {
  int64_t batch, token, head;
};

// Whether rows lie as the compute type stores them.
template <class T>
FLASH_RWKV_INLINE bool is_plain(const View& view) {
  constexpr DType kCompute = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
  return view.data != nullptr && view.dtype == kCompute && view.stride[3] == 1;
}

template <class T>
FLASH_RWKV_INLINE T* plain_row(const View& view, Place at) {
  return static_cast<T*>(view.data) + at.batch * view.stride[0] + at.token * view.stride[1] + at.head * view.stride[2];
}

template <int NP, class T>
FLASH_RWKV_INLINE void copy_vectors(const T* source, T* out) {
#pragma GCC unroll 16
  for (int i = 0; i < NP; i += Vec<T>::kLanes) Vec<T>::load(source + i).store(out + i);
}

// out[t][0, NP) = the tokens' rows, zeros in the padding [n, NP) and everywhere if the tensor is absent.
template <int NP, class T>
void load_tokens(const View& view, Place at, int64_t tokens, int64_t n, T* out) {
  if (n == NP && is_plain<T>(view)) {
    const T* row = plain_row<T>(view, at);
    for (int64_t t = 0; t < tokens; ++t, row += view.stride[1], out += NP) copy_vectors<NP>(row, out);
    return;
  }
  for (int64_t t = 0; t < tokens; ++t, out += NP) {
    if (view.data == nullptr) {
      fill_row(out, NP, T(0));
      continue;
    }
    const int64_t offset = at.batch * view.stride[0] + (at.token + t) * view.stride[1] + at.head * view.stride[2];
    load_row(view, offset, view.stride[3], n, out);
    fill_row(out + n, NP - n, T(0));
  }
}

// Columns [first, last) of the tokens' rows.
template <int NP, class T>
void store_tokens(const View& view, Place at, int64_t tokens, int64_t first, int64_t last, const T* source) {
  if (first == 0 && last == NP && is_plain<T>(view)) {
    T* row = plain_row<T>(view, at);
    for (int64_t t = 0; t < tokens; ++t, row += view.stride[1], source += NP) copy_vectors<NP>(source, row);
    return;
  }
  for (int64_t t = 0; t < tokens; ++t, source += NP) {
    const int64_t offset = at.batch * view.stride[0] + (at.token + t) * view.stride[1] + at.head * view.stride[2];
    store_row(view, offset + first * view.stride[3], view.stride[3], last - first, source + first);
  }
}

// Rows [first, last) of the state of one sequence (or slot) and head, [NP][NP] with zeros in the padding.
template <int NP, class T>
void load_state(const View& view, int64_t sequence, int64_t head, int64_t first, int64_t last, int64_t n, T* out) {
  for (int64_t i = first; i < last; ++i) {
    T* row = out + i * NP;
    if (view.data == nullptr || i >= n) {
      fill_row(row, NP, T(0));
      continue;
    }
    load_row(view, sequence * view.stride[0] + head * view.stride[1] + i * view.stride[2], view.stride[3], n, row);
    fill_row(row + n, NP - n, T(0));
  }
}

template <int NP, class T>
void store_state(const View& view, int64_t sequence, int64_t head, int64_t first, int64_t last, int64_t n,
                 const T* state) {
  for (int64_t i = first; i < last && i < n; ++i)
    store_row(view, sequence * view.stride[0] + head * view.stride[1] + i * view.stride[2], view.stride[3], n,
              state + i * NP);
}

}  // namespace flash_rwkv::cpu::FLASH_RWKV_ISA
