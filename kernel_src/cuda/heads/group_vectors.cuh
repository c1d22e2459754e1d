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

  __device__ static __forceinline__ void put_written(float* to, int set, int column, const float (&x)[kGroup]) {
#pragma unroll
    for (int t = 0; t < kGroup; ++t) to[written(set, t) + column] = x[t];
  }
  __device__ static __forceinline__ void put_read(float* to, int set, int column, const float (&x)[kGroup]) {
#pragma unroll
    for (int t = 0; t < kGroup; ++t) to[read(set, t) + column] = x[t];
  }
  __device__ static __forceinline__ void put_whole(float* to, int column, float retention) {
    to[kWhole + column] = retention;
  }
};

// The same for the tensor cores, of scaled vectors and of those over rows: elements together with their rests (split.cuh).
// Operands are loaded by ldmatrix, which gives lane 4 g + t element t of four in row g, and no two rows that it takes at a time
// are in the same banks.
template <int kWidth>
struct GroupCells {
  // A row a vector, for products with a tile: a lane takes columns t and t + 4 of every eight.
  static constexpr int kRow = kWidth + 4;
  static constexpr int kVectorRests = 2 * kGroup * kRow;  // behind the elements
  static constexpr int kVectorFloats = 2 * kVectorRests;
  __device__ static constexpr int of_vector(int set, int token, int column) {
    return (set * kGroup + token) * kRow + column;
  }
  // A row a column, of the four tokens of one set, for updates of a tile.
  static constexpr int kColumnSet = kGroup * kWidth;
  static constexpr int kColumnRests = 2 * kColumnSet;
  static constexpr int kColumnFloats = 2 * kColumnRests;
  __device__ static constexpr int of_column(int set, int column) {
    return set * kColumnSet + kGroup * (column ^ (column >> 3 & 1));
  }

  static constexpr int kWritten = 0;                              // vectors on the way back, columns on the way forward
  static constexpr int kRead = kWritten + kVectorFloats;          // columns
  static constexpr int kWrittenRows = kRead + kColumnFloats;      // as kWritten
  static constexpr int kReadRows = kWrittenRows + kVectorFloats;  // vectors
  static constexpr int kWhole = kReadRows + kVectorFloats;
  static constexpr int kFloats = kWhole + 2 * kWidth;

  // Decays of the group, as retentions and what of an element is kept besides, 1 or 0: d x + y = fma(retention, x,
  // fma(kept, x, y)). Those of columns t and t + 4 of eight are neighbours.
  __device__ static constexpr int of_whole(int column) {
    return kWhole + 2 * (column / 8 * 8 + column % 4 * 2 + column / 4 % 2);
  }

  // One element of a vector, two neighbours, or one of a column.
  __device__ static __forceinline__ void put_vector(float* at, float x) {
    at[0] = x;
    at[kVectorRests] = rest_of(x);
  }
  __device__ static __forceinline__ void put_vector(float* at, float x, float y) {
    *reinterpret_cast<float2*>(at) = make_float2(x, y);
    *reinterpret_cast<float2*>(at + kVectorRests) = make_float2(rest_of(x), rest_of(y));
  }
  __device__ static __forceinline__ void put_column(float* at, float x) {
    at[0] = x;
    at[kColumnRests] = rest_of(x);
  }
  __device__ static __forceinline__ void put_column(float* at, const float (&x)[kGroup]) {
    *reinterpret_cast<float4*>(at) = make_float4(x[0], x[1], x[2], x[3]);
    *reinterpret_cast<float4*>(at + kColumnRests) =
        make_float4(rest_of(x[0]), rest_of(x[1]), rest_of(x[2]), rest_of(x[3]));
  }

  __device__ static __forceinline__ void put_written(float* to, int set, int column, const float (&x)[kGroup]) {
#pragma unroll
    for (int t = 0; t < kGroup; ++t) put_vector(to + kWritten + of_vector(set, t, column), x[t]);
  }
  __device__ static __forceinline__ void put_read(float* to, int set, int column, const float (&x)[kGroup]) {
    put_column(to + kRead + of_column(set, column), x);
  }
  __device__ static __forceinline__ void put_whole(float* to, int column, float retention) {
    *reinterpret_cast<float2*>(to + of_whole(column)) = make_float2(retention, is_near_one(retention) ? 1.0f : 0.0f);
  }
};

}  // namespace flash_rwkv::cuda
