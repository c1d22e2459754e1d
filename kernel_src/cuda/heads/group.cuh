// Backward through a group of four tokens at once.
//
// With S the state before the group and G the gradient of that after it, every product of the size of the state is one
// with S or with G themselves, which nothing between the tokens changes. What tokens of the group do to each other comes
// down to recurrences of single columns and single rows, with dot products for factors (pairs.cuh).
//
// An Op *reads* the state (y = S r; WKV7 also sa = S a) and *writes* to it (v k; WKV7 also sa b). With `earlier` and
// `later` tokens e <= l, D_{e,l} the product of the decays of e + 1 … l, and p the row gradients dy (and dsa):
//   G x D_{t,4}      rows:    the gradient of a row vector that t writes, before what later tokens of the group add;
//   sum_i G_ij v_i   columns: the gradient of a column vector that t writes, likewise;
//   sum_i S_ij p_i   columns: the gradient of a column vector that t reads with, before what earlier tokens add;
//   sum_i G_ij S_ij  columns: for the gradient of the decays.
#pragma once

#include "cuda/heads/decay.cuh"
#include "cuda/heads/pairs.cuh"
#include "cuda/heads/state.cuh"

namespace flash_rwkv::cuda {

// Vectors over columns in shared memory: for every token those that are written with and those that are read with, and
// one for the whole group. Scaled by decays before the products with S and G, as sums over rows behind them.
template <int kWidth, int kSets>
struct GroupVectors {
  static constexpr int kFloats = (2 * kSets * kGroup + 1) * kWidth;
  static constexpr int kWhole = 2 * kSets * kGroup * kWidth;
  __device__ static constexpr int written(int set, int token) { return (set * kGroup + token) * kWidth; }
  __device__ static constexpr int read(int set, int token) { return written(kSets + set, token); }
  // Roles are the vectors that are read with, then those that are written with.
  __device__ static constexpr int of_role(int role, int token) { return written((role + kSets) % (2 * kSets), token); }
};

__device__ __forceinline__ float decay_of(float retention) {
  return is_near_one(retention) ? 1.0f + retention : retention;
}

// The retention of a product of decays.
__device__ __forceinline__ float retention_product(float x, float y) {
  const float minus_one = fmaf(x, y, x + y);
  const bool near = is_near_one(x) && is_near_one(y) && minus_one > -0.5f;
  return near ? -fabsf(minus_one) : __fmul_rn(decay_of(x), decay_of(y));
}

// --- Columns -----------------------------------------------------------------------------------------------------------

// Scales the column vectors of a group and forms the factors between its tokens. kAll: for the way back; else only what
// recomputing states takes. One lane deals with one column of one vector that is written.
template <class Op, class Shape, bool kAll>
__device__ __forceinline__ void prepare_columns(const float* tokens, const float* bonus, float* scaled, float* shares) {
  constexpr int kWidth = Shape::kWidth;
  constexpr int kToken = Op::kTokenVectors * kWidth;
  using Vectors = GroupVectors<kWidth, Op::kSets>;
  using Factors = PairFactors<Op::kSets, Shape::kWarps>;
  const int set = Factors::set();
  float factors[kPairs] = {};
#pragma unroll
  for (int unit = threadIdx.x; unit < Op::kSets * kWidth; unit += Shape::kThreads) {
    const int column = unit / kWarp * Factors::kLanesEach + Factors::lane();
    float retention[kGroup], d[kGroup], x[kGroup], r[kGroup], a[kGroup];
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      const float* const token = tokens + t * kToken + column;
      retention[t] = token[Op::kDecay * kWidth];
      d[t] = decay_of(retention[t]);
      x[t] = token[Op::written_column(set) * kWidth];
      if constexpr (kAll) {
        r[t] = token[Op::kR * kWidth];
        if constexpr (Op::kFeedback) a[t] = token[Op::kA * kWidth];
      }
    }
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      if constexpr (kAll) {
        const float direct = Op::kFeedback ? r[t] : __fmul_rn(r[t], bonus[column]);
        factors[from_on(t, t)] = fmaf(direct, x[t], factors[from_on(t, t)]);
      }
      float y = x[t];
#pragma unroll
      for (int s = t + 1; s < kGroup; ++s) {
        const float decayed = __fmul_rn(y, d[s]);
        if constexpr (kAll) {
          const float seen = Op::kFeedback ? decayed : y;  // WKV6 reads the state before it decays
          factors[from_on(t, s)] = fmaf(r[s], seen, factors[from_on(t, s)]);
          if constexpr (Op::kFeedback) factors[behind(t, s)] = fmaf(a[s], y, factors[behind(t, s)]);
        }
        y = decayed;
      }
      scaled[Vectors::written(set, t) + column] = y;
    }
    if constexpr (kAll) {
      float before = 1.0f;
#pragma unroll
      for (int t = 0; t < kGroup; ++t) {
        const float after = __fmul_rn(before, d[t]);
        float mine = __fmul_rn(r[t], Op::kFeedback ? after : before);
        if constexpr (Op::kFeedback) mine = set == 0 ? mine : __fmul_rn(a[t], before);
        scaled[Vectors::read(set, t) + column] = mine;
        before = after;
      }
    }
    float whole = retention[0];
#pragma unroll
    for (int t = 1; t < kGroup; ++t) whole = retention_product(whole, retention[t]);
    if (set == 0) scaled[Vectors::kWhole + column] = whole;
  }
  if constexpr (kAll) Factors::leave(factors, shares);
}

// --- The state and its gradient ----------------------------------------------------------------------------------------

// tile <- tile D + sum over tokens of rows · columns, for kSets kinds of them. rows(set, token) points to this thread's
// first row of a vector, `columns` to vectors as GroupVectors has them.
template <int kSets, class Layout, class Rows, class Columns>
__device__ __forceinline__ void through_group(StateTile<Layout>& tile, const Layout& at, const float* whole,
                                              const Rows& rows, const Columns& columns) {
  constexpr int R = Layout::kRows, C = Layout::kColumns;
  float d[C];
  at.columns_of(whole, d);
  const auto decay = [&](auto near) {
#pragma unroll
    for (int i = 0; i < R; ++i)
#pragma unroll
      for (int c = 0; c < C; ++c)
        tile.x[i][c] = fmaf(d[c], tile.x[i][c], kept<decltype(near)::value>(d[c], tile.x[i][c]));
  };
  if (all_near_one(d)) decay(Constant<true>());
  else decay(Constant<false>());
#pragma unroll
  for (int set = 0; set < kSets; ++set)
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      float x[C], p[R];
      at.columns_of(columns(set, t), x);
      elements_of(rows(set, t), p);
#pragma unroll
      for (int i = 0; i < R; ++i)
#pragma unroll
        for (int c = 0; c < C; ++c) tile.x[i][c] = fmaf(p[i], x[c], tile.x[i][c]);
    }
}

// Sums over this warp's rows of tile · a row vector, for the four tokens, into `to`, a vector [kWidth] a token. Lanes of
// different row groups take the tokens in different orders, so that what one gives away is what the other keeps.
template <class Layout>
__device__ __forceinline__ void column_sums(const StateTile<Layout>& tile, const Layout& at, const float* rows,
                                            int token_stride, float* to) {
  constexpr int R = Layout::kRows, C = Layout::kColumns, kRowGroups = Layout::kRowGroups;
  static_assert(kRowGroups <= kGroup);
  float sums[kGroup][C];
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    float p[R];
    elements_of(rows + (i ^ at.row_group) * token_stride, p);
#pragma unroll
    for (int row = 0; row < R; ++row)
#pragma unroll
      for (int c = 0; c < C; ++c) add(sums[i][c], tile.x[row][c], p[row], row == 0);
  }
#pragma unroll
  for (int apart = 1; apart < kRowGroups; apart *= 2)
#pragma unroll
    for (int i = 0; i < kGroup; i += 2 * apart)
#pragma unroll
      for (int c = 0; c < C; ++c) sums[i][c] += __shfl_xor_sync(kAllLanes, sums[i + apart][c], apart * Layout::kLanes);
#pragma unroll
  for (int i = 0; i < kGroup; i += kRowGroups)
#pragma unroll
    for (int q = 0; q < Layout::kQuads; ++q)
      *reinterpret_cast<float4*>(to + (i ^ at.row_group) * Layout::kWidth + at.column(q)) =
          make_float4(sums[i][4 * q], sums[i][4 * q + 1], sums[i][4 * q + 2], sums[i][4 * q + 3]);
}

// Sums over this warp's rows of S · G: a share of the lane's columns, over its row group only until finish.
template <class Layout>
struct OverlapSums {
  float x[Layout::kColumns];

  __device__ __forceinline__ OverlapSums(const StateTile<Layout>& state, const StateTile<Layout>& grad) {
#pragma unroll
    for (int i = 0; i < Layout::kRows; ++i)
#pragma unroll
      for (int c = 0; c < Layout::kColumns; ++c) add(x[c], state.x[i][c], grad.x[i][c], i == 0);
#pragma unroll
    for (int offset = Layout::kLanes; offset < kWarp; offset *= 2)
#pragma unroll
      for (int c = 0; c < Layout::kColumns; ++c) x[c] += __shfl_xor_sync(kAllLanes, x[c], offset);
  }

  __device__ __forceinline__ void store(const Layout& at, float* to) const {
    if (at.row_group != 0) return;
#pragma unroll
    for (int q = 0; q < Layout::kQuads; ++q)
      *reinterpret_cast<float4*>(to + at.column(q)) = make_float4(x[4 * q], x[4 * q + 1], x[4 * q + 2], x[4 * q + 3]);
  }
};

// --- Rows --------------------------------------------------------------------------------------------------------------

// The gradients of the row vectors that tokens write: of v, and of sa where the Op has it. Sums over the columns of G,
// eight (four) of them for every row: lanes take tokens and vectors in different orders, so that what one lane gives away
// is what the other keeps, and each ends with one token of one vector, for kOwned rows.
template <class Op, class Layout>
struct RowGradients {
  static constexpr int R = Layout::kRows, C = Layout::kColumns;
  static constexpr int kKinds = kGroup * Op::kSets;
  using Rest = ScatteredSums<Layout::kLanes / 2, kKinds, R>;
  static constexpr int kOwned = Rest::kOwned;
  using Vectors = GroupVectors<Layout::kWidth, Op::kSets>;

  int token, set;  // what this lane ends with
  int first;       // its first row, of the thread's
  float x[R];

  __device__ __forceinline__ RowGradients()
      : token(threadIdx.x % kGroup), set(threadIdx.x / kGroup % Op::kSets), first(Rest::owned()) {}

  __device__ __forceinline__ void products(const StateTile<Layout>& grad, const Layout& at, const float* scaled) {
    one_vector(grad, at, scaled + Vectors::written(set, 0), x);
    if constexpr (Op::kSets == 2) {
      float other[R];
      one_vector(grad, at, scaled + Vectors::written(1 - set, 0), other);
#pragma unroll
      for (int i = 0; i < R; ++i) x[i] += __shfl_xor_sync(kAllLanes, other[i], kGroup);
    }
    Rest::reduce(x);
  }

  // Adds what later tokens of the group do. factors: of this warp. dy: the row of the first token. The factor of a token
  // that is not later is another pair's, and not used.
  __device__ __forceinline__ void add_later(const float* factors, const float* dy, int token_stride) {
    const float* const with = factors + set * kPairs;
#pragma unroll
    for (int s = 0; s < kGroup; ++s) {
      float p[kOwned];
      elements_of(dy + s * token_stride + first, p);
      const float factor = with[from_on(token, s)];
#pragma unroll
      for (int i = 0; i < kOwned; ++i) {
        if (s >= token) x[i] = fmaf(p[i], factor, x[i]);
      }
    }
    if constexpr (Op::kFeedback) {
#pragma unroll
      for (int s = kGroup - 1; s > 0; --s) {
        const float factor = with[behind(token, s)];
        const int owner = (threadIdx.x % kWarp & ~(kKinds - 1)) + kGroup + s;
#pragma unroll
        for (int i = 0; i < kOwned; ++i) {
          const float dsa = __shfl_sync(kAllLanes, x[i], owner);
          if (s > token) x[i] = fmaf(dsa, factor, x[i]);
        }
      }
    }
  }

 private:
  __device__ __forceinline__ void one_vector(const StateTile<Layout>& grad, const Layout& at, const float* vectors,
                                             float (&out)[R]) const {
    float sums[kGroup][R];
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      float columns[C];
      at.columns_of(vectors + (k ^ token) * Layout::kWidth, columns);
#pragma unroll
      for (int i = 0; i < R; ++i)
#pragma unroll
        for (int c = 0; c < C; ++c) add(sums[k][i], grad.x[i][c], columns[c], c == 0);
    }
#pragma unroll
    for (int i = 0; i < R; ++i) {
      sums[0][i] += __shfl_xor_sync(kAllLanes, sums[1][i], 1);
      sums[2][i] += __shfl_xor_sync(kAllLanes, sums[3][i], 1);
      out[i] = sums[0][i] + __shfl_xor_sync(kAllLanes, sums[2][i], 2);
    }
  }
};

// Factors between the rows of tokens: what each writes, times the gradients that later ones read with. One lane deals with
// one row of one vector that is written; `rows` of them, from first_row on.
template <class Op, class Shape>
__device__ __forceinline__ void row_factors(const float* tokens, const float* dsa, int first_row, float* shares) {
  constexpr int kWidth = Shape::kWidth;
  constexpr int kToken = Op::kTokenVectors * kWidth;
  constexpr int kRows = Shape::Layout::kWarpRows;
  using Factors = PairFactors<Op::kSets, Shape::kWarps>;
  float factors[kPairs] = {};
#pragma unroll
  for (int row = Factors::lane(); row < kRows; row += Factors::kLanesEach) {
    float x[kGroup], dy[kGroup], feedback[kGroup];
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      const float* const token = tokens + t * kToken + first_row + row;
      x[t] = token[Op::written_row(Factors::set()) * kWidth];
      dy[t] = token[Op::kDy * kWidth];
      if constexpr (Op::kFeedback) feedback[t] = dsa[t * Shape::kBlockRows + row];
    }
#pragma unroll
    for (int t = 0; t < kGroup; ++t)
#pragma unroll
      for (int s = t; s < kGroup; ++s) {
        factors[from_on(t, s)] = fmaf(x[t], dy[s], factors[from_on(t, s)]);
        if constexpr (Op::kFeedback) {
          if (s > t) factors[behind(t, s)] = fmaf(x[t], feedback[s], factors[behind(t, s)]);
        }
      }
  }
  Factors::leave(factors, shares);
}

}  // namespace flash_rwkv::cuda
