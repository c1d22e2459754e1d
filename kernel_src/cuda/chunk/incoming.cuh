// Chunks on their way from global to shared memory, as a preparing warp has them copied: the columns of its next chunk
// go over those that it has read, one half of them at a time, and values straight into the stage.
//
// Of each chunk there are three groups of copies, in this order: a half of all columns, the other one, the values.
#pragma once

#include "cuda/chunk/roles.cuh"
#include "cuda/chunk/tiles.cuh"

namespace flash_rwkv::cuda::chunk {

// kVectors vectors of 16 bits an element, and w, of 16 bits or fp32, if it is of tokens. kBack: from the last token to the
// first.
template <int kSize, int kVectors, bool kDecayOfTokens, bool kBack = false>
class Incoming {
 public:
  static __host__ __device__ constexpr int bytes(bool wide_decay) {
    const int decay = wide_decay ? WideTile<kSize>::kBytes : Tile<kSize>::kBytes;
    return kVectors * Tile<kSize>::kBytes + (kDecayOfTokens ? decay : 0);
  }

  // The first kVectors of `vectors`. memory: of bytes(); values: of the stage. All views stay where they are.
  template <int kCount>
  __device__ __forceinline__ Incoming(const View* const (&vectors)[kCount], const View& w, const View& v,
                                      const ChunkPlan& plan, const PrepareTask& task, char* memory, Tile<kSize> values)
      : plan_(plan),
        w_view_(w),
        v_view_(v),
        lane_(threadIdx.x % kWarp),
        length_(task.length),
        missing_(task.missing),
        next_(task.preparer * kTokens),
        first_v_piece_(task.split * plan.state_warps * 2 + ValueCopies::piece(lane_)),
        memory_(memory),
        values_(values) {
    const auto first_of = [&](const View& view, int token, int piece) {
      return token_rows(view, task.batch, task.begin + next_ + token, task.head).data + piece * 16;
    };
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      views_[i] = vectors[i];
      from_[i] = first_of(*vectors[i], Copies::token(0, lane_), Copies::piece(lane_));
    }
    if constexpr (kDecayOfTokens)
      w_ = plan.wide_decay ? first_of(w, WideCopies::token(0, lane_), WideCopies::piece(lane_))
                           : first_of(w, Copies::token(0, lane_), Copies::piece(lane_));
    v_ = first_of(v, ValueCopies::token(0, lane_), first_v_piece_);
  }

  // A half of the columns of this warp's next chunk, if there is one.
  __device__ __forceinline__ void fetch(int half) {
    if (next_ < length_) {
#pragma unroll
      for (int i = 0; i < Copies::kCount; ++i) {
        // In pieces of 16 bytes, to take the other half is to flip one bit of a piece's number.
        const int token = Copies::token(i, lane_);
        const int to = Tile<kSize>::offset(slot_of(token), Copies::piece(lane_)) ^ half * Copies::kPieces * 16;
        const int bytes = exists(next_ + token) ? 16 : 0;
        const auto copy = [&](int vector, const char* from, const View& view) {
          ptx::cp_async_cg_shared_global<16>(
              memory_ + vector * Tile<kSize>::kBytes + to,
              from + half * Copies::kPieces * 16 + i * Copies::kRows * 2 * view.stride[1], bytes);
        };
#pragma unroll
        for (int vector = 0; vector < kVectors; ++vector) copy(vector, from_[vector], *views_[vector]);
        if (kDecayOfTokens && !plan_.wide_decay) copy(kVectors, w_, w_view_);
      }
      if (kDecayOfTokens && plan_.wide_decay) {
#pragma unroll
        for (int i = 0; i < WideCopies::kCount; ++i) {
          const int token = WideCopies::token(i, lane_);
          const int piece = half * WideCopies::kPieces + WideCopies::piece(lane_);
          ptx::cp_async_cg_shared_global<16>(
              memory_ + kVectors * Tile<kSize>::kBytes + WideTile<kSize>::offset(slot_of(token), piece),
              w_ + half * WideCopies::kPieces * 16 + i * WideCopies::kRows * 4 * w_view_.stride[1],
              exists(next_ + token) ? 16 : 0);
        }
      }
    }
    ptx::cp_async_commit_group();
    if (half == 1) {
      const int tokens = plan_.preparers * kTokens;
      next_ += tokens;
#pragma unroll
      for (int i = 0; i < kVectors; ++i) from_[i] += tokens * 2 * views_[i]->stride[1];
      if (kDecayOfTokens) w_ += tokens * (plan_.wide_decay ? 4 : 2) * w_view_.stride[1];
    }
  }

  // Of the chunk whose first token is `first`: the rows of this block's state warps.
  __device__ __forceinline__ void fetch_values(int first) {
    const int token = ValueCopies::token(0, lane_);
    const int bytes = exists(first + token) ? 16 : 0;
    for (int i = 0; i < plan_.state_warps; ++i)
      ptx::cp_async_cg_shared_global<16>(values_.data + Tile<kSize>::offset(slot_of(token), first_v_piece_ + 2 * i),
                                         v_ + i * 32, bytes);
    v_ += plan_.preparers * kTokens * 2 * v_view_.stride[1];
    ptx::cp_async_commit_group();
  }

  // Until all but the kGroups youngest groups are there, for the whole warp.
  template <int kGroups>
  __device__ __forceinline__ void wait() const {
    ptx::cp_async_wait_group<kGroups>();
    __syncwarp();
  }

  __device__ __forceinline__ Tile<kSize> vector(int i) const { return {memory_ + i * Tile<kSize>::kBytes}; }

  // w of this lane's two tokens and four columns.
  template <class T>
  __device__ __forceinline__ void load_decay(int block, float (&w)[2][4]) const {
    static_assert(kDecayOfTokens);
    if (plan_.wide_decay) {
      const WideTile<kSize> tile = {memory_ + kVectors * Tile<kSize>::kBytes};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = tile.load(lane_ / 4 + i % 2 * 8, 2 * block + i / 2, lane_ % 4);
        w[i % 2][i / 2 * 2] = pair.x;
        w[i % 2][i / 2 * 2 + 1] = pair.y;
      }
    } else {
      unpack<T>(vector(kVectors).load(block, lane_), w);
    }
  }

 private:
  __device__ __forceinline__ bool exists(int token) const { return kBack ? token >= missing_ : token < length_; }

  using Copies = TileCopies<kSize / 16>;     // of half the columns
  using WideCopies = TileCopies<kSize / 8>;  // the same, in fp32
  using ValueCopies = TileCopies<2>;         // of the rows of a state warp

  const ChunkPlan& plan_;
  const View *views_[kVectors], &w_view_, &v_view_;
  const int lane_, length_, missing_;
  int next_;                              // first token of the next chunk to be fetched
  const char *from_[kVectors], *w_, *v_;  // what this lane copies of it
  const int first_v_piece_;
  char* const memory_;
  const Tile<kSize> values_;
};

}  // namespace flash_rwkv::cuda::chunk
