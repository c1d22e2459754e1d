// Forward pass on tensor cores. A block has some or all value rows of a head, and goes through the tokens of a sequence
// in chunks of 16. Its warps have one of two roles: some prepare chunks, each another one, ahead of time; the others,
// 16 value rows each, carry the state from chunk to chunk, with a few products each, and write y.
//
// Op says what of a chunk is prepared and what becomes of it:
//   Type, kSize, Params; kMostWarps and kBlocksPerProcessor, which the registers of a thread follow from;
//   Stage: a chunk as it has been prepared; memory_of_preparer(wide_decay): bytes of shared memory, the stage first;
//   Prepare(p, plan, task).run();
//   StateWarp(first_row): clear(), load(), store(), chunk(stage, y, stride, tokens, release).
#pragma once

#include "cuda/chunk/roles.cuh"
#include "cuda/chunk/tiles.cuh"
#include "cuda/heads/device.h"
#include "cuda/launch.h"

namespace flash_rwkv::cuda::chunk {

template <class Op>
__global__ void __launch_bounds__(kWarp* Op::kMostWarps, Op::kBlocksPerProcessor)
    forward_kernel(const __grid_constant__ typename Op::Params p, const __grid_constant__ ChunkPlan plan) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  using T = typename Op::Type;
  constexpr int kSize = Op::kSize;
  extern __shared__ uint4 dynamic_shared[];
  char* const shared = reinterpret_cast<char*>(dynamic_shared);
  const int memory_of_warp = Op::memory_of_preparer(plan.wide_decay);

  // --- Which rows of which head of which sequence
  const int split = static_cast<int>(blockIdx.x % plan.splits);
  const int64_t unit = blockIdx.x / plan.splits;
  const int64_t head = unit % p.num_heads;
  const int64_t sequence = unit / p.num_heads;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t batch = p.sequences.batch(sequence);
  const int64_t begin = p.sequences.begin(sequence);
  const int length = static_cast<int>(p.sequences.length(sequence));

  if (warp >= plan.state_warps) {
    const int preparer = warp - plan.state_warps;
    const PrepareTask task = {batch, begin, head, length, split, preparer, shared + preparer * memory_of_warp};
    typename Op::Prepare(p, plan, task).run();
    return;
  }

  typename Op::StateWarp state((split * plan.state_warps + warp) * 16);
  const auto matrix_of = [&](const View& view) {
    return static_cast<float*>(view.data) + sequence * view.stride[0] + head * view.stride[1];
  };
  if (p.state.data != nullptr) state.load(matrix_of(p.state), p.state.stride[2]);
  else state.clear();
  T* y = static_cast<T*>(p.y.data) + batch * p.y.stride[0] + begin * p.y.stride[1] + head * p.y.stride[2];
  float* checkpoint = static_cast<float*>(p.checkpoints);
  if (checkpoint != nullptr)
    checkpoint += (p.sequences.first_checkpoint(sequence) * p.num_heads + head) * kSize * kSize;

  const Barriers barriers(plan);
  int preparer = 0;
  for (int first = 0; first < length; first += kTokens) {
    if (checkpoint != nullptr && first % kCheckpointTokens == 0) {
      state.store(checkpoint, kSize);
      checkpoint += p.num_heads * kSize * kSize;
    }
    ptx::bar_sync(barriers.full(preparer), barriers.threads);
    state.chunk(typename Op::Stage{shared + preparer * memory_of_warp}, y, p.y.stride[1], length - first, [&] {
      // Nobody waits for the stage of a chunk that no other follows in it.
      if (first + plan.preparers * kTokens < length) ptx::bar_arrive(barriers.empty(preparer), barriers.threads);
    });
    y += kTokens * p.y.stride[1];
    if (++preparer == plan.preparers) preparer = 0;
  }
  state.store(matrix_of(p.final_state), p.final_state.stride[2]);
#endif
}

// --- Launch ----------------------------------------------------------------------------------------------------------

// Where heads are fewer than multiprocessors, several blocks share the rows of one: each prepares all chunks for
// itself, but has more warps for that, and fewer products to wait for.
template <class Op>
ChunkPlan plan_of(const typename Op::Params& p) {
  constexpr int kRowGroups = Op::kSize / 16;
  const int64_t heads = p.sequences.count * p.num_heads;
  const int64_t processors = device_attribute(cudaDevAttrMultiProcessorCount);
  ChunkPlan plan;
  plan.splits = heads * 4 <= processors ? 4 : heads * 2 <= processors ? 2 : 1;
  plan.state_warps = kRowGroups / plan.splits;
  plan.wide_decay = p.w.dtype == DType::kFloat32;
  // Blocks share a multiprocessor's memory if there are more of them than multiprocessors.
  const int sharing = heads * plan.splits > processors ? Op::kBlocksPerProcessor : 1;
  const int memory = device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  const int reserved = memory - device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);  // of each block
  const int most = (memory / sharing - reserved) / Op::memory_of_preparer(plan.wide_decay);
  const int warps = Op::kMostWarps - plan.state_warps;
  plan.preparers = warps;
  for (const int limit : {most, kMostPreparers}) plan.preparers = limit < plan.preparers ? limit : plan.preparers;
  return plan;
}

template <class Op>
cudaError_t launch_forward(const typename Op::Params& p, cudaStream_t stream) {
  const ChunkPlan plan = plan_of<Op>(p);
  const int64_t blocks = p.sequences.count * p.num_heads * plan.splits;
  if (blocks == 0) return cudaSuccess;
  if (plan.preparers < 1 || blocks > INT32_MAX || p.sequences.tokens > INT32_MAX / 2)
    return cudaErrorInvalidConfiguration;
  const int bytes = plan.preparers * Op::memory_of_preparer(plan.wide_decay);
  const auto kernel = forward_kernel<Op>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  // All that a multiprocessor has: else there is not room for as many blocks as registers allow.
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
  if (error != cudaSuccess) return error;
  return launch(kernel, blocks, kWarp * (plan.state_warps + plan.preparers), bytes, stream, p, plan);
}

}  // namespace flash_rwkv::cuda::chunk
