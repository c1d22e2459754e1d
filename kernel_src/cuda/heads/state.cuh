// A tile of a head's state in registers, and its ways to and from memory.
#pragma once

#include "cuda/heads/layout.cuh"
#include "cuda/heads/vectors.cuh"
#include "cuda/ptx.cuh"

namespace flash_rwkv::cuda {

// How the rows of a state can be read and written: decided on the host, the same for a launch.
enum class StateAccess : int { kAbsent, kFours, kElements };

inline int64_t element_bytes(const View& view) { return view.dtype == DType::kFloat32 ? 4 : 2; }

// Whether rows have no gaps and start at multiples of so many bytes.
inline bool has_aligned_rows(const View& state, int64_t bytes) {
  bool aligned = reinterpret_cast<uintptr_t>(state.data) % bytes == 0 && state.stride[3] == 1;
  for (int i = 0; i < 3; ++i) aligned = aligned && state.stride[i] * element_bytes(state) % bytes == 0;
  return aligned;
}

inline StateAccess access_of(const View& state) {
  if (state.data == nullptr) return StateAccess::kAbsent;
  return has_aligned_rows(state, 4 * element_bytes(state)) ? StateAccess::kFours : StateAccess::kElements;
}

// Rows first_row, first_row + 1, … of one matrix of size · size.
struct StateRows {
  const View& view;
  StateAccess access;
  int64_t slot, head;
  int first_row, size;

  template <class T>
  __device__ __forceinline__ T* at(int row, int column) const {
    return static_cast<T*>(view.data) + slot * view.stride[0] + head * view.stride[1] +
           (first_row + row) * view.stride[2] + column * view.stride[3];
  }
};

// f(row, quad, column) for the fours of a tile that are inside the matrix.
template <class Layout, class F>
__device__ __forceinline__ void for_each_four(const StateRows& rows, const Layout& at, const F& f) {
#pragma unroll
  for (int i = 0; i < Layout::kRows; ++i)
#pragma unroll
    for (int q = 0; q < Layout::kQuads; ++q) {
      const int column = at.column(q);
      if (rows.first_row + i < rows.size && column < rows.size) f(i, q, column);
    }
}

// A tile on its way: all its loads are in flight together, and nobody waits for them before unpack().
template <class T, class Layout>
struct StateLoads {
  Four<T> fours[Layout::kRows][Layout::kQuads];

  __device__ __forceinline__ void fetch(const StateRows& rows, const Layout& at) {
#pragma unroll
    for (int i = 0; i < Layout::kRows; ++i)
#pragma unroll
      for (int q = 0; q < Layout::kQuads; ++q) fours[i][q] = {};
    if (rows.access == StateAccess::kAbsent) return;
    for_each_four(rows, at, [&](int i, int q, int column) { fours[i][q] = load_four(rows.at<T>(i, column)); });
  }

  __device__ __forceinline__ void unpack(float (&x)[Layout::kRows][Layout::kColumns]) const {
#pragma unroll
    for (int i = 0; i < Layout::kRows; ++i)
#pragma unroll
      for (int q = 0; q < Layout::kQuads; ++q) {
        float four[4];
        fours[i][q].unpack(four);
#pragma unroll
        for (int c = 0; c < 4; ++c) x[i][4 * q + c] = four[c];
      }
  }
};

template <class Layout>
struct StateTile {
  float x[Layout::kRows][Layout::kColumns];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < Layout::kRows; ++i)
#pragma unroll
      for (int c = 0; c < Layout::kColumns; ++c) x[i][c] = 0.0f;
  }

  // Zeros beyond the head size and where there is no state.
  __device__ __forceinline__ void load(const StateRows& rows, const Layout& at) {
    if (rows.access == StateAccess::kAbsent) return clear();
    with_type(rows, [&](auto type) {
      if (rows.access == StateAccess::kFours) load_fours<decltype(type)>(rows, at);
      else load_elements<decltype(type)>(rows, at);
    });
  }

  __device__ __forceinline__ void store(const StateRows& rows, const Layout& at) const {
    with_type(rows, [&](auto type) {
      using T = decltype(type);
      for_each_four(rows, at, [&](int i, int q, int column) {
        const float four[4] = {x[i][4 * q], x[i][4 * q + 1], x[i][4 * q + 2], x[i][4 * q + 3]};
        if (rows.access == StateAccess::kFours) {
          store_four(rows.at<T>(i, column), four);
        } else {
#pragma unroll
          for (int c = 0; c < 4; ++c) *rows.at<T>(i, column + c) = from_float<T>(four[c]);
        }
      });
    });
  }

 private:
  template <class F>
  __device__ static __forceinline__ void with_type(const StateRows& rows, const F& f) {
    if (rows.view.dtype == DType::kFloat32) f(float());
    else if (rows.view.dtype == DType::kBFloat16) f(__nv_bfloat16());
    else f(__half());
  }

  template <class T>
  __device__ __forceinline__ void load_fours(const StateRows& rows, const Layout& at) {
    StateLoads<T, Layout> loads;
    loads.fetch(rows, at);
    loads.unpack(x);
  }

  template <class T>
  __device__ __forceinline__ void load_elements(const StateRows& rows, const Layout& at) {
    clear();
    for_each_four(rows, at, [&](int i, int q, int column) {
#pragma unroll
      for (int c = 0; c < 4; ++c) x[i][4 * q + c] = to_float(*rows.at<T>(i, column + c));
    });
  }
};

}  // namespace flash_rwkv::cuda
