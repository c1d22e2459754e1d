// The part of a chunk that depends on the state: a warp holds 16 value rows of it, and takes one chunk after the other.
#pragma once

#include "cuda/chunk/value_rows.cuh"
#include "cuda/wkv7/chunk.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

template <class T, int kSize>
class StateWarp : public ValueRows<T, kSize> {
 public:
  using ValueRows<T, kSize>::ValueRows;

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
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      this->scale(block, stage.decay());
      multiply_add<T>(s_[block], v, stage.k().load_transposed_right(block, lane_));
      multiply_add<T>(s_[block], u, stage.b().load_transposed_right(block, lane_));
    }
    release();
    this->write(out, y, y_stride, tokens);
  }

 private:
  using ValueRows<T, kSize>::kBlocks;
  using ValueRows<T, kSize>::lane_;
  using ValueRows<T, kSize>::first_row_;
  using ValueRows<T, kSize>::s_;

  __device__ __forceinline__ RightFragment matrix(const Stage<kSize>& stage, int which) const {
    return load_fragment<RightFragment>(stage.matrix(which), lane_);
  }
};

}  // namespace flash_rwkv::cuda::wkv7_chunk
