// A tile of the state that its own thread puts aside in shared memory: four floats of all threads side by side.
#pragma once

#include "cuda/heads/in_flight.cuh"
#include "cuda/heads/layout.cuh"
#include "cuda/heads/state.cuh"
#include "cuda/heads/vectors.cuh"

namespace flash_rwkv::cuda {

template <class Layout, int kThreads>
class KeptTile {
 public:
  __device__ __forceinline__ explicit KeptTile(float4* shared) : words_(shared) {}

  __device__ __forceinline__ void store(const StateTile<Layout>& tile) {
    for_all([&](int i, int q) {
      const float four[4] = {tile.x[i][4 * q], tile.x[i][4 * q + 1], tile.x[i][4 * q + 2], tile.x[i][4 * q + 3]};
      words_.put(word(i, q), Four<float>::pack(four).raw);
    });
  }

  __device__ __forceinline__ void load(StateTile<Layout>& tile) const {
    for_all([&](int i, int q) {
      float four[4];
      Four<float>{words_.get(word(i, q))}.unpack(four);
#pragma unroll
      for (int c = 0; c < 4; ++c) tile.x[i][4 * q + c] = four[c];
    });
  }

  // Of a matrix in global memory, in the background; zeros beyond its size. wait_for_loads() comes before load().
  __device__ __forceinline__ void fetch(const float* matrix, int first_row, int size, const Layout& at) {
    const float* const first = matrix + first_row * size;
    for_all([&](int i, int q) {
      const bool exists = first_row + i < size && at.column(q) < size;
      words_.fetch(word(i, q), reinterpret_cast<const uint4*>(first + i * size + at.column(q)), exists);
    });
  }

 private:
  template <class F>
  __device__ static __forceinline__ void for_all(const F& f) {
#pragma unroll
    for (int i = 0; i < Layout::kRows; ++i)
#pragma unroll
      for (int q = 0; q < Layout::kQuads; ++q) f(i, q);
  }

  __device__ static __forceinline__ int word(int i, int q) {
    return (i * Layout::kQuads + q) * kThreads + static_cast<int>(threadIdx.x);
  }

  SharedWords<uint4> words_;
};

}  // namespace flash_rwkv::cuda
