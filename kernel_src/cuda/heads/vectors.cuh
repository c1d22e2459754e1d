// Runs of four elements between memory and fp32: one access each, aligned to its size.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/ptx.cuh"

namespace flash_rwkv::cuda {

// Four elements as they lie in memory. Loading and unpacking are two steps, so that loads can be in flight together.
template <class T>
struct Four;

template <>
struct Four<float> {
  uint4 raw;
  __device__ __forceinline__ void unpack(float (&out)[4]) const {
    out[0] = __uint_as_float(raw.x), out[1] = __uint_as_float(raw.y);
    out[2] = __uint_as_float(raw.z), out[3] = __uint_as_float(raw.w);
  }
  __device__ static __forceinline__ Four pack(const float (&x)[4]) {
    return {make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3]))};
  }
};

template <>
struct Four<__nv_bfloat16> {
  uint2 raw;
  __device__ __forceinline__ void unpack(float (&out)[4]) const {
    out[0] = __uint_as_float(raw.x << 16), out[1] = __uint_as_float(raw.x & 0xffff0000u);
    out[2] = __uint_as_float(raw.y << 16), out[3] = __uint_as_float(raw.y & 0xffff0000u);
  }
  __device__ static __forceinline__ Four pack(const float (&x)[4]) {
    const __nv_bfloat162 low = __floats2bfloat162_rn(x[0], x[1]), high = __floats2bfloat162_rn(x[2], x[3]);
    return {make_uint2(*reinterpret_cast<const unsigned*>(&low), *reinterpret_cast<const unsigned*>(&high))};
  }
};

template <>
struct Four<__half> {
  uint2 raw;
  __device__ __forceinline__ void unpack(float (&out)[4]) const {
    const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&raw.x));
    const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&raw.y));
    out[0] = low.x, out[1] = low.y, out[2] = high.x, out[3] = high.y;
  }
  __device__ static __forceinline__ Four pack(const float (&x)[4]) {
    const __half2 low = __floats2half2_rn(x[0], x[1]), high = __floats2half2_rn(x[2], x[3]);
    return {make_uint2(*reinterpret_cast<const unsigned*>(&low), *reinterpret_cast<const unsigned*>(&high))};
  }
};

template <class T>
__device__ __forceinline__ Four<T> load_four(const T* from) {
  return {*reinterpret_cast<const decltype(Four<T>::raw)*>(from)};
}

// Two elements, aligned to their size.
template <class T>
__device__ __forceinline__ void load_pair(const T* from, float (&out)[2]) {
  if constexpr (sizeof(T) == 4) {
    const float2 x = *reinterpret_cast<const float2*>(from);
    out[0] = x.x, out[1] = x.y;
  } else {
    float four[4];
    Four<T>{make_uint2(*reinterpret_cast<const unsigned*>(from), 0)}.unpack(four);
    out[0] = four[0], out[1] = four[1];
  }
}

// For memory that nobody writes while the kernel runs.
template <class T>
__device__ __forceinline__ Four<T> load_constant_four(const void* from) {
  return {__ldg(reinterpret_cast<const decltype(Four<T>::raw)*>(from))};
}

// To global memory. As an instruction: an assignment of the word may be compiled into one store for each of its parts.
template <class T>
__device__ __forceinline__ void store_four(T* to, const float (&x)[4]) {
  ptx::st_global_b32(to, Four<T>::pack(x).raw);
}

// A run of kBytes bytes as one word, of elements of two bytes each; of fp32, two words are as many elements.
template <int kBytes>
struct Run;

template <>
struct Run<4> {
  using type = unsigned;
  template <class T>
  __device__ static __forceinline__ void unpack(unsigned word, float (&out)[2]) {
    float four[4];
    Four<T>{make_uint2(word, 0)}.unpack(four);
    out[0] = four[0], out[1] = four[1];
  }
  __device__ static __forceinline__ void unpack_floats(unsigned first, unsigned second, float (&out)[2]) {
    out[0] = __uint_as_float(first), out[1] = __uint_as_float(second);
  }
};

template <>
struct Run<8> {
  using type = uint2;
  template <class T>
  __device__ static __forceinline__ void unpack(uint2 word, float (&out)[4]) {
    Four<T>{word}.unpack(out);
  }
  __device__ static __forceinline__ void unpack_floats(uint2 first, uint2 second, float (&out)[4]) {
    Four<float>{make_uint4(first.x, first.y, second.x, second.y)}.unpack(out);
  }
};

__device__ __forceinline__ void store_pair(float* to, float x, float y) {
  *reinterpret_cast<float2*>(to) = make_float2(x, y);
}
__device__ __forceinline__ void store_pair(__nv_bfloat16* to, float x, float y) {
  *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(x, y);
}
__device__ __forceinline__ void store_pair(__half* to, float x, float y) {
  *reinterpret_cast<__half2*>(to) = __floats2half2_rn(x, y);
}

}  // namespace flash_rwkv::cuda
