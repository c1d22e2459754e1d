// The two roles of the warps of a block, and how they meet.
#pragma once

#include "cuda/heads/layout.cuh"
#include "cuda/ptx.cuh"

namespace flash_rwkv::cuda::chunk {

// What the host works out.
struct ChunkPlan {
  int splits;       // blocks that share the value rows of a head
  int state_warps;  // of a block, 16 value rows each
  int preparers;    // further warps of a block
  bool wide_decay;  // w is fp32
  int segments;     // of a sequence, of segment_tokens tokens each; the last may be shorter
  int segment_tokens;
};

// A preparing warp and all state warps of a block meet at two barriers: when a stage is full, and when it is empty.
struct Barriers {
  int preparers, threads;

  __device__ __forceinline__ explicit Barriers(const ChunkPlan& plan)
      : preparers(plan.preparers), threads((plan.state_warps + 1) * kWarp) {}
  __device__ __forceinline__ int full(int preparer) const { return 1 + preparer; }
  __device__ __forceinline__ int empty(int preparer) const { return 1 + preparers + preparer; }
};
constexpr int kMostPreparers = 7;  // of 15 barriers

// What a preparing warp is to do: every `plan.preparers`-th chunk from chunk number `preparer` on.
struct PrepareTask {
  int64_t batch, begin, head;  // of the first token
  int length;                  // tokens
  int missing;                 // of these, so many at the beginning do not exist
  int split;                   // which of the blocks that share the head's rows
  int preparer;
  char* memory;
};

}  // namespace flash_rwkv::cuda::chunk
