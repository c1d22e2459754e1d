// Where the vectors of a group of four tokens lie in shared memory, as floats, for products with the state and its gradient.
#pragma once

#include "cuda/heads/decay.cuh"
#include "cuda/heads/pairs.cuh"
#include "cuda/heads/split.cuh"

namespace flash_rwkv::cuda {

// Tokens lie in shared memory a few floats further apart than their vectors take, so that the same element of one vector
// of each token is in another bank; dsa likewise.
constexpr int kBankShift = 8;
template <class Op, class Shape>
constexpr int kTokenStride = Op::kTokenVectors * Shape::kWidth + kBankShift;
template <class Shape>
constexpr int kDsaStride = Shape::kBlockRows + kBankShift;
template <int kWidth>
constexpr int kVectorStride = kWidth + kBankShift;

// Vectors over columns: for every token those that are written with and those that are read with, and one for the whole
// group. Scaled by decays before the products with S and G, as sums over rows behind them.
template <int kWidth, int kSets>
struct GroupVectors {
  static constexpr int kStride = kVectorStride<kWidth>;
  static constexpr int kWhole = 2 * kSets * kGroup * kStride;
  static constexpr int kFloats = kWhole + kWidth;
  __device__ static constexpr int written(int set, int token) { return (set * kGroup + token) * kStride; }
  __device__ static constexpr int read(int set, int token) { return written(kSets + set, token); }
  // Roles are the vectors that are read with, then those that are written with.
  __device__ static constexpr int of_role(int role, int token) { return written((role + kSets) % (2 * kSets), token); }

  __device__ static __forceinline__ void put_written(float* to, int set, int token, int column, float x) {
    to[written(set, token) + column] = x;
  }
  __device__ static __forceinline__ void put_read(float* to, int set, int token, int column, float x) {
    to[read(set, token) + column] = x;
  }
  __device__ static __forceinline__ void put_whole(float* to, int column, float retention) {
    to[kWhole + column] = retention;
  }
};

// The same for the tensor cores, of scaled vectors and of those over rows: elements together with their rests (split.cuh), in
// *cells* of four floats which are what a lane takes of a right operand. A product with a tile takes two columns of one vector,
// an update of a tile one column of both vectors of a token. Neither has two lanes at one bank.
template <int kWidth>
struct GroupCells {
  // Of two columns.
  static constexpr int kSetStride = 2 * kWidth + 16;
  static constexpr int kPairStride = kSetStride + 2 * kWidth;  // from token to token
  static constexpr int kPairFloats = kGroup * kPairStride;
  __device__ static constexpr int of_pair(int set, int token, int column) {
    return token * kPairStride + set * kSetStride + column / 2 * 4 + column % 2;
  }
  // Of both vectors.
  static constexpr int kTokenStride = 4 * kWidth + 8;
  static constexpr int kTokenFloats = kGroup * kTokenStride;
  __device__ static constexpr int of_token(int set, int token, int column) {
    return token * kTokenStride + column * 4 + set;
  }

  static constexpr int kWritten = 0;                            // pairs, scaled
  static constexpr int kRead = kWritten + kPairFloats;          // tokens, scaled
  static constexpr int kWrittenRows = kRead + kTokenFloats;     // pairs on the way back, tokens on the way forward
  static constexpr int kReadRows = kWrittenRows + kPairFloats;  // pairs
  static constexpr int kWhole = kReadRows + kPairFloats;
  static constexpr int kFloats = kWhole + 2 * kWidth;

  // Decays of the group, as retentions and what of an element is kept besides, 1 or 0: d x + y = fma(retention, x,
  // fma(kept, x, y)).
  __device__ static constexpr int of_whole(int column) { return kWhole + 2 * column; }

  // The element of a cell at `at`.
  __device__ static __forceinline__ void put(float* at, float x) {
    at[0] = x;
    at[2] = rest_of(x);
  }
  __device__ static __forceinline__ void put(float* cell, float x, float y) {
    *reinterpret_cast<float4*>(cell) = make_float4(x, y, rest_of(x), rest_of(y));
  }

  __device__ static __forceinline__ void put_written(float* to, int set, int token, int column, float x) {
    put(to + kWritten + of_pair(set, token, column), x);
  }
  __device__ static __forceinline__ void put_read(float* to, int set, int token, int column, float x) {
    put(to + kRead + of_token(set, token, column), x);
  }
  __device__ static __forceinline__ void put_whole(float* to, int column, float retention) {
    *reinterpret_cast<float2*>(to + of_whole(column)) = make_float2(retention, is_near_one(retention) ? 1.0f : 0.0f);
  }
};

}  // namespace flash_rwkv::cuda
