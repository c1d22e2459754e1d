// How a tile of a head's state lies over the lanes of a warp, and sums along its rows.
//
// kLanes lanes share a row; each holds kColumns of its columns, in groups of four so that a load of a group by
// neighbouring lanes is one coalesced access: lane l holds columns 4 l … 4 l + 3 of every run of 4 kLanes columns.
#pragma once

#include <cstdint>

namespace flash_rwkv::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// A value that a lambda can take as a template argument.
template <bool kValue>
struct Constant {
  static constexpr bool value = kValue;
};

// f(i) for 0 <= i < kCount, shared out to kThreads threads.
template <int kCount, int kThreads, class F>
__device__ __forceinline__ void share_out(const F& f) {
#pragma unroll
  for (int first = 0; first < kCount; first += kThreads) {
    const int i = first + static_cast<int>(threadIdx.x);
    if (first + kThreads <= kCount || i < kCount) f(i);
  }
}

// sum += x y, or sum = x y where it is the first.
__device__ __forceinline__ void add(float& sum, float x, float y, bool first) {
  sum = first ? __fmul_rn(x, y) : fmaf(x, y, sum);
}

template <int kLanes_, int kColumns_, int kRows_>
struct TileLayout {
  static constexpr int kLanes = kLanes_;
  static constexpr int kColumns = kColumns_;  // a thread
  static constexpr int kRows = kRows_;        // a thread
  static constexpr int kWidth = kLanes * kColumns;
  static constexpr int kRowGroups = kWarp / kLanes;
  static constexpr int kWarpRows = kRowGroups * kRows;
  static constexpr int kQuads = kColumns / 4;

  int lane;       // within the row
  int row_group;  // within the warp

  __device__ TileLayout() : lane(threadIdx.x % kLanes), row_group(threadIdx.x % kWarp / kLanes) {}

  __device__ __forceinline__ int column(int quad) const { return 4 * (quad * kLanes + lane); }

  // This lane's columns of a vector in shared memory.
  __device__ __forceinline__ void columns_of(const float* vector, float (&out)[kColumns]) const {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const float4 x = *reinterpret_cast<const float4*>(vector + column(q));
      out[4 * q] = x.x, out[4 * q + 1] = x.y, out[4 * q + 2] = x.z, out[4 * q + 3] = x.w;
    }
  }
};

// Consecutive elements of a vector in shared memory, aligned to their size if there are two, or to 16 bytes if more.
template <int kCount>
__device__ __forceinline__ void elements_of(const float* vector, float (&out)[kCount]) {
  if constexpr (kCount % 4 == 0) {
#pragma unroll
    for (int q = 0; q < kCount / 4; ++q) {
      const float4 x = *reinterpret_cast<const float4*>(vector + 4 * q);
      out[4 * q] = x.x, out[4 * q + 1] = x.y, out[4 * q + 2] = x.z, out[4 * q + 3] = x.w;
    }
  } else if constexpr (kCount == 2) {
    const float2 x = *reinterpret_cast<const float2*>(vector);
    out[0] = x.x, out[1] = x.y;
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) out[i] = vector[i];
  }
}

// Adds up kCount numbers over the lanes that differ in the bits kHigh … kLow of their number, halving at each step what
// a lane still deals with. Afterwards every lane owns kOwned of the sums, from owned() on. Lanes are paired in the same
// order whatever kCount is, so the bits of a sum do not depend on how many come along with it.
template <int kHigh, int kLow, int kCount>
struct ScatteredSums {
  static constexpr int kParts = kHigh < kLow ? 1 : 2 * kHigh / kLow;
  static constexpr int kOwned = kCount > kParts ? kCount / kParts : 1;

  __device__ static __forceinline__ void reduce(float (&x)[kCount]) { step<kHigh, kCount>(x); }

  __device__ static __forceinline__ int owned() {
    int first = 0;
    int width = kCount;
#pragma unroll
    for (int offset = kHigh; offset >= kLow && width > 1; offset /= 2) {
      width /= 2;
      if (threadIdx.x & offset) first += width;
    }
    return first;
  }

  // Whether this lane is the first of those that own the same sums.
  __device__ static __forceinline__ bool owns_first() {
    constexpr int kCopies = kParts > kCount ? kParts / kCount : 1;
    return (threadIdx.x & (kLow * (kCopies - 1))) == 0;
  }

  // After reduce: all sums to all lanes.
  __device__ static __forceinline__ void share(const float (&owned)[kCount], float (&all)[kCount]) {
    if constexpr (kCount == 1) {
      all[0] = owned[0];  // every lane owns it
      return;
    }
    const int others = threadIdx.x % kWarp & ~(kLow * (kParts - 1));
#pragma unroll
    for (int i = 0; i < kCount; ++i) all[i] = __shfl_sync(kAllLanes, owned[i % kOwned], others + owner(i));
  }

 private:
  // The first lane that owns sum i.
  __device__ static constexpr int owner(int i) {
    int lane = 0;
    int width = kCount;
    for (int offset = kHigh; offset >= kLow && width > 1; offset /= 2) {
      width /= 2;
      if (i & width) lane += offset;
    }
    return lane;
  }

  template <int kOffset, int kLeft>
  __device__ static __forceinline__ void step(float (&x)[kCount]) {
    if constexpr (kOffset >= kLow && kOffset > 0) {
      if constexpr (kLeft > 1) {
        constexpr int kHalf = kLeft / 2;
        const bool upper = threadIdx.x & kOffset;
#pragma unroll
        for (int i = 0; i < kHalf; ++i) {
          const float away = upper ? x[i] : x[i + kHalf];
          const float mine = upper ? x[i + kHalf] : x[i];
          x[i] = mine + __shfl_xor_sync(kAllLanes, away, kOffset);
        }
        step<kOffset / 2, kHalf>(x);
      } else {
        x[0] += __shfl_xor_sync(kAllLanes, x[0], kOffset);
        step<kOffset / 2, 1>(x);
      }
    }
  }
};

// Over the lanes of a row, of something for each row.
template <class Layout>
using RowSums = ScatteredSums<Layout::kLanes / 2, 1, Layout::kRows>;

}  // namespace flash_rwkv::cuda
