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

// Tokens lie in shared memory a few floats further apart than their vectors take, so that the same element of one vector
// of each token is in another bank; dsa likewise.
constexpr int kBankShift = 4;
template <class Op, class Shape>
constexpr int kTokenStride = Op::kTokenVectors * Shape::kWidth + kBankShift;
template <class Shape>
constexpr int kDsaStride = Shape::kBlockRows + kBankShift;

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

// Scales the column vectors of a group and forms the factors between its tokens. A warp deals with kColumns columns at a
// time, a lane with one column of one vector that is written.
template <class Op, class Shape>
class ColumnPreparation {
 public:
  static constexpr int kColumns = kWarp / Op::kSets;
  // What factors are products of, side by side in shared memory, in rows that do not share banks: what tokens write,
  // as it is and as the third and fourth token see it; and what they read with.
  static constexpr int kStride = kColumns + 4;
  static constexpr int kSeen = 7;    // a set: of tokens 0, 1, 2, 3, then of 0 for 2, 0 for 3, 1 for 3
  static constexpr int kReads = 10;  // by tokens 0 … 3 of what they write, then by 1, 2, 3 of what was before (WKV7: of
                                     // y, then of sa)
  static constexpr int kFloats = (Op::kSets * kSeen + kReads) * kStride;  // a warp

  // scratch: of this warp.
  __device__ __forceinline__ static void run(const float* tokens, const float* bonus, float* scaled, float* scratch,
                                             float* shares) {
    const Factors factor;
    const float* const x = scratch + seen(factor.set, factor.earlier, factor.later) * kStride;
    const float* const y = scratch + read(factor) * kStride;
    float share = 0.0f;
#pragma unroll 1
    for (int first = threadIdx.x / kWarp * kColumns; first < Shape::kWidth; first += Shape::kWarps * kColumns) {
      scale(tokens, bonus, scaled, scratch, first + static_cast<int>(threadIdx.x) % kColumns);
      __syncwarp();
      share += Factors::template dot<kColumns>(x, y);
      __syncwarp();
    }
    Factors::leave(share, shares);
  }

 private:
  using Factors = PairFactors<Op::kSets, Shape::kWarps>;
  using Vectors = GroupVectors<Shape::kWidth, Op::kSets>;

  // What a later token sees of what an earlier one wrote, before that token's own decay.
  __device__ __forceinline__ static int seen(int set, int earlier, int later) {
    const int apart = later - earlier;
    return set * kSeen + (apart < 2 ? earlier : 2 + earlier + later);
  }

  __device__ __forceinline__ static int read(const Factors& factor) {
    const int first = Op::kSets * kSeen;
    if (factor.earlier == factor.later) return first + factor.later;
    return first + 3 + factor.later + (factor.is_behind ? 3 : 0);
  }

  __device__ __forceinline__ static void scale(const float* tokens, const float* bonus, float* scaled, float* scratch,
                                               int column) {
    constexpr int kWidth = Shape::kWidth;
    constexpr int kToken = kTokenStride<Op, Shape>;
    const int set = static_cast<int>(threadIdx.x) / kColumns % Op::kSets;
    float* const mine = scratch + static_cast<int>(threadIdx.x) % kColumns;
    float retention[kGroup], d[kGroup], x[kGroup], r[kGroup], a[kGroup] = {};
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      const float* const token = tokens + t * kToken + column;
      retention[t] = token[Op::kDecay * kWidth];
      d[t] = decay_of(retention[t]);
      x[t] = token[Op::written_column(set) * kWidth];
      r[t] = token[Op::kR * kWidth];
      if constexpr (Op::kFeedback) a[t] = token[Op::kA * kWidth];
    }
    // --- What is written, on its way to the end of the group
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      mine[seen(set, t, t) * kStride] = x[t];
      float y = x[t];
#pragma unroll
      for (int s = t + 1; s < kGroup; ++s) {
        if (s > t + 1) mine[seen(set, t, s) * kStride] = y;
        y *= d[s];
      }
      scaled[Vectors::written(set, t) + column] = y;
    }
    // --- What is read with, on its way from the start of the group
    float before = 1.0f;
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      const float after = __fmul_rn(before, d[t]);
      float scaled_read = __fmul_rn(r[t], Op::kFeedback ? after : before);
      if constexpr (Op::kFeedback) scaled_read = set == 0 ? scaled_read : __fmul_rn(a[t], before);
      scaled[Vectors::read(set, t) + column] = scaled_read;
      before = after;
    }
    // WKV6 reads the state before it decays, and what the token writes by way of u.
    float* const reads = mine + Op::kSets * kSeen * kStride;
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      if (set == 0) reads[t * kStride] = Op::kFeedback ? r[t] : __fmul_rn(r[t], bonus[column]);
      if (set == 0 && t > 0) reads[(3 + t) * kStride] = Op::kFeedback ? __fmul_rn(r[t], d[t]) : r[t];
      if (set == 1 && t > 0) reads[(6 + t) * kStride] = a[t];
    }
    if (set != 0) return;
    float whole = retention[0];
#pragma unroll
    for (int t = 1; t < kGroup; ++t) whole = retention_product(whole, retention[t]);
    scaled[Vectors::kWhole + column] = whole;
  }
};

// --- The state and its gradient ----------------------------------------------------------------------------------------

// grad <- grad D + sum over tokens of rows · columns, for all that the state is read with. rows(set) points to this thread's
// first row of the first token's vector, stride(set) floats before that of the next; scaled is as GroupVectors has it.
template <class Op, class Layout, class Rows, class Stride>
__device__ __forceinline__ void gradient_through_group(StateTile<Layout>& grad, const Layout& at, const float* scaled,
                                                       const Rows& rows, const Stride& stride) {
  constexpr int R = Layout::kRows, C = Layout::kColumns;
  using Vectors = GroupVectors<Layout::kWidth, Op::kSets>;
  float d[C];
  at.columns_of(scaled + Vectors::kWhole, d);
  const auto decay = [&](auto near) {
#pragma unroll
    for (int i = 0; i < R; ++i)
#pragma unroll
      for (int c = 0; c < C; ++c)
        grad.x[i][c] = fmaf(d[c], grad.x[i][c], kept<decltype(near)::value>(d[c], grad.x[i][c]));
  };
  if (all_near_one(d)) decay(Constant<true>());
  else decay(Constant<false>());
#pragma unroll 1
  for (int t = 0; t < kGroup; ++t) {
#pragma unroll
    for (int set = 0; set < Op::kSets; ++set) {
      float x[C], p[R];
      at.columns_of(scaled + Vectors::read(set, t), x);
      elements_of(rows(set) + t * stride(set), p);
#pragma unroll
      for (int i = 0; i < R; ++i)
#pragma unroll
        for (int c = 0; c < C; ++c) grad.x[i][c] = fmaf(p[i], x[c], grad.x[i][c]);
    }
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
    if constexpr (Op::kSets == 2) {
#pragma unroll 1
      for (int other = 1; other >= 0; --other) {
        float sums[R];
        one_vector(grad, at, scaled + Vectors::written(set ^ other, 0), sums);
#pragma unroll
        for (int i = 0; i < R; ++i) x[i] = other ? sums[i] : sums[i] + __shfl_xor_sync(kAllLanes, x[i], kGroup);
      }
    } else {
      one_vector(grad, at, scaled + Vectors::written(set, 0), x);
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

// Factors between the rows of tokens: what each writes, times the gradients that later ones read with. first_row: of this
// warp. dsa: of this warp's rows.
template <class Op, class Shape>
__device__ __forceinline__ void row_factors(const float* tokens, const float* dsa, int first_row, float* shares) {
  constexpr int kToken = kTokenStride<Op, Shape>;
  using Factors = PairFactors<Op::kSets, Shape::kWarps>;
  const Factors factor;
  const float* const rows = tokens + first_row;
  const float* const x = rows + factor.earlier * kToken + Op::written_row(factor.set) * Shape::kWidth;
  const float* y = rows + factor.later * kToken + Op::kDy * Shape::kWidth;
  if (Op::kFeedback && factor.is_behind) y = dsa + factor.later * kDsaStride<Shape>;
  Factors::leave(Factors::template dot<Shape::Layout::kWarpRows>(x, y), shares);
}

}  // namespace flash_rwkv::cuda
