// Sixteen value rows of a head's state, as a warp holds them: sums of the tensor cores, for all chunks.
#pragma once

#include "cuda/chunk/tiles.cuh"

namespace flash_rwkv::cuda::chunk {

template <class T, int kSize>
class ValueRows {
 public:
  static constexpr int kBlocks = kSize / 16;  // of columns

  // first_row: of the 16 value rows that are this warp's.
  __device__ __forceinline__ ValueRows(int first_row) : lane_(threadIdx.x % kWarp), first_row_(first_row) {}

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) s_[block] = zero_sums();
  }

  // From and to fp32 [N_value, N_key] with `row_stride` elements between rows.
  __device__ __forceinline__ void load(const float* matrix, int64_t row_stride) {
    for_each_pair([&](int row, int column, float& x, float& y) {
      const float2 pair = *reinterpret_cast<const float2*>(matrix + row * row_stride + column);
      x = pair.x, y = pair.y;
    });
  }
  __device__ __forceinline__ void store(float* matrix, int64_t row_stride) {
    for_each_pair([&](int row, int column, float x, float y) {
      *reinterpret_cast<float2*>(matrix + row * row_stride + column) = make_float2(x, y);
    });
  }

  // What is saved of a state for backward: sums as they lie in registers, so that a warp writes 512 bytes at once.
  using Checkpoint = float;
  __device__ __forceinline__ void save(Checkpoint* to) const {
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      const float (&x)[4] = s_[i / 2].x[i % 2];
      ptx::st_global_b32(to + place(i), make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]),
                                                   __float_as_uint(x[3])));
    }
  }
  __device__ __forceinline__ void load_saved(const Checkpoint* from) {
#pragma unroll
    for (int i = 0; i < kFours; ++i) take(i, *reinterpret_cast<const float4*>(from + place(i)));
  }

  // What a segment of tokens with these summaries, [N_value, N_key] and [N_key], makes of the state before it.
  __device__ __forceinline__ void append(const float* matrix, const float* decays) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) scale(block, decays);
    for_each_pair([&](int row, int column, float& x, float& y) {
      const float2 pair = *reinterpret_cast<const float2*>(matrix + row * kSize + column);
      x += pair.x, y += pair.y;
    });
  }

 protected:
  static constexpr int kFours = 2 * kBlocks;  // of a lane

  // Where this lane's four number i is in what is saved.
  __device__ __forceinline__ int place(int i) const { return ((first_row_ / 16 * kFours + i) * kWarp + lane_) * 4; }
  __device__ __forceinline__ void take(int i, const float4& four) {
    float (&x)[4] = s_[i / 2].x[i % 2];
    x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
  }

  // Columns 16 block … 16 block + 15 by decays [kSize].
  __device__ __forceinline__ void scale(int block, const float* decays) {
    const float2* const decay = reinterpret_cast<const float2*>(decays) + lane_ % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 d = decay[8 * block + 4 * half];
      float (&x)[4] = s_[block].x[half];
      x[0] *= d.x, x[1] *= d.y, x[2] *= d.x, x[3] *= d.y;
    }
  }

  // values · tokens to y, of which those from `missing` to `tokens` exist: neighbouring lanes swap pairs, so that each
  // writes four values that lie side by side.
  __device__ __forceinline__ void write(const Sums& out, T* y, int64_t stride, int tokens, int missing = 0) const {
    const Fragment pairs = transposed(rounded<T>(out));
    const bool odd = lane_ % 2;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const unsigned low = pairs.x[row], high = pairs.x[row + 2];  // of values 2t, 2t + 1 and 2t + 8, 2t + 9
      const unsigned got = __shfl_xor_sync(kAllLanes, odd ? low : high, 1);
      const uint2 four = odd ? make_uint2(got, high) : make_uint2(low, got);
      const int token = 2 * (lane_ / 4) + row;
      const int value = first_row_ + (odd ? 8 : 0) + lane_ % 4 / 2 * 4;
      if (token >= missing && token < tokens) *reinterpret_cast<uint2*>(y + token * stride + value) = four;
    }
  }

  const int lane_, first_row_;
  Sums s_[kBlocks];

 private:
  // f(row, column, x, y) for pairs of columns.
  template <class F>
  __device__ __forceinline__ void for_each_pair(const F& f) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float* const pair = &s_[block].x[i / 2][i % 2 * 2];
        f(first_row_ + lane_ / 4 + i % 2 * 8, 16 * block + i / 2 * 8 + 2 * (lane_ % 4), pair[0], pair[1]);
      }
  }
};

}  // namespace flash_rwkv::cuda::chunk
