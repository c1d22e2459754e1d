// Sixteen rows of a matrix, spread over a warp as the tensor cores give it and take it: with g = lane / 4 and t = lane % 4, a
// lane has rows 2 g and 2 g + 1 (which the tensor cores call g and g + 8), of every eight columns t and t + 4 (2 t and 2 t + 1 of
// what they give, t and t + 4 of what they take). Products are with eight vectors at a time, two of each of four tokens.
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
  float x[kSteps][4];  // rows 2 g, 2 g, 2 g + 1, 2 g + 1; of both columns t, t + 4

  // Where an element is.
  __device__ __forceinline__ static int row(int i) { return 2 * lane_row() + i / 2; }
  __device__ __forceinline__ static int column(int step, int i) { return 8 * step + lane_column() + 4 * (i % 2); }

  // f(step, i, element)
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i) f(step, i, x[step][i]);
  }

  // This tile times eight vectors: of both rows the products with both vectors of token t.
  __device__ __forceinline__ void products(const float* vectors, float (&out)[4]) const {
    const float* const mine = vectors + lane_of_vectors(matrix() / 2, matrix() % 2);
    float sums[kAtOnce][4] = {};
#pragma unroll
    for (int first = 0; first < kSteps; first += kAtOnce) {
      Parts<4> left[kAtOnce];
      Parts<2> right[kAtOnce];
#pragma unroll
      for (int s = 0; s < kAtOnce; ++s) {
        const float (&of)[4] = x[first + s];
        left[s].set(0, of[0]), left[s].set(1, of[2]), left[s].set(2, of[1]), left[s].set(3, of[3]);
        right[s] = load_right(mine + 8 * (first + s));
      }
      multiply_add(sums, [&](int s) -> const Parts<4>& { return left[s]; }, right);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
  }

  // Decays every element and adds the sum over eight vectors of a column times a row. left: of this tile's rows; columns: of all
  // its columns. decays(step): two pairs as of GroupCells::of_whole, of rows or columns.
  template <bool kDecaysOfRows, class Decays>
  __device__ __forceinline__ void update(const Parts<4>& left, const float* columns, const Decays& decays) {
    const int column = matrix_row() / 2 + 4 * (matrix_row() % 2);
    const float* const plane = columns + matrix() * Cells::kColumnSet;
    const float* const mine[2] = {plane + Cells::of_column(0, column), plane + Cells::of_column(0, 8 + column)};
#pragma unroll
    for (int first = 0; first < kSteps; first += kAtOnce) {
      Parts<2> right[kAtOnce];
      float sums[kAtOnce][4] = {};
#pragma unroll
      for (int s = 0; s < kAtOnce; ++s) right[s] = load_right(mine[s % 2] + kGroup * 8 * (first + s - s % 2));
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

  // whole: of the cells of all rows or columns.
  __device__ __forceinline__ void decay_rows_and_add(const Parts<4>& left, const float* columns, const float* cells,
                                                     int first_row) {
    const float2 d0 = *reinterpret_cast<const float2*>(cells + Cells::of_whole(first_row + row(0)));
    const float2 d1 = *reinterpret_cast<const float2*>(cells + Cells::of_whole(first_row + row(2)));
    update<true>(left, columns, [&](int) { return make_float4(d0.x, d0.y, d1.x, d1.y); });
  }
  __device__ __forceinline__ void decay_columns_and_add(const Parts<4>& left, const float* columns,
                                                        const float* cells) {
    update<false>(left, columns,
                  [&](int step) { return *reinterpret_cast<const float4*>(cells + Cells::of_whole(column(step, 0))); });
  }

  // Such a left operand: rows from first_row on, of what lies in columns.
  __device__ __forceinline__ static Parts<4> left_of(const float* columns, int first_row) {
    const float* const mine = columns + Cells::of_column(matrix() / 2, first_row + 2 * matrix_row() + matrix() % 2);
    Parts<4> left;
    load_matrices(mine, left.whole);
    load_matrices(mine + Cells::kColumnRests, left.rest);
    return left;
  }

  // Of the rows column … column + 7, by eights, products of every vector of `left` with all of `right`: of vector g with both of token t.
  template <int kCount>
  __device__ __forceinline__ static void vector_products(const float* left, const float* right, float (&out)[2]) {
    left += lane_of_vectors(matrix() % 2, matrix() / 2);
    right += lane_of_vectors(matrix() / 2, matrix() % 2);
    float sums[4] = {};
#pragma unroll
    for (int i = 0; i < kCount; i += 8) {
      unsigned both[4];  // elements as the first eight rows, rests as the last eight
      load_matrices(left + i, both);
      const Parts<2> of = load_right(right + i);
      multiply_add(sums, both, of.rest);
      multiply_add(sums, both, of.whole);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) out[i] = sums[i] + sums[i + 2];
  }

 private:
  static constexpr int kAtOnce = 4;  // steps, because each product waits for the one before to the same sum

  // The matrix, and the row of it, of which this lane gives load_matrices() the address.
  __device__ __forceinline__ static int matrix() { return threadIdx.x % kWarp / 8; }
  __device__ __forceinline__ static int matrix_row() { return threadIdx.x % 8; }
  // That where row 2 t + i is set i of token t: elements or rests, the first or the last four columns of eight.
  __device__ __forceinline__ static int lane_of_vectors(int rests, int last) {
    return Cells::of_vector(matrix_row() % 2, matrix_row() / 2, 4 * last) + rests * Cells::kVectorRests;
  }
};

}  // namespace flash_rwkv::cuda
