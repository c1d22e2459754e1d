// WKV6 and WKV5 in matrix form: what the warps that prepare chunks tell those that hold the state.
//
// With S the state [value, key] before a chunk of 16 tokens, D_t the product of the decays up to token t, d_t's own
// included, and rows = tokens:
//   R~_t = r_t D_{t-1}, and K^_t = k_t D_last / D_t, a product of the decays behind t;
//   A [t, i] = r_t · k_i with the decays strictly between, for i < t, and r_t · (u k_t) on the diagonal;
//   Y = R~ S' + A V, where ' is transposed;   S <- S diag(D_last) + V' K^.
// Everything but Y and S is the same for all value rows, and known before S is.
#pragma once

#include <type_traits>

#include "cuda/chunk/incoming.cuh"

namespace flash_rwkv::cuda::wkv6_chunk {

using namespace chunk;

// Gradients have the range of bfloat16, whatever the tokens are.
template <class T, bool kBack>
using Operand = std::conditional_t<kBack, __nv_bfloat16, T>;

// What has been scaled comes in two parts: else each of A, R~ and K^ adds as much to the error as rounding y does.
template <class T>
constexpr bool kSplit = std::is_same_v<T, __nv_bfloat16>;

// A chunk, prepared: right operands of the products with the state and with values. Part 1 is what rounding part 0 has
// left over.
template <class T, int kSize>
struct Stage {
  static constexpr int kBlocks = kSize / 16;  // of columns
  static constexpr int kParts = kSplit<T> ? 2 : 1;

  char* data;

  __device__ uint4* r(int block, int part) const {
    return reinterpret_cast<uint4*>(data) + (block * kParts + part) * kWarp;
  }
  __device__ uint4* scores(int part) const { return r(kBlocks, part); }
  __device__ Tile<kSize> k(int part) const { return {data + kTiles + part * Tile<kSize>::kBytes}; }
  __device__ Tile<kSize> v() const { return k(kParts); }
  __device__ float* decay() const { return reinterpret_cast<float*>(data + kDecay); }

 private:
  static constexpr int kTiles = (kBlocks + 1) * kParts * kWarp * static_cast<int>(sizeof(uint4));
  static constexpr int kDecay = kTiles + (kParts + 1) * Tile<kSize>::kBytes;

 public:
  static constexpr int kBytes = kDecay + kSize * static_cast<int>(sizeof(float));
};

// Shared memory of a preparing warp: its stage, what all chunks of a head have in common, and the chunk on its way from
// global memory.
template <class T, int kSize, bool kDecayOfTokens, bool kBack, bool kSummarizes>
struct PrepareMemory {
  using In = Incoming<kSize, kSummarizes ? 1 : 2, kDecayOfTokens, kBack>;  // k and r
  static constexpr int kBonus = Stage<Operand<T, kBack>, kSize>::kBytes;
  static constexpr int kLog2Decay = kBonus + kSize * static_cast<int>(sizeof(float));
  static constexpr int kIn = kLog2Decay + (kDecayOfTokens ? 0 : kSize * static_cast<int>(sizeof(float)));

  static __host__ __device__ constexpr int bytes(bool wide_decay) { return kIn + In::bytes(wide_decay); }
};

}  // namespace flash_rwkv::cuda::wkv6_chunk
