// The part of a chunk that does not depend on the state: one warp makes it, for every `preparers`-th chunk. To summarize
// chunks takes keys alone.
#pragma once

#include "cuda/wkv6/chunk.cuh"
#include "cuda/wkv6/chunk_columns.cuh"

namespace flash_rwkv::cuda::wkv6_chunk {

template <class T, int kSize, bool kDecayOfTokens, bool kBack, bool kSummarizes>
class Prepare {
 public:
  // task.memory: Memory::bytes().
  __device__ __forceinline__ Prepare(const Wkv6Params& p, const ChunkPlan& plan, const PrepareTask& task)
      : p_(p),
        plan_(plan),
        lane_(threadIdx.x % kWarp),
        g_(lane_ / 4),
        t_(lane_ % 4),
        length_(task.length),
        missing_(task.missing),
        preparer_(task.preparer),
        stage_{task.memory},
        bonus_(reinterpret_cast<float*>(task.memory + Memory::kBonus)),
        log2_decay_(reinterpret_cast<float*>(task.memory + Memory::kLog2Decay)),
        in_({&p.k, &p.r}, p.w, p.v, plan, task, task.memory + Memory::kIn, stage_.v()) {
    for (int column = lane_; column < kSize; column += kWarp) {
      bonus_[column] = load_as_float(p.u.data, task.head * p.u.stride[2] + column, p.u.dtype);
      if constexpr (!kDecayOfTokens) {
        float w[1][1] = {{load_as_float(p.w.data, task.head * p.w.stride[2] + column, p.w.dtype)}};
        log2_decays(p.decay, w);
        // Finite, since no tokens times it are to be nothing.
        log2_decay_[column] = w[0][0] < -1e30f ? -1e30f : w[0][0];
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ void run() {
    const Barriers barriers(plan_);
    in_.fetch(0);
    in_.fetch(1);
    for (int first = preparer_ * kTokens; first < length_; first += plan_.preparers * kTokens) {
      Scores scores;
      const Counts counts(g_, length_ - first, missing_ - first);
      in_.template wait<1>();
#pragma unroll 1
      for (int block = 0; block < kBlocks; ++block) {
        if (block == kBlocks / 2) in_.template wait<2>();
        const Fragment k = in_.vector(0).load(block, lane_);
        Fragment r = {};
        if constexpr (!kSummarizes) r = in_.vector(1).load(block, lane_);
        auto decays = load_decays(block, counts, first);
        // What half of the columns have come from is free for those of the chunk after.
        if (block % (kBlocks / 2) == kBlocks / 2 - 1) {
          __syncwarp();
          in_.fetch(2 * block / kBlocks);
        }
        Columns x;
        unpack<T>(r, x.r);
        unpack<T>(k, x.k);
        if constexpr (kSummarizes) {
          scale(g_, x, decays, [](auto) {});
        } else {
          float bonus[4];
          load_four(bonus_, block, bonus);
          scores.add<Operand>(g_, converted<Operand, T>(r), converted<Operand, T>(k), bonus, x, decays);
        }
        if (block == 0) {
          if (first >= plan_.preparers * kTokens) ptx::bar_sync(barriers.empty(preparer_), barriers.threads);
          in_.fetch_values(first);
        }
        if constexpr (!kSummarizes)
          store_in_parts(sums_of(x.r), [&](int part, const Fragment& f) {
            store_fragment(stage_.r(block, part), lane_, as_right(f));
          });
        store_in_parts(sums_of(x.k), [&](int part, const Fragment& f) { stage_.k(part).store(block, lane_, f); });
        store_decay(decays, block);
      }
      if constexpr (!kSummarizes)
        store_in_parts(scores.matrix(g_, t_),
                       [&](int part, const Fragment& f) { store_fragment(stage_.scores(part), lane_, as_right(f)); });
      in_.template wait<2>();
      ptx::bar_arrive(barriers.full(preparer_), barriers.threads);
    }
  }

 private:
  using Operand = wkv6_chunk::Operand<T, kBack>;
  using Memory = PrepareMemory<T, kSize, kDecayOfTokens, kBack, kSummarizes>;
  static constexpr int kBlocks = kSize / 16;

  // This lane's columns of a vector in shared memory.
  __device__ __forceinline__ void load_four(const float* vector, int block, float (&x)[4]) const {
    const float2* const from = reinterpret_cast<const float2*>(vector + 16 * block) + t_;
    const float2 low = from[0], high = from[4];
    x[0] = low.x, x[1] = low.y, x[2] = high.x, x[3] = high.y;
  }

  __device__ __forceinline__ auto load_decays(int block, const Counts& counts, int first) const {
    if constexpr (kDecayOfTokens) {
      DecaysOfTokens decays;
      in_.template load_decay<T>(block, decays.log2_decay);
      log2_decays(p_.decay, decays.log2_decay);
      if (kBack ? first < missing_ : first + kTokens > length_) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int token = first + 2 * g_ + i / 4;
          if (kBack ? token < missing_ : token >= length_) decays.log2_decay[i / 4][i % 4] = 0.0f;
        }
      }
      return decays;
    } else {
      ConstantDecays decays = {{}, counts};
      load_four(log2_decay_, block, decays.log2_decay);
      return decays;
    }
  }

  template <class Decays>
  __device__ __forceinline__ void store_decay(const Decays& decays, int block) const {
    if (g_ != 0) return;
    float2* const to = reinterpret_cast<float2*>(stage_.decay() + 16 * block) + t_;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      to[4 * i] = make_float2(ptx::ex2_approx_ftz_f32(decays.log2_of_chunk(2 * i)),
                              ptx::ex2_approx_ftz_f32(decays.log2_of_chunk(2 * i + 1)));
  }

  // This lane's columns of two tokens in the order of sums.
  __device__ __forceinline__ static Sums sums_of(const float (&x)[2][4]) {
    return {{{x[0][0], x[0][1], x[1][0], x[1][1]}, {x[0][2], x[0][3], x[1][2], x[1][3]}}};
  }

  // store(part, fragment)
  template <class Store>
  __device__ __forceinline__ static void store_in_parts(const Sums& sums, const Store& store) {
    const Fragment f = rounded<Operand>(sums);
    store(0, f);
    if constexpr (kSplit<Operand>) store(1, remainder<Operand>(sums, f));
  }

  const Wkv6Params& p_;
  const ChunkPlan& plan_;
  const int lane_, g_, t_;
  const int length_, missing_, preparer_;
  const Stage<Operand, kSize> stage_;
  float *const bonus_, *const log2_decay_;
  typename Memory::In in_;
};

}  // namespace flash_rwkv::cuda::wkv6_chunk
