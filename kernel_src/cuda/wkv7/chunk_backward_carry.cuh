// G alone, back through all tokens of a sequence, for heads that are few: what the blocks of its checkpoints start from.
//
// As in the forward pass some warps of a block prepare chunks ahead of time, and others, 16 value rows each, carry G from
// chunk to chunk. Preparing takes most of the time, so there are as many warps for it as a multiprocessor has room for,
// and more than there are barriers: those of a group of two neighbouring chunks share theirs.
#pragma once

#include "cuda/wkv7/chunk_backward_prepare.cuh"
#include "cuda/wkv7/chunk_backward_state.cuh"
#include "cuda/wkv7/chunk_backward_tokens.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

constexpr int kCarryWarps = 16;
constexpr int kGroup = 2;       // preparing warps
constexpr int kMostGroups = 7;  // of 15 barriers

// What the host works out.
struct CarryPlan {
  int splits;       // blocks that share the value rows of a head
  int state_warps;  // of a block
  int groups;       // further warps of a block
};

template <int kSize>
struct CarryMemory {
  using Chunk = PreparedChunk<kSize, false, false>;
  static constexpr int bytes(int groups) {
    return static_cast<int>(sizeof(HeadVectors)) + groups * kGroup * Chunk::kBytes;
  }

  char* data;

  __device__ HeadVectors& vectors() const { return *reinterpret_cast<HeadVectors*>(data); }
  __device__ Chunk chunk(int preparer) const { return {data + sizeof(HeadVectors) + preparer * Chunk::kBytes}; }
};

template <class T, int kSize>
__global__ void __launch_bounds__(kCarryWarps* kWarp, 1)
    wkv7_chunk_carry_kernel(const __grid_constant__ Wkv7Params p, const __grid_constant__ Wkv7Gradients g,
                            const __grid_constant__ CarryPlan plan) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  extern __shared__ uint4 dynamic_shared[];
  const CarryMemory<kSize> memory = {reinterpret_cast<char*>(dynamic_shared)};

  // --- Which rows of which head of which sequence
  const int split = static_cast<int>(blockIdx.x % plan.splits);
  const int64_t unit = blockIdx.x / plan.splits;
  const int64_t head = unit % p.num_heads;
  const int64_t sequence = unit / p.num_heads;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int length = static_cast<int>(p.sequences.length(sequence));
  const int chunks = (length + kTokens - 1) / kTokens;
  if (threadIdx.x == 0) memory.vectors().set(p, g, sequence, head);
  __syncthreads();

  // Preparers have chunks from the last to the first in turn. A group of them and all state warps meet at two barriers:
  // when their chunks are prepared, and when they have been used.
  const int preparers = plan.groups * kGroup;
  const int threads = (plan.state_warps + kGroup) * kWarp;
  const auto full = [&](int preparer) { return 1 + preparer / kGroup; };
  const auto empty = [&](int preparer) { return full(preparer) + plan.groups; };

  if (warp >= plan.state_warps) {
    const int preparer = warp - plan.state_warps;
    const auto chunk = memory.chunk(preparer);
    const BackwardTokens<T, kSize, false> tokens(memory.vectors(), p.w.dtype == DType::kFloat32, length);
    for (int last = chunks - 1 - preparer / kGroup * kGroup; last >= 0; last -= preparers) {  // of the group's chunks
      const int first = (last - preparer % kGroup) * kTokens;
      if (last + preparers < chunks) ptx::bar_sync(empty(preparer), threads);
      if (first >= 0) {
        tokens.fetch(chunk, first);
        tokens.prefetch(first - preparers * kTokens);
        ptx::cp_async_wait_all();
        tokens.convert_values(chunk);
        __syncwarp();
        prepare_backward(chunk, tokens, p.decay, first, length);
      }
      ptx::bar_arrive(full(preparer), threads);
    }
    return;
  }

  BackwardRows<T, kSize> gradient((split * plan.state_warps + warp) * 16);
  const auto matrix_of = [&](const View& view) {
    return static_cast<float*>(view.data) + sequence * view.stride[0] + head * view.stride[1];
  };
  if (g.grad_final_state.data != nullptr) gradient.load(matrix_of(g.grad_final_state), g.grad_final_state.stride[2]);
  else gradient.clear();
  float* const gradients =
      static_cast<float*>(g.scratch) + (p.sequences.first_checkpoint(sequence) * p.num_heads + head) * kSize * kSize;

  int preparer = 0;
  for (int chunk = chunks - 1; chunk >= 0; --chunk) {
    if (chunk == chunks - 1 || chunk % kChunks == kChunks - 1)
      gradient.save(gradients + chunk / kChunks * p.num_heads * kSize * kSize);
    if (preparer % kGroup == 0) ptx::bar_sync(full(preparer), threads);
    gradient.backward(memory.chunk(preparer), g.grad_y.data != nullptr);
    // Nobody waits for memory that no other chunks follow in.
    if (preparer % kGroup == kGroup - 1 && chunk + kGroup - 1 >= preparers) ptx::bar_arrive(empty(preparer), threads);
    if (++preparer == preparers) preparer = 0;
  }
  gradient.store(matrix_of(g.dstate), g.dstate.stride[2]);
#endif
}

}  // namespace flash_rwkv::cuda::wkv7_chunk
