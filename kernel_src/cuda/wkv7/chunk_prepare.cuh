// The part of a chunk that does not depend on the state: one warp makes it, for every `preparers`-th chunk.
#pragma once

#include "cuda/chunk/dyadic.cuh"
#include "cuda/wkv7/chunk.cuh"

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
        stage_{task.memory},
        ab_(reinterpret_cast<uint4*>(task.memory + Stage<kSize>::kBytes)),
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
    clear_matrices();
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
        Slice x = unpacked(raw, first);
        scale(raw, x, scores, diagonal);
        if (block == 0) {
          if (first >= plan_.preparers * kTokens) ptx::bar_sync(barriers.empty(warp_), barriers.threads);
          fetch_values(first);
        }
        store(x, block);
      }
      store_scores(scores);
      store_diagonal(diagonal);
      __syncwarp();
      store_fragment(stage_.matrix(Stage<kSize>::kInverse), lane_, as_right(inverse()));
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

  // Sixteen columns of the chunk as they came, and of this lane's two tokens four columns each in fp32.
  struct Raw {
    Fragment r, k, a, b;
    float w[2][4];
  };
  struct Slice {
    float r[2][4], k[2][4], a[2][4], b[2][4];
    float log2_decay[2][4];
  };

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

  __device__ __forceinline__ static void unpack(const Fragment& f, float (&x)[2][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i % 2][i / 2 * 2] = Pair<T>::first(f.x[i]);
      x[i % 2][i / 2 * 2 + 1] = Pair<T>::second(f.x[i]);
    }
  }

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
      unpack(tile(kW).load(block, lane_), x.w);
    }
    return x;
  }

  // first: token of the chunk.
  __device__ __forceinline__ Slice unpacked(const Raw& raw, int first) const {
    Slice x;
    unpack(raw.r, x.r);
    unpack(raw.k, x.k);
    unpack(raw.a, x.a);
    unpack(raw.b, x.b);
#pragma unroll
    for (int i = 0; i < 8; ++i) x.log2_decay[i / 4][i % 4] = raw.w[i / 4][i % 4];
    log2_decays(p_.decay, x.log2_decay);
    if (first + kTokens > length_) {
      // Tokens past the end change nothing: their vectors are zeros, and they keep what there is.
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (first + 2 * g_ + i / 4 >= length_) x.log2_decay[i / 4][i % 4] = 0.0f;
    }
    return x;
  }

  // Adds this slice's share to the scores of every level, and leaves A~, R~, B^ and K^ and the sum of all log decays.
  __device__ __forceinline__ void scale(const Raw& raw, Slice& x, Sums (&scores)[kLevels], float (&diagonal)[4]) const {
    float decay[2][4];
#pragma unroll
    for (int token = 0; token < 2; ++token)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        diagonal[token] = fmaf(x.r[token][c], x.b[token][c], diagonal[token]);
        diagonal[2 + token] = fmaf(x.r[token][c], x.k[token][c], diagonal[2 + token]);
        decay[token][c] = ptx::ex2_approx_ftz_f32(x.log2_decay[token][c]);
        x.r[token][c] *= decay[token][c];
      }
    // Nothing lies between a_t and b_{t-1} or k_{t-1}, nor behind r_t but its own decay.
    const Fragment queries = {
        {raw.a.x[1], Pair<T>::pack(x.r[1][0], x.r[1][1]), raw.a.x[3], Pair<T>::pack(x.r[1][2], x.r[1][3])}};
    const RightFragment keys = {{raw.b.x[0], raw.b.x[2], raw.k.x[0], raw.k.x[2]}};
    multiply_add<T>(scores[0], queries, keys);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      x.a[1][c] *= decay[0][c];
      x.r[1][c] *= decay[0][c];
      x.b[0][c] *= decay[1][c];
      x.k[0][c] *= decay[1][c];
      x.log2_decay[0][c] += x.log2_decay[1][c];
    }
    level<1>(x, scores[1]);
    level<2>(x, scores[2]);
    level<3>(x, scores[3]);
  }

  __device__ __forceinline__ static Operands operands(const Slice& x, int token) {
    return {left_of<T>(x.a[token], x.r[token]), right_of<T>(x.b[token], x.k[token])};
  }

  template <int kLevel>
  __device__ __forceinline__ void level(Slice& x, Sums& scores) const {
    const Operands both = exchanged<kLevel>(g_, operands(x, 0), operands(x, 1));
    multiply_add<T>(scores, both.queries, both.keys);
    float for_queries[4], for_keys[4];
    ascend<kLevel>(g_, x.log2_decay[0], for_queries, for_keys);
#pragma unroll
    for (int token = 0; token < 2; ++token)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        x.a[token][c] *= for_queries[c];
        x.r[token][c] *= for_queries[c];
        x.b[token][c] *= for_keys[c];
        x.k[token][c] *= for_keys[c];
      }
  }

  __device__ __forceinline__ void store(const Slice& x, int block) const {
    store_fragment(stage_.a(block), lane_, right_of<T>(x.a[0], x.a[1]));
    store_fragment(stage_.r(block), lane_, right_of<T>(x.r[0], x.r[1]));
    store_rows(stage_.b(), x.b, block);
    store_rows(stage_.k(), x.k, block);
    if (g_ == 0) {
      float2* const to = reinterpret_cast<float2*>(stage_.decay() + 16 * block + 2 * t_);
#pragma unroll
      for (int i = 0; i < 2; ++i)
        to[4 * i] = make_float2(ptx::ex2_approx_ftz_f32(x.log2_decay[0][2 * i]),
                                ptx::ex2_approx_ftz_f32(x.log2_decay[0][2 * i + 1]));
    }
  }

  __device__ __forceinline__ void store_rows(const Tile<kSize>& to, const float (&x)[2][4], int block) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const pair = &x[i % 2][i / 2 * 2];
      to.store(g_ + i % 2 * 8, 2 * block + i / 2, t_, Pair<T>::pack(pair[0], pair[1]));
    }
  }

  // --- Matrices over tokens. What no pair of tokens belongs to stays zero.

  __device__ __forceinline__ void clear_matrices() {
    for (int i = 0; i < Stage<kSize>::kMatrices; ++i) stage_.matrix(i)[lane_] = make_uint4(0, 0, 0, 0);
    ab_[lane_] = make_uint4(0, 0, 0, 0);
    __syncwarp();
  }

  // Two elements of a row that lie side by side, or the first of them alone.
  template <bool kPair>
  __device__ __forceinline__ static void store_elements(uint4* matrix, int element, float x, float y) {
    T* const to = reinterpret_cast<T*>(matrix) + element;
    if constexpr (kPair) *reinterpret_cast<unsigned*>(to) = Pair<T>::pack(x, y);
    else *to = from_float<T>(x);
  }

  // Of A_rb or A_rk, in two parts where one is not enough.
  template <bool kPair>
  __device__ __forceinline__ void store_in_parts(int which, int element, float x, float y) const {
    store_elements<kPair>(stage_.matrix(which), element, x, y);
    if constexpr (kSplit<T>)
      store_elements<kPair>(stage_.matrix(which + 1), element, x - to_float(from_float<T>(x)),
                            y - to_float(from_float<T>(y)));
  }

  // Keys `key` and, for a pair, key + 1 of a level.
  template <bool kPair>
  __device__ __forceinline__ void store_scores(const Sums& s, int level, int key, int i) const {
    if (!same_block(g_, key, level)) return;
    const int element = element_of_right(query_slot(g_, level), key_slot(key, level));
    store_elements<kPair>(ab_, element, s.x[0][i], s.x[0][i + kPair]);
    store_elements<kPair>(stage_.matrix(Stage<kSize>::kAk), element, s.x[1][i], s.x[1][i + kPair]);
    store_in_parts<kPair>(Stage<kSize>::kRb, element, s.x[0][2 + i], s.x[0][2 + i + kPair]);
    store_in_parts<kPair>(Stage<kSize>::kRk, element, s.x[1][2 + i], s.x[1][2 + i + kPair]);
  }

  __device__ __forceinline__ void store_scores(const Sums (&scores)[kLevels]) const {
#pragma unroll
    for (int level = 0; level < 2; ++level)
#pragma unroll
      for (int i = 0; i < 2; ++i) store_scores<false>(scores[level], level, 2 * t_ + i, i);
    // From here on keys of lanes 2t and 2t + 1 are neighbours.
#pragma unroll
    for (int level = 2; level < kLevels; ++level) store_scores<true>(scores[level], level, 2 * t_, 0);
  }

  // Nothing decays between a token and itself. The four lanes that share two tokens take one sum each.
  __device__ __forceinline__ void store_diagonal(float (&x)[4]) const {
    using Sum = ScatteredSums<2, 1, 4>;
    Sum::reduce(x);
    const int which = Sum::owned();
    const int slot = g_ + which % 2 * 8;
    store_in_parts<false>(which < 2 ? Stage<kSize>::kRb : Stage<kSize>::kRk, element_of_right(slot, slot), x[0], 0.0f);
  }

  // (I - A_ab)^-1, from blocks of 2 tokens to those of 4, 8 and 16: with P' the inverse of P, that of
  // [[P, 0], [-A, Q]] is [[P', 0], [Q' A P', Q']]. T + T A T has it where T has P' and Q', and A is what A_ab has
  // between them. Powers of A_ab would do with fewer steps, but grow as binomial coefficients do where keys repeat, and
  // cancel then.
  __device__ __forceinline__ Fragment inverse() const {
    const RightFragment ab = load_fragment<RightFragment>(ab_, lane_);
    const RightFragment ab_t = as_right(transposed({{ab.x[0], ab.x[2], ab.x[1], ab.x[3]}}));
    Sums x, x_t;  // T and its transposed
    const unsigned pairs = level_mask(g_, t_, 0);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Words 0 and 3 are of rows and columns that can be the same; i counts in the order of right operands.
      const bool same = i % 3 == 0;
      float (&to)[4] = x.x[i % 2], (&to_t)[4] = x_t.x[i % 2];
      to[i / 2 * 2] = same ? (g_ == 2 * t_ ? 1.0f : 0.0f) : Pair<T>::first(ab.x[i] & pairs);
      to[i / 2 * 2 + 1] = same ? (g_ == 2 * t_ + 1 ? 1.0f : 0.0f) : Pair<T>::second(ab.x[i] & pairs);
      to_t[i / 2 * 2] = same ? to[i / 2 * 2] : Pair<T>::first(ab_t.x[i] & pairs);
      to_t[i / 2 * 2 + 1] = same ? to[i / 2 * 2 + 1] : Pair<T>::second(ab_t.x[i] & pairs);
    }
#pragma unroll
    for (int level = 1; level < kLevels; ++level) {
      const Fragment t = rounded<T>(x), t_t = rounded<T>(x_t);
      const unsigned mask = level_mask(g_, t_, level);
      RightFragment between, between_t;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        between.x[i] = ab.x[i] & mask;
        between_t.x[i] = ab_t.x[i] & mask;
      }
      Sums product = zero_sums();
      multiply_add<T>(product, t, between_t);  // T A
      multiply_add<T>(x, rounded<T>(product), as_right(t_t));
      if (level + 1 < kLevels) {
        Sums product_t = zero_sums();
        multiply_add<T>(product_t, t_t, between);
        multiply_add<T>(x_t, rounded<T>(product_t), as_right(t));
      }
    }
    return rounded<T>(x);
  }

  const Wkv7Params& p_;
  const ChunkPlan& plan_;
  const int lane_, g_, t_;
  const int length_, warp_;
  int to_fetch_;                            // first token of the next chunk to be fetched
  const char *r_, *k_, *a_, *b_, *w_, *v_;  // what this lane copies of it
  int first_v_piece_;
  const Stage<kSize> stage_;
  uint4* const ab_;
  char* const in_;
};

}  // namespace flash_rwkv::cuda::wkv7_chunk
