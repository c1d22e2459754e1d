// Runs of elements of any dtype to fp32 and back. The dtype is known at run time: it is the same for a whole launch, so
// asking costs little, and one kernel serves all dtypes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "wkv_params.h"

namespace flash_rwkv::cuda {

__device__ __forceinline__ int bytes_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// The two elements of one 32-bit word, the first in the low half.
__device__ __forceinline__ float2 unpack_pair(unsigned word, DType dtype) {
  if (dtype == DType::kBFloat16) return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
  return __half22float2(*reinterpret_cast<const __half2*>(&word));
}

__device__ __forceinline__ unsigned pack_pair(float low, float high, DType dtype) {
  if (dtype == DType::kBFloat16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
  }
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}

__device__ __forceinline__ void unpack(uint4 raw, DType dtype, float (&out)[4]) {
  if (dtype == DType::kFloat32) {
    out[0] = __uint_as_float(raw.x), out[1] = __uint_as_float(raw.y);
    out[2] = __uint_as_float(raw.z), out[3] = __uint_as_float(raw.w);
    return;
  }
  const float2 a = unpack_pair(raw.x, dtype), b = unpack_pair(raw.y, dtype);
  out[0] = a.x, out[1] = a.y, out[2] = b.x, out[3] = b.y;
}

// raw[1] is used by fp32 only.
__device__ __forceinline__ void unpack(const uint4 (&raw)[2], DType dtype, float (&out)[8]) {
  if (dtype == DType::kFloat32) {
    out[0] = __uint_as_float(raw[0].x), out[1] = __uint_as_float(raw[0].y);
    out[2] = __uint_as_float(raw[0].z), out[3] = __uint_as_float(raw[0].w);
    out[4] = __uint_as_float(raw[1].x), out[5] = __uint_as_float(raw[1].y);
    out[6] = __uint_as_float(raw[1].z), out[7] = __uint_as_float(raw[1].w);
    return;
  }
  const float2 a = unpack_pair(raw[0].x, dtype), b = unpack_pair(raw[0].y, dtype);
  const float2 c = unpack_pair(raw[0].z, dtype), d = unpack_pair(raw[0].w, dtype);
  out[0] = a.x, out[1] = a.y, out[2] = b.x, out[3] = b.y;
  out[4] = c.x, out[5] = c.y, out[6] = d.x, out[7] = d.y;
}

__device__ __forceinline__ float load_element(const void* data, int64_t index, DType dtype) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(data)[index];
  if (dtype == DType::kBFloat16) return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[index]);
  return __half2float(static_cast<const __half*>(data)[index]);
}

__device__ __forceinline__ void store_element(void* data, int64_t index, DType dtype, float x) {
  if (dtype == DType::kFloat32) static_cast<float*>(data)[index] = x;
  else if (dtype == DType::kBFloat16) static_cast<__nv_bfloat16*>(data)[index] = __float2bfloat16_rn(x);
  else static_cast<__half*>(data)[index] = __float2half_rn(x);
}

// Four elements side by side, aligned to their size.
__device__ __forceinline__ void load_four(const void* data, int64_t index, DType dtype, float (&out)[4]) {
  const char* from = static_cast<const char*>(data) + index * bytes_of(dtype);
  if (dtype == DType::kFloat32) return unpack(*reinterpret_cast<const uint4*>(from), dtype, out);
  const uint2 raw = *reinterpret_cast<const uint2*>(from);
  unpack(make_uint4(raw.x, raw.y, 0, 0), dtype, out);
}

__device__ __forceinline__ void store_four(void* data, int64_t index, DType dtype, const float (&x)[4]) {
  char* to = static_cast<char*>(data) + index * bytes_of(dtype);
  if (dtype == DType::kFloat32) *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
  else *reinterpret_cast<uint2*>(to) = make_uint2(pack_pair(x[0], x[1], dtype), pack_pair(x[2], x[3], dtype));
}

}  // namespace flash_rwkv::cuda
