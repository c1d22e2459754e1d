// Sixteen rows of a matrix, spread over a warp as the tensor cores give it and take it: with g = lane / 4 and t = lane % 4, a
// lane has rows g and g + 8, of every eight columns 2 t and 2 t + 1. Products are with eight vectors at a time, two of each of
// four tokens.
#pragma once

#include "cuda/heads/decay.cuh"
#include "cuda/heads/group_vectors.cuh"

namespace flash_rwkv::cuda {

constexpr int kTensorRows = 16;

__device__ __forceinline__ int lane_row() { return threadIdx.x % kWarp / 4; }     // g
__device__ __forceinline__ int lane_column() { return threadIdx.x % kWarp % 4; }  // t

template <int kWidth>
struct TensorTile {
  using Cells = GroupCells<kWidth>;
  static constexpr int kSteps = kWidth / 8;
  float x[kSteps][4];  // rows g, g, g + 8, g + 8; of both columns 2 t, 2 t + 1

  // Where an element is.
  __device__ __forceinline__ static int row(int i) { return lane_row() + i / 2 * 8; }
  __device__ __forceinline__ static int column(int step, int i) { return 8 * step + 2 * lane_column() + i % 2; }

  // f(step, i, element)
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i) f(step, i, x[step][i]);
  }

  // This tile times eight vectors, given as cells of pairs: of rows g and g + 8 the products with both vectors of token t.
  __device__ __forceinline__ void products(const float* cells, float (&out)[4]) const {
    const float* const mine = cells + Cells::of_pair(lane_row() % 2, lane_row() / 2, 2 * lane_column());
    float sums[kAtOnce][4] = {};
#pragma unroll
    for (int first = 0; first < kSteps; first += kAtOnce) {
      Parts<4> left[kAtOnce];
      Parts<2> right[kAtOnce];
#pragma unroll
      for (int s = 0; s < kAtOnce; ++s) {
        const float (&of)[4] = x[first + s];
        left[s].set(0, of[0]), left[s].set(1, of[2]), left[s].set(2, of[1]), left[s].set(3, of[3]);
        right[s].set(*reinterpret_cast<const float4*>(mine + 16 * (first + s)));
      }
      multiply_add(sums, [&](int s) -> const Parts<4>& { return left[s]; }, right);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
  }

  // Adds the sum over eight vectors of a column times a row. left: of both vectors of token t, rows g and g + 8 of the first,
  // then of the second; cells: of tokens.
  __device__ __forceinline__ void add_products(const Parts<4>& left, const float* cells) {
    const float* const mine = cells + Cells::of_token(0, lane_column(), lane_row());
#pragma unroll
    for (int first = 0; first < kSteps; first += kAtOnce) {
      Parts<2> right[kAtOnce];
      float sums[kAtOnce][4] = {};
#pragma unroll
      for (int s = 0; s < kAtOnce; ++s) right[s].set(*reinterpret_cast<const float4*>(mine + 32 * (first + s)));
      multiply_add(sums, [&](int) -> const Parts<4>& { return left; }, right);
#pragma unroll
      for (int s = 0; s < kAtOnce; ++s)
#pragma unroll
        for (int i = 0; i < 4; ++i) x[first + s][i] += sums[s][i];
    }
  }

  // Such a left operand, of rows from first_row on, from cells of tokens. nothing: 0, which the compiler must not know: it would
  // load neighbouring words at once, into registers in another order than the tensor cores want, and copy them before each
  // product.
  __device__ __forceinline__ static Parts<4> left_of_tokens(const float* cells, int first_row, int nothing) {
    Parts<4> left;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* const cell = cells + Cells::of_token(0, lane_column(), first_row + row(2 * i));
      const float* const same = cell + nothing;
      left.set(i, cell[0], same[2]);
      left.set(i + 2, same[1], cell[3]);
    }
    return left;
  }
  // From cells of pairs, of which it takes no neighbours.
  __device__ __forceinline__ static Parts<4> left_of_pairs(const float* cells, int first_row) {
    Parts<4> left;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const at = cells + Cells::of_pair(i / 2, lane_column(), first_row + row(i % 2 * 2));
      left.set(i, at[0], at[2]);
    }
    return left;
  }

  // Every element times a decay, given as retentions of columns.
  __device__ __forceinline__ void decay_columns(const float* vector) {
    float d[2 * kSteps];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const float2 pair = *reinterpret_cast<const float2*>(vector + 8 * step + 2 * lane_column());
      d[2 * step] = pair.x, d[2 * step + 1] = pair.y;
    }
    decay(all_near_one(d), [&](int step, int i) { return d[2 * step + i % 2]; });
  }

  // The same with those of rows, `vector` from the tile's first row on.
  __device__ __forceinline__ void decay_rows(const float* vector) {
    const float d[2] = {vector[lane_row()], vector[lane_row() + 8]};
    decay(all_near_one(d), [&](int, int i) { return d[i / 2]; });
  }

 private:
  static constexpr int kAtOnce = 4;  // steps, because each product waits for the one before to the same sum

  template <class Retention>
  __device__ __forceinline__ void decay(bool all_near, const Retention& retention) {
    const auto all = [&](auto near) {
      for_each([&](int step, int i, float& element) {
        const float d = retention(step, i);
        element = fmaf(d, element, kept<decltype(near)::value>(d, element));
      });
    };
    if (all_near) all(Constant<true>());
    else all(Constant<false>());
  }
};

}  // namespace flash_rwkv::cuda
