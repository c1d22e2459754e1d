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
};

// Four matrices of 8 · 4 elements in shared memory: lane 8 i + j has the address of row j of matrix i, and lane 4 g + t is given
// element t of row g of each.
__device__ __forceinline__ void load_matrices(const float* row, unsigned (&x)[4]) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // older devices do not come here
  ptx::ldmatrix_x4(x, row);
#endif
}

// A right operand, elements then rests, from such matrices.
__device__ __forceinline__ Parts<2> load_right(const float* row) {
  unsigned x[4];
  load_matrices(row, x);
  return {{x[0], x[1]}, {x[2], x[3]}};
}

// sums += left · right, 16 · 8 and 8 · 8, fragments as in ptx.cuh.
__device__ __forceinline__ void multiply_add(float (&sums)[4], const unsigned (&left)[4], const unsigned (&right)[2]) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  ptx::mma_m16n8k8_f32_tf32(sums, left, right, sums);
#endif
}

// sums[i] += left(i) · right[i]
template <int kCount, class Left>
__device__ __forceinline__ void multiply_add(float (&sums)[kCount][4], const Left& left,
                                             const Parts<2> (&right)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) multiply_add(sums[i], left(i).rest, right[i].whole);
#pragma unroll
  for (int i = 0; i < kCount; ++i) multiply_add(sums[i], left(i).whole, right[i].rest);
#pragma unroll
  for (int i = 0; i < kCount; ++i) multiply_add(sums[i], left(i).whole, right[i].whole);
}

}  // namespace flash_rwkv::cuda
