// Elements of tensors to fp32 and back, rounding to nearest even; what is too large becomes infinity.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "wkv_params.h"

namespace flash_rwkv::cuda {

template <class T>
FLASH_RWKV_ALWAYS_INLINE float to_float(T x);
template <>
FLASH_RWKV_ALWAYS_INLINE float to_float(float x) {
  return x;
}
template <>
FLASH_RWKV_ALWAYS_INLINE float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
template <>
FLASH_RWKV_ALWAYS_INLINE float to_float(__half x) {
  return __half2float(x);
}

template <class T>
FLASH_RWKV_ALWAYS_INLINE T from_float(float x);
template <>
FLASH_RWKV_ALWAYS_INLINE float from_float<float>(float x) {
  return x;
}
template <>
FLASH_RWKV_ALWAYS_INLINE __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
FLASH_RWKV_ALWAYS_INLINE __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

// For tensors of which a thread reads few elements, so that their dtype need not multiply the kernels. Loading bits
// and making a float of them are apart: a thread that does the first for all that it reads waits for memory once.
FLASH_RWKV_ALWAYS_INLINE uint32_t load_bits(const void* data, int64_t index, DType dtype) {
  return dtype == DType::kFloat32 ? static_cast<const uint32_t*>(data)[index]
                                  : static_cast<const uint16_t*>(data)[index];
}

FLASH_RWKV_ALWAYS_INLINE float float_of_bits(uint32_t bits, DType dtype) {
  if (dtype == DType::kFloat16) {
    __half_raw half;
    half.x = static_cast<unsigned short>(bits);
    return to_float(__half(half));
  }
  return __builtin_bit_cast(float, dtype == DType::kBFloat16 ? bits << 16 : bits);
}

FLASH_RWKV_ALWAYS_INLINE float load_as_float(const void* data, int64_t index, DType dtype) {
  return float_of_bits(load_bits(data, index, dtype), dtype);
}

FLASH_RWKV_ALWAYS_INLINE void store_from_float(void* data, int64_t index, DType dtype, float x) {
  if (dtype == DType::kFloat32) static_cast<float*>(data)[index] = x;
  else if (dtype == DType::kBFloat16) static_cast<__nv_bfloat16*>(data)[index] = from_float<__nv_bfloat16>(x);
  else static_cast<__half*>(data)[index] = from_float<__half>(x);
}

// f(T()) with the type of the elements, T in float, __nv_bfloat16, __half. There are no fp64 kernels.
template <class F>
cudaError_t dispatch_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat32: return f(float());
    case DType::kBFloat16: return f(__nv_bfloat16());
    case DType::kFloat16: return f(__half());
    case DType::kFloat64: break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace flash_rwkv::cuda
