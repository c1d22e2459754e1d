// The part of a chunk that does not depend on the state: one warp makes it, for every `preparers`-th chunk.
#pragma once

#include "cuda/wkv7/chunk_columns.cuh"
#include "cuda/wkv7/chunk_matrices.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

template <class T, int kSize>
class Prepare {
 public:
  // task.memory: PrepareMemory<kSize>::bytes().
  __device__ __forceinline__ Prepare(const Wkv7Params& p, const ChunkPlan& plan, const PrepareTask& task)
      : p_(p),
        plan_(plan),
        lane_(threadIdx.x % kWarp),
        g_(lane_ / 4),
        t_(lane_ % 4),
        length_(task.length),
        warp_(task.preparer),
        to_fetch_(task.preparer * kTokens),
        columns_(p.decay, task.length),
        stage_{task.memory},
        matrices_{reinterpret_cast<uint4*>(task.memory + Stage<kSize>::kBytes),
                  stage_.matrix(Stage<kSize>::kAk),
                  stage_.matrix(Stage<kSize>::kRb),
                  stage_.matrix(Stage<kSize>::kRk),
                  stage_.matrix(Stage<kSize>::kRbRest),
                  stage_.matrix(Stage<kSize>::kRkRest)},
        in_(task.memory + Stage<kSize>::kBytes + PrepareMemory<kSize>::kAbBytes) {
    const auto first_of = [&](const View& view, int64_t token, int piece) {
      const TokenRows rows = token_rows(view, task.batch, task.begin, task.head);
      return rows.data + token * rows.token_bytes + piece * 16;
    };
    const int64_t token = to_fetch_ + Copies::token(0, lane_);
    r_ = first_of(p.r, token, Copies::piece(lane_));
    k_ = first_of(p.k, token, Copies::piece(lane_));
    a_ = first_of(p.a, token, Copies::piece(lane_));
    b_ = first_of(p.b, token, Copies::piece(lane_));
    w_ = plan.wide_decay ? first_of(p.w, to_fetch_ + WideCopies::token(0, lane_), WideCopies::piece(lane_))
                         : first_of(p.w, token, Copies::piece(lane_));
    v_ = first_of(p.v, to_fetch_ + ValueCopies::token(0, lane_),
                  task.split * plan.state_warps * 2 + ValueCopies::piece(lane_));
    first_v_piece_ = task.split * plan.state_warps * 2 + ValueCopies::piece(lane_);
  }

  __device__ __forceinline__ void run() {
    matrices_.clear();
    const Barriers barriers(plan_);
    fetch(0);
    fetch(1);
    for (int first = warp_ * kTokens; first < length_; first += plan_.preparers * kTokens) {
      Sums scores[kLevels] = {};
      float diagonal[4] = {};  // this lane's columns of r · b and r · k, of two tokens each
      wait<1>();
#pragma unroll 1
      for (int block = 0; block < kBlocks; ++block) {
        if (block == kBlocks / 2) wait<2>();
        const Raw raw = load(block);
        // What half of the columns have come from is free for those of the chunk after.
        if (block % (kBlocks / 2) == kBlocks / 2 - 1) {
          __syncwarp();
          fetch(2 * block / kBlocks);
        }
        Slice x = columns_.unpacked(raw, first);
        columns_.scale(raw, x, scores, diagonal);
        if (block == 0) {
          if (first >= plan_.preparers * kTokens) ptx::bar_sync(barriers.empty(warp_), barriers.threads);
          fetch_values(first);
        }
        store(x, block);
      }
      matrices_.store_scores(scores);
      matrices_.store_diagonal(diagonal);
      __syncwarp();
      store_fragment(stage_.matrix(Stage<kSize>::kInverse), lane_, as_right(matrices_.inverse()));
      wait<2>();
      ptx::bar_arrive(barriers.full(warp_), barriers.threads);
    }
  }

 private:
  static constexpr int kBlocks = kSize / 16;
  using Copies = TileCopies<kSize / 16>;     // of half the columns
  using WideCopies = TileCopies<kSize / 8>;  // the same, in fp32
  using ValueCopies = TileCopies<2>;         // of the rows of a state warp
  enum Vector { kR, kK, kA, kB, kW };

  // --- Copies. Of each chunk three groups, in this order: a half of all columns, the other one, the values.

  // Of this warp's next chunk that is to be fetched.
  __device__ __forceinline__ void fetch(int half) {
    if (to_fetch_ < length_) {
#pragma unroll
      for (int i = 0; i < Copies::kCount; ++i) {
        // In pieces of 16 bytes, to take the other half is to flip one bit of a piece's number.
        const int token = Copies::token(i, lane_);
        const int to = Tile<kSize>::offset(slot_of(token), Copies::piece(lane_)) ^ half * Copies::kPieces * 16;
        const int bytes = to_fetch_ + token < length_ ? 16 : 0;
        const auto copy = [&](int vector, const char* from, const View& view) {
          ptx::cp_async_cg_shared_global<16>(
              in_ + vector * Tile<kSize>::kBytes + to,
              from + half * Copies::kPieces * 16 + i * Copies::kRows * 2 * view.stride[1], bytes);
        };
        copy(kR, r_, p_.r);
        copy(kK, k_, p_.k);
        copy(kA, a_, p_.a);
        copy(kB, b_, p_.b);
        if (!plan_.wide_decay) copy(kW, w_, p_.w);
      }
      if (plan_.wide_decay) {
#pragma unroll
        for (int i = 0; i < WideCopies::kCount; ++i) {
          const int token = WideCopies::token(i, lane_);
          const int piece = half * WideCopies::kPieces + WideCopies::piece(lane_);
          ptx::cp_async_cg_shared_global<16>(
              in_ + kW * Tile<kSize>::kBytes + WideTile<kSize>::offset(slot_of(token), piece),
              w_ + half * WideCopies::kPieces * 16 + i * WideCopies::kRows * 4 * p_.w.stride[1],
              to_fetch_ + token < length_ ? 16 : 0);
        }
      }
    }
    ptx::cp_async_commit_group();
    if (half == 1) {
      const int tokens = plan_.preparers * kTokens;
      to_fetch_ += tokens;
      r_ += tokens * 2 * p_.r.stride[1];
      k_ += tokens * 2 * p_.k.stride[1];
      a_ += tokens * 2 * p_.a.stride[1];
      b_ += tokens * 2 * p_.b.stride[1];
      w_ += tokens * (plan_.wide_decay ? 4 : 2) * p_.w.stride[1];
    }
  }

  __device__ __forceinline__ void fetch_values(int first) {
    const int token = ValueCopies::token(0, lane_);
    const int bytes = first + token < length_ ? 16 : 0;
    for (int i = 0; i < plan_.state_warps; ++i)
      ptx::cp_async_cg_shared_global<16>(stage_.v().data + Tile<kSize>::offset(slot_of(token), first_v_piece_ + 2 * i),
                                         v_ + i * 32, bytes);
    v_ += plan_.preparers * kTokens * 2 * p_.v.stride[1];
    ptx::cp_async_commit_group();
  }

  // Until all but the kGroups youngest groups are there, for the whole warp.
  template <int kGroups>
  __device__ __forceinline__ void wait() {
    ptx::cp_async_wait_group<kGroups>();
    __syncwarp();
  }

  // --- Columns, scaled

  __device__ __forceinline__ Tile<kSize> tile(int vector) const { return {in_ + vector * Tile<kSize>::kBytes}; }

  __device__ __forceinline__ Raw load(int block) const {
    Raw x = {tile(kR).load(block, lane_), tile(kK).load(block, lane_), tile(kA).load(block, lane_),
             tile(kB).load(block, lane_)};
    if (plan_.wide_decay) {
      const WideTile<kSize> w = {in_ + kW * Tile<kSize>::kBytes};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = w.load(g_ + i % 2 * 8, 2 * block + i / 2, t_);
        x.w[i % 2][i / 2 * 2] = pair.x;
        x.w[i % 2][i / 2 * 2 + 1] = pair.y;
      }
    } else {
      unpack<T>(tile(kW).load(block, lane_), x.w);
    }
    return x;
  }

  __device__ __forceinline__ void store(const Slice& x, int block) const {
    store_fragment(stage_.a(block), lane_, right_of<T>(x.a[0], x.a[1]));
    store_fragment(stage_.r(block), lane_, right_of<T>(x.r[0], x.r[1]));
    columns_.store_rows(stage_.b(), x.b, block);
    columns_.store_rows(stage_.k(), x.k, block);
    columns_.store_decay(stage_.decay(), x, block);
  }

  const Wkv7Params& p_;
  const ChunkPlan& plan_;
  const int lane_, g_, t_;
  const int length_, warp_;
  int to_fetch_;                            // first token of the next chunk to be fetched
  const char *r_, *k_, *a_, *b_, *w_, *v_;  // what this lane copies of it
  int first_v_piece_;
  const Columns<T> columns_;
  const Stage<kSize> stage_;
  const TokenMatrices<T, kSplit<T>> matrices_;
  char* const in_;
};

}  // namespace flash_rwkv::cuda::wkv7_chunk
