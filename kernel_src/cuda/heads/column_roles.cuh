// Gradients of the column vectors of a group, from what the warps of the block have left in shared memory. A thread has one
// *role*, a vector that is read or written with, for two columns.
#pragma once

#include "cuda/heads/backward_memory.cuh"
#include "cuda/heads/column_gradients.cuh"
#include "cuda/heads/parts.cuh"

namespace flash_rwkv::cuda {

template <class Op, class T, class Shape>
class ColumnGradients {
 public:
  using Memory = BackwardMemory<Op, T, Shape>;
  using Sums = typename Memory::Sums;
  using Writer = GradientWriter<Op, T>;
  using Tokens = typename Memory::Stage::Tokens;
  static constexpr int kWidth = Shape::kWidth;
  static constexpr int kPairsOfColumns = kWidth / kEach;
  static constexpr int kUnits = Memory::kRoles * kPairsOfColumns;
  static constexpr int kRounds = (kUnits + Shape::kThreads - 1) / Shape::kThreads;

  __device__ __forceinline__ ColumnGradients(float* shared, const Writer& writer) : shared_(shared), writer_(writer) {}

  // first: the group's first token in the sequence.
  __device__ __forceinline__ void group(const Tokens& tokens, int first) {
    float* const whole = shared_ + Memory::kWholeFactors + threadIdx.x / kWarp * Memory::kOwnFactors;
    Memory::Factors::add_up(shared_ + Memory::kRowShares, whole);
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int unit = static_cast<int>(threadIdx.x) + round * Shape::kThreads;
      if (unit >= kUnits) break;
      const int role = unit / kPairsOfColumns;
      const int column = unit % kPairsOfColumns * kEach;
      if (role == 0) read<Op::kFeedback>(tokens, first, role, column, whole, round);
      else if (Op::kFeedback && role == 1) read<false>(tokens, first, role, column, whole, round);
      else write(tokens, first, role, column, whole, round);
    }
  }

  // Gradients of the decays of a group, of all roles together.
  __device__ __forceinline__ void decays(int first) const {
    constexpr int kEachRole = kGroup * kPairsOfColumns;
    share_out<kEachRole, Shape::kThreads>([&](int unit) {
      const int token = unit / kPairsOfColumns, column = unit % kPairsOfColumns * kEach;
      float sum[1][kEach] = {};
#pragma unroll
      for (int role = 0; role < Memory::kRoles; ++role) {
        const float2 x = *reinterpret_cast<const float2*>(decay_sums(role, token) + column);
        sum[0][0] += x.x, sum[0][1] += x.y;
      }
      writer_.write(Op::kDd, first + token, column, sum);
    });
  }

  typename Op::template TokenSums<kRounds> token_sums;

 private:
  // In the place of what only this role has read.
  __device__ __forceinline__ float* decay_sums(int role, int token) const {
    return shared_ + Memory::kSums + Sums::of_role(role, token);
  }

  __device__ __forceinline__ void load(const Tokens& tokens, int vector, int column, GroupColumns& out) const {
    load_columns(tokens.vector(vector, 0) + column, Tokens::kStride, out);
  }

  __device__ __forceinline__ void load_decays(const Tokens& tokens, int column, GroupColumns& d) const {
    load_columns(tokens.fp32_vector(Op::kDecay, 0) + column, Tokens::kStride, d);
#pragma unroll
    for (int t = 0; t < kGroup; ++t)
#pragma unroll
      for (int i = 0; i < kEach; ++i) d[t][i] = decay_of(d[t][i]);
  }

  __device__ __forceinline__ void add_sums(int vector, int column, GroupColumns& out) const {
    add_columns<Shape::kShares>(shared_ + Memory::kSums + vector + column, Sums::kFloats, Sums::kStride, out);
  }

  __device__ __forceinline__ void leave(const Tokens& tokens, int first, int role, int column, int gradient,
                                        const GroupColumns& out, GroupColumns& dd, int round) {
    GroupColumns slope;
    load_columns(tokens.fp32_vector(Op::kDerivative, 0) + column, Tokens::kStride, slope);
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) dd[t][i] *= slope[t][i];
      *reinterpret_cast<float2*>(decay_sums(role, t) + column) = make_float2(dd[t][0], dd[t][1]);
    }
    writer_.write(gradient, first, column, out);
    token_sums.add_decays(dd, round);
  }

  template <bool kAfter>
  __device__ __forceinline__ void read(const Tokens& tokens, int first, int role, int column, const float* whole,
                                       int round) {
    float factors[Op::kSets][kPairs];
    GroupColumns start, d, written[Op::kSets], with, out, dd;
    add_sums(Sums::read(role, 0), column, start);
    load_decays(tokens, column, d);
#pragma unroll
    for (int set = 0; set < Op::kSets; ++set) {
      elements_of(whole + set * kPairs, factors[set]);
      load(tokens, Op::written_column(set), column, written[set]);
    }
    load(tokens, Op::read_column(role), column, with);
    read_gradients<kAfter>(start, d, written, with, factors, out, dd);
    if constexpr (!Op::kFeedback) {
      const float* const bonus = shared_ + Memory::kBonus + column;
#pragma unroll
      for (int t = 0; t < kGroup; ++t)
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
          const float of_bonus = __fmul_rn(factors[0][from_on(t, t)], written[0][t][i]);
          out[t][i] = fmaf(of_bonus, bonus[i], out[t][i]);
          token_sums.add_bonus(__fmul_rn(of_bonus, with[t][i]), i, round);
        }
    }
    leave(tokens, first, role, column, Op::read_gradient(role), out, dd, round);
  }

  __device__ __forceinline__ void write(const Tokens& tokens, int first, int role, int column, const float* whole,
                                        int round) {
    const int set = role - Op::kSets;
    float factors[kPairs];
    float overlap[kEach] = {0.0f, 0.0f};
    GroupColumns start, d, written, r, a = {}, out, dd;
    add_sums(Sums::written(set, 0), column, start);
    if (set == Op::kSets - 1) {
#pragma unroll
      for (int share = 0; share < Shape::kShares; ++share) {
        const float* const shares = shared_ + Memory::kSums + share * Sums::kFloats + Sums::kWhole + column;
#pragma unroll
        for (int i = 0; i < kEach; ++i) overlap[i] += shares[i];
      }
    }
    elements_of(whole + set * kPairs, factors);
    load_decays(tokens, column, d);
    load(tokens, Op::written_column(set), column, written);
    load(tokens, Op::kR, column, r);
    if constexpr (Op::kFeedback) load(tokens, Op::kA, column, a);
    write_gradients<Op::kFeedback>(start, d, written, r, a, overlap, factors, out, dd);
    if constexpr (!Op::kFeedback) {
      const float* const bonus = shared_ + Memory::kBonus + column;
#pragma unroll
      for (int t = 0; t < kGroup; ++t)
#pragma unroll
        for (int i = 0; i < kEach; ++i)
          out[t][i] = fmaf(__fmul_rn(factors[from_on(t, t)], r[t][i]), bonus[i], out[t][i]);
    }
    leave(tokens, first, role, column, Op::written_gradient(set), out, dd, round);
  }

  float* const shared_;
  const Writer& writer_;
};

}  // namespace flash_rwkv::cuda
