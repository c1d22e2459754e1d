// The part of a chunk that depends on the state: a warp holds 16 value rows of it, and takes one chunk after the other.
#pragma once

#include "cuda/chunk/value_rows.cuh"
#include "cuda/wkv6/chunk.cuh"

namespace flash_rwkv::cuda::wkv6_chunk {

template <class T, int kSize, bool kBack>
class StateWarp : public ValueRows<T, kSize> {
 public:
  using Operand = wkv6_chunk::Operand<T, kBack>;

  __device__ __forceinline__ StateWarp(int first_row) : ValueRows<T, kSize>(first_row) {
#pragma unroll
    for (float& decay : decays_) decay = 1.0f;
  }

  // The state as it is taken as an operand, a fragment for 16 columns.
  using Checkpoint = __nv_bfloat16;
  __device__ __forceinline__ void save(Checkpoint* to) const {
    uint4* const fragments = reinterpret_cast<uint4*>(to) + first_row_ / 16 * kBlocks * kWarp;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block)
      store_fragment(fragments + block * kWarp, lane_, rounded<Checkpoint>(s_[block]));
  }

  // y: of the chunk's first token, this head; tokens from `missing` to `tokens` are written. release() is called when the
  // stage has been read.
  template <class Release>
  __device__ __forceinline__ void chunk(const Stage<Operand, kSize>& stage, T* y, int64_t y_stride, int tokens,
                                        const Release& release, int missing = 0) {
    const Values v = values(stage);

    // --- Y' = S R~' + V' A'
    Sums out = zero_sums();
    add_products(out, v, [&](int part) { return load_fragment<RightFragment>(stage.scores(part), lane_); });
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const Fragment s = rounded<Operand>(s_[block]);
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        multiply_add<Operand>(out, s, load_fragment<RightFragment>(stage.r(block, part), lane_));
    }

    update(stage, v);
    release();
    this->write(out, y, y_stride, tokens, missing);
  }

  // The same without y; the decays are multiplied up.
  template <class Release>
  __device__ __forceinline__ void absorb(const Stage<Operand, kSize>& stage, const Release& release) {
    update(stage, values(stage));
#pragma unroll
    for (int i = 0; i < kSize / kWarp; ++i) decays_[i] *= stage.decay()[i * kWarp + lane_];
    release();
  }
  __device__ __forceinline__ void store_decays(float* to) const {
#pragma unroll
    for (int i = 0; i < kSize / kWarp; ++i) to[i * kWarp + lane_] = decays_[i];
  }

 private:
  static constexpr int kParts = Stage<Operand, kSize>::kParts;
  using ValueRows<T, kSize>::kBlocks;
  using ValueRows<T, kSize>::lane_;
  using ValueRows<T, kSize>::first_row_;
  using ValueRows<T, kSize>::s_;

  // In two parts if an operand has less digits.
  static constexpr int kValueParts = std::is_same_v<T, Operand> ? 1 : 2;
  struct Values {
    Fragment part[kValueParts];
  };

  __device__ __forceinline__ Values values(const Stage<Operand, kSize>& stage) const {
    const Fragment v = stage.v().load_transposed(first_row_ / 16, lane_);
    if constexpr (kValueParts == 1) {
      return {v};
    } else {
      const Fragment most = converted<Operand, T>(v);
      return {most, remainder<Operand>(exact<T>(v), most)};
    }
  }

  // sum += v · transposed(other), other(part) a part of it; two remainders are not multiplied.
  template <class Other>
  __device__ __forceinline__ static void add_products(Sums& sum, const Values& v, const Other& other) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const RightFragment right = other(part);
      multiply_add<Operand>(sum, v.part[0], right);
      if constexpr (kValueParts > 1)
        if (part == 0) multiply_add<Operand>(sum, v.part[1], right);
    }
  }

  // S <- S diag(D) + V' K^
  __device__ __forceinline__ void update(const Stage<Operand, kSize>& stage, const Values& v) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      this->scale(block, stage.decay());
      add_products(s_[block], v, [&](int part) { return stage.k(part).load_transposed_right(block, lane_); });
    }
  }

  float decays_[kSize / kWarp];
};

}  // namespace flash_rwkv::cuda::wkv6_chunk
