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
#include "cuda/heads/group_vectors.cuh"

namespace flash_rwkv::cuda {

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

  // Only what is written on its way to the end of the group, and the decays of all of it: what going forward takes.
  __device__ __forceinline__ static void run_forward(const float* tokens, float* scaled) {
    share_out<Op::kSets * Shape::kWidth, Shape::kThreads>([&](int unit) {
      const int set = unit / Shape::kWidth, column = unit % Shape::kWidth;
      float whole = 0.0f, behind = 1.0f;
#pragma unroll
      for (int t = kGroup - 1; t >= 0; --t) {
        const float* const token = tokens + t * kTokenStride<Op, Shape> + column;
        const float retention = token[Op::kDecay * Shape::kWidth];
        whole = t == kGroup - 1 ? retention : retention_product(retention, whole);
        Vectors::put_written(scaled, set, t, column, __fmul_rn(token[Op::written_column(set) * Shape::kWidth], behind));
        behind = __fmul_rn(behind, decay_of(retention));
      }
      if (set == 0) Vectors::put_whole(scaled, column, whole);
    });
  }

  // All of it. scratch: of this warp.
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
  using Vectors = typename Shape::template Vectors<Op::kSets>;

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
      Vectors::put_written(scaled, set, t, column, y);
    }
    // --- What is read with, on its way from the start of the group
    float before = 1.0f;
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      const float after = __fmul_rn(before, d[t]);
      float scaled_read = __fmul_rn(r[t], Op::kFeedback ? after : before);
      if constexpr (Op::kFeedback) scaled_read = set == 0 ? scaled_read : __fmul_rn(a[t], before);
      Vectors::put_read(scaled, set, t, column, scaled_read);
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
    Vectors::put_whole(scaled, column, whole);
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
  Factors::leave(Factors::template dot<Shape::kWarpRows>(x, y), shares);
}

}  // namespace flash_rwkv::cuda
