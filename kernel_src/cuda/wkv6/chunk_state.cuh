// The part of a chunk that depends on the state: a warp holds 16 value rows of it, and takes one chunk after the other.
#pragma once

#include "cuda/chunk/value_rows.cuh"
#include "cuda/wkv6/chunk.cuh"

namespace flash_rwkv::cuda::wkv6_chunk {

template <class T, int kSize>
class StateWarp : public ValueRows<T, kSize> {
 public:
  using ValueRows<T, kSize>::ValueRows;

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

    // --- S <- S diag(D) + V' K^
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      this->scale(block, stage.decay());
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        multiply_add<T>(s_[block], v, stage.k(part).load_transposed_right(block, lane_));
    }
    release();
    this->write(out, y, y_stride, tokens);
  }

 private:
  static constexpr int kParts = Stage<T, kSize>::kParts;
  using ValueRows<T, kSize>::kBlocks;
  using ValueRows<T, kSize>::lane_;
  using ValueRows<T, kSize>::first_row_;
  using ValueRows<T, kSize>::s_;
};

}  // namespace flash_rwkv::cuda::wkv6_chunk
