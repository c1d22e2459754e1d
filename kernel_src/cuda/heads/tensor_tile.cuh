// Sixteen rows of a matrix, spread over a warp as the tensor cores give it and take it: with g = lane / 4 and t = lane % 4, a
// lane has rows 2 g and 2 g + 1 (which the tensor cores call g and g + 8), of every eight columns 2 t and 2 t + 1. Products are with eight vectors at a time, two of each of
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
  float x[kSteps][4];  // rows 2 g, 2 g, 2 g + 1, 2 g + 1; of both columns 2 t, 2 t + 1

  // Where an element is.
  __device__ __forceinline__ static int row(int i) { return 2 * lane_row() + i / 2; }
  __device__ __forceinline__ static int column(int step, int i) { return 8 * step + 2 * lane_column() + i % 2; }

  // f(step, i, element)
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i) f(step, i, x[step][i]);
  }

  // This tile times eight vectors, given as cells of pairs: of both rows the products with both vectors of token t.
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

  // Decays every element and adds the sum over eight vectors of a column times a row. left: of both vectors of token t, both
  // rows of the first, then of the second; cells: of tokens. decays(step): two pairs as of GroupCells::of_whole, of rows
  // or columns.
  template <bool kDecaysOfRows, class Decays>
  __device__ __forceinline__ void update(const Parts<4>& left, const float* cells, const Decays& decays) {
    const float* const mine = cells + Cells::of_token(0, lane_column(), lane_row());
#pragma unroll
    for (int first = 0; first < kSteps; first += kAtOnce) {
      Parts<2> right[kAtOnce];
      float sums[kAtOnce][4] = {};
#pragma unroll
      for (int s = 0; s < kAtOnce; ++s) right[s].set(*reinterpret_cast<const float4*>(mine + 32 * (first + s)));
      multiply_add(sums, [&](int) -> const Parts<4>& { return left; }, right);
#pragma unroll
      for (int s = 0; s < kAtOnce; ++s) {
        const float4 d = decays(first + s);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const bool second = kDecaysOfRows ? i / 2 : i % 2;
          float& element = x[first + s][i];
          element = fmaf(second ? d.z : d.x, element, fmaf(second ? d.w : d.y, element, sums[s][i]));
        }
      }
    }
  }

  // whole: decays of the group, of all rows or columns.
  __device__ __forceinline__ void decay_rows_and_add(const Parts<4>& left, const float* cells, const float* whole,
                                                     int first_row) {
    const float4 d = *reinterpret_cast<const float4*>(whole + 2 * (first_row + row(0)));
    update<true>(left, cells, [&](int) { return d; });
  }
  __device__ __forceinline__ void decay_columns_and_add(const Parts<4>& left, const float* cells, const float* whole) {
    update<false>(left, cells, [&](int step) { return *reinterpret_cast<const float4*>(whole + 2 * column(step, 0)); });
  }

  // Such left operands, of rows from first_row on. nothing: 0, which the compiler must not know: it would load neighbouring words
  // at once, into registers in another order than the tensor cores want, and copy them before each product.
  //
  // From cells of tokens.
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
  // From cells of pairs.
  __device__ __forceinline__ static Parts<4> left_of_pairs(const float* cells, int first_row, int nothing) {
    Parts<4> left;
#pragma unroll
    for (int set = 0; set < 2; ++set) {
      const float* const cell = cells + Cells::of_pair(set, lane_column(), first_row + row(0));
      const float2 pair = *reinterpret_cast<const float2*>(cell);
      const float2 rests = *reinterpret_cast<const float2*>(cell + nothing + 2);
      left.set(2 * set, pair.x, rests.x);
      left.set(2 * set + 1, pair.y, rests.y);
    }
    return left;
  }
  // From two elements of each vector, one behind the other.
  __device__ __forceinline__ static Parts<4> left_of_elements(const float* first, const float* second, int nothing) {
    Parts<4> left;
    left.set(0, first[0]), left.set(1, first[nothing + 1]), left.set(2, second[0]), left.set(3, second[nothing + 1]);
    return left;
  }

 private:
  static constexpr int kAtOnce = 4;  // steps, because each product waits for the one before to the same sum
};

}  // namespace flash_rwkv::cuda
