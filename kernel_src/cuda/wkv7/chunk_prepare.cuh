// The part of a chunk that does not depend on the state: one warp makes it, for every `preparers`-th chunk.
#pragma once

#include "cuda/chunk/dyadic.cuh"
#include "cuda/wkv7/chunk.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

template <class T, int kSize>
class Prepare {
 public:
  // memory: of this warp, PrepareMemory<kSize>::bytes().
  __device__ __forceinline__ Prepare(const Wkv7Params& p, const ChunkPlan& plan, int64_t batch, int64_t begin,
                                     int64_t head, int length, int split, int warp, char* memory)
      : lane_(threadIdx.x % kWarp),
        g_(lane_ / 4),
        t_(lane_ % 4),
        length_(length),
        warp_(warp),
        form_(p.decay),
        plan_(plan),
        rows_{token_rows(p.r, batch, begin, head), token_rows(p.k, batch, begin, head),
              token_rows(p.a, batch, begin, head), token_rows(p.b, batch, begin, head)},
        w_rows_(token_rows(p.w, batch, begin, head)),
        v_rows_(token_rows(p.v, batch, begin, head)),
        first_v_piece_(split * plan.state_warps * 2),
        stage_{memory},
        ab_(reinterpret_cast<uint4*>(memory + Stage<kSize>::kBytes)),
        in_(memory + Stage<kSize>::kBytes + PrepareMemory<kSize>::kAbBytes) {}

  __device__ __forceinline__ void run() {
    clear_matrices();
    const Barriers barriers(plan_);
    const int chunks = (length_ + kTokens - 1) / kTokens;
    fetch(warp_, 0);
    fetch(warp_, 1);
    for (int chunk = warp_; chunk < chunks; chunk += plan_.preparers) {
      Sums scores[kLevels] = {};
      float rb[2] = {}, rk[2] = {};  // of the diagonal, this lane's columns
      wait<1>();
#pragma unroll 1
      for (int block = 0; block < kBlocks; ++block) {
        if (block == kBlocks / 2) wait<2>();
        Slice x = load(chunk, block);
        // What half of the columns have come from is free for those of the chunk after.
        if (block % (kBlocks / 2) == kBlocks / 2 - 1) {
          __syncwarp();
          fetch(chunk + plan_.preparers, 2 * block / kBlocks);
        }
        scale(x, scores, rb, rk);
        if (block == 0) {
          if (chunk >= plan_.preparers) ptx::bar_sync(barriers.empty(warp_), barriers.threads);
          fetch_values(chunk);
        }
        store(x, block);
      }
      store_scores(scores);
      store_diagonal(rb, Stage<kSize>::kRb);
      store_diagonal(rk, Stage<kSize>::kRk);
      __syncwarp();
      store_fragment(stage_.matrix(Stage<kSize>::kInverse), lane_, inverse());
      wait<2>();
      ptx::bar_arrive(barriers.full(warp_), barriers.threads);
    }
  }

 private:
  static constexpr int kBlocks = kSize / 16;
  enum Vector { kR, kK, kA, kB };

  // Sixteen columns of the chunk: of this lane's two tokens, four columns each.
  struct Slice {
    float r[2][4], k[2][4], a[2][4], b[2][4];
    float log2_decay[2][4];
  };

  // --- Copies. Of each chunk three groups, in this order: a half of all columns, the other one, the values.

  __device__ __forceinline__ void fetch(int chunk, int half) {
    const int first = chunk * kTokens;
    if (first < length_) {
      constexpr int kPieces = kSize / 16;  // of half a row
#pragma unroll
      for (int i = 0; i < PrepareMemory<kSize>::kVectors; ++i)
        tile(i).template fetch<kPieces>(rows_[i], first, length_, half * kPieces, lane_);
      if (plan_.wide_decay) wide_tile().template fetch<2 * kPieces>(w_rows_, first, length_, half * 2 * kPieces, lane_);
      else tile(PrepareMemory<kSize>::kVectors).template fetch<kPieces>(w_rows_, first, length_, half * kPieces, lane_);
    }
    ptx::cp_async_commit_group();
  }

  __device__ __forceinline__ void fetch_values(int chunk) {
    for (int i = 0; i < plan_.state_warps; ++i)
      stage_.v().template fetch<2>(v_rows_, chunk * kTokens, length_, first_v_piece_ + 2 * i, lane_);
    ptx::cp_async_commit_group();
  }

  // Until all but the kGroups youngest groups are there, for the whole warp.
  template <int kGroups>
  __device__ __forceinline__ void wait() {
    ptx::cp_async_wait_group<kGroups>();
    __syncwarp();
  }

  __device__ __forceinline__ Tile<kSize> tile(int vector) const { return {in_ + vector * Tile<kSize>::kBytes}; }
  __device__ __forceinline__ WideTile<kSize> wide_tile() const {
    return {in_ + PrepareMemory<kSize>::kVectors * Tile<kSize>::kBytes};
  }

  // --- Columns, scaled

  __device__ __forceinline__ static void unpack(const Fragment& f, float (&x)[2][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i % 2][i / 2 * 2] = Pair<T>::first(f.x[i]);
      x[i % 2][i / 2 * 2 + 1] = Pair<T>::second(f.x[i]);
    }
  }

  __device__ __forceinline__ Slice load(int chunk, int block) {
    Slice x;
    unpack(tile(kR).load(block, lane_), x.r);
    unpack(tile(kK).load(block, lane_), x.k);
    unpack(tile(kA).load(block, lane_), x.a);
    unpack(tile(kB).load(block, lane_), x.b);
    if (plan_.wide_decay) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 w = wide_tile().load(g_ + i % 2 * 8, 2 * block + i / 2, t_);
        x.log2_decay[i % 2][i / 2 * 2] = w.x;
        x.log2_decay[i % 2][i / 2 * 2 + 1] = w.y;
      }
    } else {
      unpack(tile(PrepareMemory<kSize>::kVectors).load(block, lane_), x.log2_decay);
    }
#pragma unroll
    for (int token = 0; token < 2; ++token) {
      log2_decays(form_, x.log2_decay[token]);
      // Tokens past the end change nothing: their vectors are zeros, and they keep what there is.
      if (chunk * kTokens + 2 * g_ + token >= length_) {
#pragma unroll
        for (int c = 0; c < 4; ++c) x.log2_decay[token][c] = 0.0f;
      }
    }
    return x;
  }

  __device__ __forceinline__ static Operands operands(const Slice& x, int token) {
    return {stacked<T>(x.a[token], x.r[token]), stacked<T>(x.b[token], x.k[token])};
  }

  // Adds this slice's share to the scores of every level, and leaves A~, R~, B^ and K^ and the sum of all log decays.
  __device__ __forceinline__ void scale(Slice& x, Sums (&scores)[kLevels], float (&rb)[2], float (&rk)[2]) const {
    float decay[2][4];
#pragma unroll
    for (int token = 0; token < 2; ++token)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        rb[token] = fmaf(x.r[token][c], x.b[token][c], rb[token]);
        rk[token] = fmaf(x.r[token][c], x.k[token][c], rk[token]);
        decay[token][c] = ptx::ex2_approx_ftz_f32(x.log2_decay[token][c]);
        x.r[token][c] *= decay[token][c];
      }
    multiply_add<T>(scores[0], operands(x, 1).queries, operands(x, 0).keys);
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
    store_fragment(stage_.a(block), lane_, stacked<T>(x.a[0], x.a[1]));
    store_fragment(stage_.r(block), lane_, stacked<T>(x.r[0], x.r[1]));
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

  __device__ __forceinline__ uint4* ab_transposed() const { return ab_ + kWarp; }

  __device__ __forceinline__ void clear_matrices() {
    for (int i = 0; i < Stage<kSize>::kMatrices; ++i) stage_.matrix(i)[lane_] = make_uint4(0, 0, 0, 0);
    ab_[lane_] = make_uint4(0, 0, 0, 0);
    ab_transposed()[lane_] = make_uint4(0, 0, 0, 0);
    __syncwarp();
  }

  __device__ __forceinline__ static void store_element(uint4* matrix, int row, int column, float x) {
    reinterpret_cast<T*>(matrix)[element_of_fragment(row, column)] = from_float<T>(x);
  }

  // An element of A_rb or A_rk, in two parts where one is not enough.
  __device__ __forceinline__ void store_in_parts(int which, int row, int column, float x) const {
    store_element(stage_.matrix(which), row, column, x);
    if constexpr (kSplit<T>) store_element(stage_.matrix(which + 1), row, column, x - to_float(from_float<T>(x)));
  }

  __device__ __forceinline__ void store_scores(const Sums (&scores)[kLevels]) const {
#pragma unroll
    for (int level = 0; level < kLevels; ++level) {
      const int row = query_slot(g_, level);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int key = 2 * t_ + i;
        if (!same_block(g_, key, level)) continue;
        const int column = key_slot(key, level);
        const Sums& s = scores[level];
        store_element(ab_, row, column, s.x[0][i]);
        store_element(ab_transposed(), column, row, s.x[0][i]);
        store_element(stage_.matrix(Stage<kSize>::kAk), row, column, s.x[1][i]);
        store_in_parts(Stage<kSize>::kRb, row, column, s.x[0][2 + i]);
        store_in_parts(Stage<kSize>::kRk, row, column, s.x[1][2 + i]);
      }
    }
  }

  // Nothing decays between a token and itself.
  __device__ __forceinline__ void store_diagonal(float (&x)[2], int which) const {
#pragma unroll
    for (int token = 0; token < 2; ++token) {
      x[token] += __shfl_xor_sync(kAllLanes, x[token], 1);
      x[token] += __shfl_xor_sync(kAllLanes, x[token], 2);
      const int slot = g_ + 8 * token;
      if (t_ == 0) store_in_parts(which, slot, slot, x[token]);
    }
  }

  // (I - A_ab)^-1, from blocks of 2 tokens to those of 4, 8 and 16: as the inverse of [[P, 0], [-A, Q]] is
  // [[P', 0], [Q' A P', Q']], T + T A T has it where T has P' and Q', and A is what A_ab has between them. Powers of A_ab
  // would do with fewer steps, but grow as binomial coefficients do where keys repeat, and cancel then.
  __device__ __forceinline__ Fragment inverse() const {
    const Fragment ab = load_fragment(ab_, lane_), ab_t = load_fragment(ab_transposed(), lane_);
    Sums x, x_t;  // T and its transposed
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      const unsigned mask = level_mask(word, lane_, 0);
      const unsigned pair = ab.x[word] & mask, pair_t = ab_t.x[word] & mask;
      // Words 0 and 3 are of rows and columns that can be the same.
      const float first = word % 3 == 0 && g_ == 2 * t_ ? 1.0f : 0.0f;
      const float second = word % 3 == 0 && g_ == 2 * t_ + 1 ? 1.0f : 0.0f;
      x.x[word / 2][word % 2 * 2] = Pair<T>::first(pair) + first;
      x.x[word / 2][word % 2 * 2 + 1] = Pair<T>::second(pair) + second;
      x_t.x[word / 2][word % 2 * 2] = Pair<T>::first(pair_t) + first;
      x_t.x[word / 2][word % 2 * 2 + 1] = Pair<T>::second(pair_t) + second;
    }
#pragma unroll
    for (int level = 1; level < kLevels; ++level) {
      const Fragment t = rounded<T>(x), t_t = rounded<T>(x_t);
      Fragment between, between_t;
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        const unsigned mask = level_mask(word, lane_, level);
        between.x[word] = ab.x[word] & mask;
        between_t.x[word] = ab_t.x[word] & mask;
      }
      Sums product = zero_sums();
      multiply_add<T>(product, t, between_t);  // T A
      multiply_add<T>(x, rounded<T>(product), t_t);
      if (level + 1 < kLevels) {
        Sums product_t = zero_sums();
        multiply_add<T>(product_t, t_t, between);
        multiply_add<T>(x_t, rounded<T>(product_t), t);
      }
    }
    return rounded<T>(x);
  }

  const int lane_, g_, t_;
  const int length_, warp_;
  const Decay form_;
  const ChunkPlan& plan_;
  const TokenRows rows_[PrepareMemory<kSize>::kVectors];
  const TokenRows w_rows_, v_rows_;
  const int first_v_piece_;
  const Stage<kSize> stage_;
  uint4* const ab_;
  char* const in_;
};

}  // namespace flash_rwkv::cuda::wkv7_chunk
