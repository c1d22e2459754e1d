// Where the vectors of a group of tokens lie in shared memory: plain ones, as elements of some type, and behind these in fp32 what
// forward has saved, the decays, and their derivatives.
#pragma once

#include "cuda/heads/vectors.cuh"

namespace flash_rwkv::cuda {

// kToken, kVector: elements from token to token and from vector to vector, of either kind.
template <class Op, class Element_, int kToken, int kVector>
struct GroupTokens {
  using Element = Element_;
  static constexpr int kStride = kToken;

  const Element* plain;
  const float* in_fp32;

  __device__ __forceinline__ const Element* vector(int vector, int token) const {
    return plain + vector * kVector + token * kToken;
  }
  __device__ __forceinline__ const float* fp32_vector(int vector, int token) const {
    return in_fp32 + (vector - Op::kVectors) * kVector + token * kToken;
  }
  __device__ __forceinline__ float element(int which, int token, int column) const {
    return to_float(vector(which, token)[column]);
  }
};

}  // namespace flash_rwkv::cuda
