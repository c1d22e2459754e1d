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
  // Only what is written on its way to the end of the group, and the decays of all of it: what going forward takes.
  template <class Tokens>
  __device__ __forceinline__ static void run_forward(const Tokens& tokens, float* scaled) {
    share_out<Op::kSets * Shape::kWidth, Shape::kThreads>([&](int unit) {
      const int set = unit / Shape::kWidth, column = unit % Shape::kWidth;
      float whole = 0.0f, behind = 1.0f, scaled_written[kGroup];
#pragma unroll
      for (int t = kGroup - 1; t >= 0; --t) {
        const float retention = tokens.fp32_vector(Op::kDecay, t)[column];
        whole = t == kGroup - 1 ? retention : retention_product(retention, whole);
        scaled_written[t] = __fmul_rn(tokens.element(Op::written_column(set), t, column), behind);
        behind = __fmul_rn(behind, decay_of(retention));
      }
      Vectors::put_column(scaled + Vectors::kWritten + Vectors::of_column(set, column), scaled_written);
      if (set == 0) Vectors::put_whole(scaled, column, whole);
    });
  }

  // All of it. bonus: of WKV6.
  template <class Tokens>
  __device__ __forceinline__ static void run(const Tokens& tokens, const float* bonus, float* scaled, float* shares) {
    float products[kPairs] = {};
#pragma unroll 1
    for (int first = threadIdx.x / kWarp * kColumns; first < Shape::kWidth; first += Shape::kWarps * kColumns)
      scale(tokens, bonus, scaled, first + static_cast<int>(threadIdx.x) % kColumns, products);
    using Sums = ScatteredSums<kColumns / 2, 1, kPairs>;
    Sums::reduce(products);
    if (Sums::owns_first()) Factors::leave(set_of_lane() * kPairs + Sums::owned(), products[0], shares);
  }

 private:
  using Factors = PairFactors<Op::kSets, Shape::kWarps>;
  using Vectors = typename Shape::template Vectors<Op::kSets>;

  __device__ __forceinline__ static int set_of_lane() { return static_cast<int>(threadIdx.x) / kColumns % Op::kSets; }

  // products: to those with which each pair of tokens begins, adds this column's.
  template <class Tokens>
  __device__ __forceinline__ static void scale(const Tokens& tokens, const float* bonus, float* scaled, int column,
                                               float (&products)[kPairs]) {
    const int set = set_of_lane();
    float retention[kGroup], d[kGroup], x[kGroup], r[kGroup], a[kGroup] = {};
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      retention[t] = tokens.fp32_vector(Op::kDecay, t)[column];
      d[t] = decay_of(retention[t]);
      x[t] = tokens.element(Op::written_column(set), t, column);
      r[t] = tokens.element(Op::kR, t, column);
      if constexpr (Op::kFeedback) a[t] = tokens.element(Op::kA, t, column);
    }
    // --- What is written, on its way to the end of the group. WKV6 reads the state before it decays, and what the token writes
    // by way of u.
    float scaled_written[kGroup], scaled_read[kGroup];
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      const auto add_product = [&](int pair, float y) { products[pair] = fmaf(y, scaled_written[t], products[pair]); };
      scaled_written[t] = x[t];
      add_product(from_on(t, t), Op::kFeedback ? r[t] : __fmul_rn(r[t], bonus[column]));
#pragma unroll
      for (int s = t + 1; s < kGroup; ++s) {
        if constexpr (Op::kFeedback) add_product(behind(t, s), a[s]);
        if constexpr (!Op::kFeedback) add_product(from_on(t, s), r[s]);
        scaled_written[t] = __fmul_rn(scaled_written[t], d[s]);
        if constexpr (Op::kFeedback) add_product(from_on(t, s), r[s]);
      }
    }
    Vectors::put_written(scaled, set, column, scaled_written);
    // --- What is read with, on its way from the start of the group
    float before = 1.0f;
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      const float after = __fmul_rn(before, d[t]);
      scaled_read[t] = __fmul_rn(r[t], Op::kFeedback ? after : before);
      if constexpr (Op::kFeedback) scaled_read[t] = set == 0 ? scaled_read[t] : __fmul_rn(a[t], before);
      before = after;
    }
    Vectors::put_read(scaled, set, column, scaled_read);
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
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (lane < Factors::kFloats) Factors::leave(lane, Factors::template dot<Shape::kWarpRows>(x, y), shares);
}

}  // namespace flash_rwkv::cuda
