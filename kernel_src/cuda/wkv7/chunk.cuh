// WKV7 in matrix form: what the warps that prepare chunks and those that hold the state tell each other.
//
// With S the state [value, key] before a chunk of 16 tokens, D_t the product of the decays up to token t, d_t's own
// included, and rows = tokens:
//   R~_t = r_t D_t, A~_t = a_t D_{t-1}, and B^_t = b_t D_last / D_t, K^_t likewise, a product of the decays behind t;
//   A_ab, A_ak [t, i] = a_t · b_i, a_t · k_i with the decays strictly between, for i < t;
//   A_rb, A_rk [t, i] = r_t · b_i, r_t · k_i with the decays behind i up to t, for i <= t;
//   T = (I - A_ab)^-1;   U = T (A~ S' + A_ak V), where ' is transposed;
//   Y = R~ S' + A_rb U + A_rk V;   S <- S diag(D_last) + U' B^ + V' K^.
// Everything but U, Y and S is the same for all value rows, and known before S is.
#pragma once

#include <type_traits>

#include "cuda/chunk/roles.cuh"
#include "cuda/chunk/tiles.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

using namespace chunk;

// Where the products with A_rb and A_rk are the worst of all roundings, operands of theirs come in two parts.
template <class T>
constexpr bool kSplit = std::is_same_v<T, __nv_bfloat16>;

// A chunk, prepared: right operands of the products with the state, with values and with U. Rest: what rounding a
// matrix has left over.
template <int kSize>
struct Stage {
  static constexpr int kBlocks = kSize / 16;  // of columns
  enum Matrix { kInverse, kAk, kRb, kRbRest, kRk, kRkRest, kMatrices };

  char* data;

  __device__ uint4* a(int block) const { return reinterpret_cast<uint4*>(data) + block * kWarp; }
  __device__ uint4* r(int block) const { return a(kBlocks + block); }
  __device__ uint4* matrix(int which) const { return a(2 * kBlocks + which); }
  __device__ Tile<kSize> b() const { return {data + kTiles}; }
  __device__ Tile<kSize> k() const { return {data + kTiles + Tile<kSize>::kBytes}; }
  __device__ Tile<kSize> v() const { return {data + kTiles + 2 * Tile<kSize>::kBytes}; }
  __device__ float* decay() const { return reinterpret_cast<float*>(data + kDecay); }

 private:
  static constexpr int kTiles = (2 * kBlocks + kMatrices) * kWarp * static_cast<int>(sizeof(uint4));
  static constexpr int kDecay = kTiles + 3 * Tile<kSize>::kBytes;

 public:
  static constexpr int kBytes = kDecay + kSize * static_cast<int>(sizeof(float));
};

// Shared memory of a preparing warp: its stage, A_ab, and the chunk on its way from global memory.
template <int kSize>
struct PrepareMemory {
  static constexpr int kAbBytes = kWarp * static_cast<int>(sizeof(uint4));
  static constexpr int kVectors = 4;  // r, k, a, b; w comes last, in its own dtype

  static __host__ __device__ constexpr int bytes(bool wide_decay) {
    return Stage<kSize>::kBytes + kAbBytes + kVectors * Tile<kSize>::kBytes +
           (wide_decay ? WideTile<kSize>::kBytes : Tile<kSize>::kBytes);
  }
};

}  // namespace flash_rwkv::cuda::wkv7_chunk
