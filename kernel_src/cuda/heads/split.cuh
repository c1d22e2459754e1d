// Products of fp32 matrices on the tensor cores, each operand in two parts of tf32.
//
// x is its 11 leading bits, which are all that the tensor cores read of it, and the rest, of which they read 11 bits more.
// Of the four products of parts the one of the two rests is left out: it is at most 2^-20 of the whole, 2^-23 on average.
// Sums start at zero and are added to what there is by the caller, because tensor cores cut off what does not fit: over a
// thousand groups of tokens that would add up.
#pragma once

#include "cuda/ptx.cuh"

namespace flash_rwkv::cuda {

__device__ __forceinline__ float rest_of(float x) { return x - __uint_as_float(__float_as_uint(x) & 0xffffe000u); }

// kCount elements of a matrix, as a fragment of the tensor cores.
template <int kCount>
struct Parts {
  unsigned whole[kCount], rest[kCount];

  __device__ __forceinline__ void set(int i, float x, float its_rest) {
    whole[i] = __float_as_uint(x);
    rest[i] = __float_as_uint(its_rest);
  }
  __device__ __forceinline__ void set(int i, float x) { set(i, x, rest_of(x)); }
  // Two elements, then their rests.
  __device__ __forceinline__ void set(const float4& cell) {
    set(0, cell.x, cell.z);
    set(1, cell.y, cell.w);
  }
};

// sums[i] += left(i) · right[i], 16 · 8 and 8 · 8, fragments as in ptx.cuh.
template <int kCount, class Left>
__device__ __forceinline__ void multiply_add(float (&sums)[kCount][4], const Left& left,
                                             const Parts<2> (&right)[kCount]) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // older devices do not come here
#pragma unroll
  for (int i = 0; i < kCount; ++i) ptx::mma_m16n8k8_f32_tf32(sums[i], left(i).rest, right[i].whole, sums[i]);
#pragma unroll
  for (int i = 0; i < kCount; ++i) ptx::mma_m16n8k8_f32_tf32(sums[i], left(i).whole, right[i].rest, sums[i]);
#pragma unroll
  for (int i = 0; i < kCount; ++i) ptx::mma_m16n8k8_f32_tf32(sums[i], left(i).whole, right[i].whole, sums[i]);
#endif
}

}  // namespace flash_rwkv::cuda
