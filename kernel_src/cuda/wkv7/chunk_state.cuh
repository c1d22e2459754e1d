// The part of a chunk that depends on the state: a warp holds 16 value rows of it, and takes one chunk after the other.
#pragma once

#include "cuda/heads/state.cuh"
#include "cuda/wkv7/chunk.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

template <class T, int kSize>
class StateWarp {
 public:
  // first_row: of the 16 value rows that are this warp's.
  __device__ __forceinline__ StateWarp(int first_row) : lane_(threadIdx.x % kWarp), first_row_(first_row) {}

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

  // y: of the chunk's first token, this head; `tokens` of them are written. release() is called when the stage has been
  // read.
  template <class Release>
  __device__ __forceinline__ void chunk(const Stage<kSize>& stage, T* y, int64_t y_stride, int tokens,
                                        const Release& release) {
    Fragment s[kBlocks];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) s[block] = rounded<T>(s_[block]);
    const Fragment v = stage.v().load_transposed(first_row_ / 16, lane_);

    // --- U' = (S A~' + V' A_ak') T'. Two sums, because each product waits for the one before.
    Sums w = zero_sums(), other = zero_sums();
    multiply_add<T>(w, v, matrix(stage, Stage<kSize>::kAk));
#pragma unroll
    for (int block = 0; block < kBlocks; block += 2) {
      multiply_add<T>(other, s[block], load_fragment<RightFragment>(stage.a(block), lane_));
      multiply_add<T>(w, s[block + 1], load_fragment<RightFragment>(stage.a(block + 1), lane_));
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) w.x[i / 4][i % 4] += other.x[i / 4][i % 4];
    Sums u_sums = zero_sums();
    multiply_add<T>(u_sums, rounded<T>(w), matrix(stage, Stage<kSize>::kInverse));
    const Fragment u = rounded<T>(u_sums);

    // --- Y' = S R~' + V' A_rk' + U' A_rb'
    Sums out = zero_sums();
#pragma unroll
    for (int block = 0; block < kBlocks; ++block)
      multiply_add<T>(out, s[block], load_fragment<RightFragment>(stage.r(block), lane_));
    const RightFragment rb = matrix(stage, Stage<kSize>::kRb);
    multiply_add<T>(out, v, matrix(stage, Stage<kSize>::kRk));
    multiply_add<T>(out, u, rb);
    if constexpr (kSplit<T>) {
      multiply_add<T>(out, v, matrix(stage, Stage<kSize>::kRkRest));
      multiply_add<T>(out, u, matrix(stage, Stage<kSize>::kRbRest));
      multiply_add<T>(out, remainder<T>(u_sums, u), rb);
    }

    // --- S <- S diag(D) + V' K^ + U' B^
    const float2* const decay = reinterpret_cast<const float2*>(stage.decay()) + lane_ % 4;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 d = decay[8 * block + 4 * half];
        float (&x)[4] = s_[block].x[half];
        x[0] *= d.x, x[1] *= d.y, x[2] *= d.x, x[3] *= d.y;
      }
      multiply_add<T>(s_[block], v, stage.k().load_transposed_right(block, lane_));
      multiply_add<T>(s_[block], u, stage.b().load_transposed_right(block, lane_));
    }
    release();
    write(out, y, y_stride, tokens);
  }

 private:
  static constexpr int kBlocks = kSize / 16;

  __device__ __forceinline__ RightFragment matrix(const Stage<kSize>& stage, int which) const {
    return load_fragment<RightFragment>(stage.matrix(which), lane_);
  }

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

  // Neighbouring lanes swap pairs, so that each writes four values that lie side by side.
  __device__ __forceinline__ void write(const Sums& out, T* y, int64_t stride, int tokens) const {
    const Fragment pairs = transposed(rounded<T>(out));
    const bool odd = lane_ % 2;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const unsigned low = pairs.x[row], high = pairs.x[row + 2];  // of values 2t, 2t + 1 and 2t + 8, 2t + 9
      const unsigned got = __shfl_xor_sync(kAllLanes, odd ? low : high, 1);
      const uint2 four = odd ? make_uint2(got, high) : make_uint2(low, got);
      const int token = 2 * (lane_ / 4) + row;
      const int value = first_row_ + (odd ? 8 : 0) + lane_ % 4 / 2 * 4;
      if (token < tokens) *reinterpret_cast<uint2*>(y + token * stride + value) = four;
    }
  }

  const int lane_, first_row_;
  Sums s_[kBlocks];
};

}  // namespace flash_rwkv::cuda::wkv7_chunk
