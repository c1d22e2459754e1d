// A tile of a head's state in registers, and its ways to and from memory.
#pragma once

#include "cuda/heads/layout.cuh"
#include "cuda/heads/vectors.cuh"

namespace flash_rwkv::cuda {

// Whether four neighbouring columns of a row can be loaded at once: decided on the host, the same for a launch.
inline bool has_rows_of_four(const View& state) {
  if (state.data == nullptr) return true;
  const int64_t bytes = state.dtype == DType::kFloat32 ? 4 : 2;
  const int64_t four = 4 * bytes;
  bool fits = reinterpret_cast<uintptr_t>(state.data) % four == 0 && state.stride[3] == 1;
  for (int i = 0; i < 3; ++i) fits = fits && state.stride[i] * bytes % four == 0;
  return fits;
}

template <class Layout>
struct StateTile {
  float x[Layout::kRows][Layout::kColumns];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < Layout::kRows; ++i)
#pragma unroll
      for (int c = 0; c < Layout::kColumns; ++c) x[i][c] = 0.0f;
  }

  // Rows first_row + i of matrix (slot, head), zeros beyond the head size. Rows of any layout, of any dtype.
  __device__ __forceinline__ void load(const View& view, bool fours, int64_t slot, int64_t head, int first_row, int size,
                                       const Layout& at) {
    clear();
    if (view.data == nullptr) return;
    const int64_t matrix = slot * view.stride[0] + head * view.stride[1];
#pragma unroll
    for (int i = 0; i < Layout::kRows; ++i) {
      const int row = first_row + i;
#pragma unroll
      for (int q = 0; q < Layout::kQuads; ++q) {
        const int column = at.column(q);
        if (row >= size || column >= size) continue;
        float four[4];
        if (fours) {
          load_four(view.data, matrix + row * view.stride[2] + column, view.dtype, four);
        } else {
#pragma unroll
          for (int c = 0; c < 4; ++c)
            four[c] =
                load_element(view.data, matrix + row * view.stride[2] + (column + c) * view.stride[3], view.dtype);
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) x[i][4 * q + c] = four[c];
      }
    }
  }

  __device__ __forceinline__ void store(const View& view, bool fours, int64_t slot, int64_t head, int first_row,
                                        int size, const Layout& at) const {
    const int64_t matrix = slot * view.stride[0] + head * view.stride[1];
#pragma unroll
    for (int i = 0; i < Layout::kRows; ++i) {
      const int row = first_row + i;
#pragma unroll
      for (int q = 0; q < Layout::kQuads; ++q) {
        const int column = at.column(q);
        if (row >= size || column >= size) continue;
        const float four[4] = {x[i][4 * q], x[i][4 * q + 1], x[i][4 * q + 2], x[i][4 * q + 3]};
        if (fours) {
          store_four(view.data, matrix + row * view.stride[2] + column, view.dtype, four);
        } else {
#pragma unroll
          for (int c = 0; c < 4; ++c)
            store_element(view.data, matrix + row * view.stride[2] + (column + c) * view.stride[3], view.dtype,
                          four[c]);
        }
      }
    }
  }
};

}  // namespace flash_rwkv::cuda
