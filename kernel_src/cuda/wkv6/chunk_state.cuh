// The part of a chunk that depends on the state: a warp holds 16 value rows of it, and takes one chunk after the other.
#pragma once

#include "cuda/chunk/value_rows.cuh"
#include "cuda/wkv6/chunk.cuh"

namespace flash_rwkv::cuda::wkv6_chunk {

template <class T, int kSize>
class StateWarp : public ValueRows<T, kSize> {
 public:
  __device__ __forceinline__ StateWarp(int first_row) : ValueRows<T, kSize>(first_row) {
#pragma unroll
    for (float& decay : decays_) decay = 1.0f;
  }

  // y: of the chunk's first token, this head; `tokens` of them are written. release() is called when the stage has been
  // read.
  template <class Release>
  __device__ __forceinline__ void chunk(const Stage<T, kSize>& stage, T* y, int64_t y_stride, int tokens,
                                        const Release& release) {
    const Fragment v = stage.v().load_transposed(first_row_ / 16, lane_);

    // --- Y' = S R~' + V' A'
    Sums out = zero_sums();
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      multiply_add<T>(out, v, load_fragment<RightFragment>(stage.scores(part), lane_));
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const Fragment s = rounded<T>(s_[block]);
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        multiply_add<T>(out, s, load_fragment<RightFragment>(stage.r(block, part), lane_));
    }

    update(stage, v);
    release();
    this->write(out, y, y_stride, tokens);
  }

  // The same without y; the decays are multiplied up.
  template <class Release>
  __device__ __forceinline__ void absorb(const Stage<T, kSize>& stage, const Release& release) {
    update(stage, stage.v().load_transposed(first_row_ / 16, lane_));
#pragma unroll
    for (int i = 0; i < kSize / kWarp; ++i) decays_[i] *= stage.decay()[i * kWarp + lane_];
    release();
  }
  __device__ __forceinline__ void store_decays(float* to) const {
#pragma unroll
    for (int i = 0; i < kSize / kWarp; ++i) to[i * kWarp + lane_] = decays_[i];
  }

 private:
  static constexpr int kParts = Stage<T, kSize>::kParts;
  using ValueRows<T, kSize>::kBlocks;
  using ValueRows<T, kSize>::lane_;
  using ValueRows<T, kSize>::first_row_;
  using ValueRows<T, kSize>::s_;

  // S <- S diag(D) + V' K^
  __device__ __forceinline__ void update(const Stage<T, kSize>& stage, const Fragment& v) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      this->scale(block, stage.decay());
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        multiply_add<T>(s_[block], v, stage.k(part).load_transposed_right(block, lane_));
    }
  }

  float decays_[kSize / kWarp];
};

}  // namespace flash_rwkv::cuda::wkv6_chunk
