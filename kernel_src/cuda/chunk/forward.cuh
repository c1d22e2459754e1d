// Forward pass on tensor cores. A block has some or all value rows of a head, and goes through the tokens of a sequence
// in chunks of 16. Its warps have one of two roles: some prepare chunks, each another one, ahead of time; the others,
// 16 value rows each, carry the state from chunk to chunk, with a few products each, and write y.
//
// Op says what of a chunk is prepared and what becomes of it:
//   Type, kSize, Params; kMostWarps and kBlocksPerProcessor, which the registers of a thread follow from;
//   Stage: a chunk as it has been prepared; memory_of_preparer(wide_decay): bytes of shared memory, the stage first;
//   Prepare(p, plan, task).run();
//   StateWarp(first_row): clear(), load(), store(), save(), chunk(stage, y, stride, tokens, release).
//
// An Op that goes back reads its tokens from the last to the first: the strides of tokens, which the host negates, make
// the last one the first. Chunks and checkpoints are the same as forwards, so that tokens are missing at the beginning,
// and its StateWarp's chunk() is told how many.
//
// Where all that a segment of tokens does to a state is to scale its columns and to add a matrix, heads that are too few
// have their tokens in several segments, a block for each: one kernel summarizes all segments but the last, and in the
// next each block starts with the summaries of those before its own. Op::Summarize is the first kernel's Op: its
// StateWarp has absorb(stage, release) and store_decays() instead of chunk(). It is void where there are no summaries.
#pragma once

#include <type_traits>

#include "cuda/chunk/roles.cuh"
#include "cuda/chunk/tiles.cuh"
#include "cuda/heads/device.h"
#include "cuda/launch.h"

namespace flash_rwkv::cuda::chunk {

// What a segment does to a state: the state after it where that before it is zero, and the products of its decays.
template <int kSize>
struct Summary {
  static constexpr int64_t kFloats = kSize * kSize + kSize;
  float* data;

  __device__ Summary(void* all, int64_t heads, int64_t segment, int64_t head)
      : data(static_cast<float*>(all) + (segment * heads + head) * kFloats) {}
  __device__ float* matrix() const { return data; }
  __device__ float* decays() const { return data + kSize * kSize; }
};

// A kernel that summarizes segments, and one that starts with summaries of those before.
template <class Op>
constexpr bool kSummarizes = std::is_same_v<typename Op::Summarize, Op>;
template <class Op>
constexpr bool kHasSummaries = !kSummarizes<Op> && !std::is_void_v<typename Op::Summarize>;

template <class Op>
constexpr bool kGoesBack = requires { requires Op::kBack; };

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
  const int64_t heads = p.sequences.count * p.num_heads;
  const int64_t unit = blockIdx.x / plan.splits % heads;
  const int segment = static_cast<int>(blockIdx.x / plan.splits / heads);
  const int64_t head = unit % p.num_heads;
  const int64_t sequence = unit / p.num_heads;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t batch = p.sequences.batch(sequence);
  const int first_token = segment * plan.segment_tokens;
  constexpr int kBlock = static_cast<int>(kCheckpointTokens);
  const int tokens = static_cast<int>(p.sequences.length(sequence));
  const int checkpoints = (tokens + kBlock - 1) / kBlock;
  const int padded = kGoesBack<Op> ? checkpoints * kBlock : tokens;
  const int left = padded - first_token;
  const int length = left < plan.segment_tokens ? left : plan.segment_tokens;
  const int missing = first_token == 0 ? padded - tokens : 0;
  const int64_t first_of_sequence = p.sequences.begin(sequence);
  const int64_t begin = (kGoesBack<Op> ? 1 - first_of_sequence - padded : first_of_sequence) + first_token;

  if (warp >= plan.state_warps) {
    const int preparer = warp - plan.state_warps;
    const PrepareTask task = {batch, begin, head, length, missing, split, preparer, shared + preparer * memory_of_warp};
    typename Op::Prepare(p, plan, task).run();
    return;
  }

  typename Op::StateWarp state((split * plan.state_warps + warp) * 16);
  const auto matrix_of = [&](const View& view) {
    return static_cast<float*>(view.data) + sequence * view.stride[0] + head * view.stride[1];
  };
  if (!kSummarizes<Op> && p.state.data != nullptr) state.load(matrix_of(p.state), p.state.stride[2]);
  else state.clear();
  if constexpr (kHasSummaries<Op>) {
    for (int before = 0; before < segment; ++before) {
      const Summary<kSize> summary(p.summaries, heads, before, unit);
      state.append(summary.matrix(), summary.decays());
    }
  }
  T* y = static_cast<T*>(p.y.data) + batch * p.y.stride[0] + begin * p.y.stride[1] + head * p.y.stride[2];
  auto* checkpoint = static_cast<typename Op::StateWarp::Checkpoint*>(kSummarizes<Op> ? nullptr : p.checkpoints);
  if (checkpoint != nullptr) {
    const int before = first_token / kBlock;
    const int64_t block = p.sequences.first_checkpoint(sequence) + (kGoesBack<Op> ? checkpoints - 1 - before : before);
    checkpoint += (block * p.num_heads + head) * kSize * kSize;
  }

  const Barriers barriers(plan);
  int preparer = 0;
  for (int first = 0; first < length; first += kTokens) {
    if (checkpoint != nullptr && first % kBlock == 0) {
      state.save(checkpoint);
      checkpoint += (kGoesBack<Op> ? -1 : 1) * p.num_heads * kSize * kSize;
    }
    ptx::bar_sync(barriers.full(preparer), barriers.threads);
    const typename Op::Stage stage = {shared + preparer * memory_of_warp};
    const auto release = [&] {
      // Nobody waits for the stage of a chunk that no other follows in it.
      if (first + plan.preparers * kTokens < length) ptx::bar_arrive(barriers.empty(preparer), barriers.threads);
    };
    if constexpr (kSummarizes<Op>) state.absorb(stage, release);
    else if constexpr (kGoesBack<Op>) state.chunk(stage, y, p.y.stride[1], kTokens, release, missing - first);
    else state.chunk(stage, y, p.y.stride[1], length - first, release);
    y += kTokens * p.y.stride[1];
    if (++preparer == plan.preparers) preparer = 0;
  }
  if constexpr (kSummarizes<Op>) {
    const Summary<kSize> summary(p.summaries, heads, segment, unit);
    state.store(summary.matrix(), kSize);
    if (split == 0 && warp == 0) state.store_decays(summary.decays());
  } else if (blockIdx.x + gridDim.x / plan.segments >= gridDim.x) {  // of the last segment
    state.store(matrix_of(p.final_state), p.final_state.stride[2]);
  }
#endif
}

// --- Launch ----------------------------------------------------------------------------------------------------------

// Segments have at least this many tokens, and whole checkpoints.
constexpr int kFewestSegmentTokens = 128;

// Where heads are fewer than multiprocessors, either tokens come in segments, as many as there are places for blocks, or
// several blocks share the rows of a head: then each prepares all chunks for itself, but has more warps for that, and
// fewer products to wait for. Summarizing takes less than half of the time of the rest, so two segments do not pay.
template <class Op>
ChunkPlan plan_of(const typename Op::Params& p) {
  constexpr int kRowGroups = Op::kSize / 16;
  const int64_t heads = p.sequences.count * p.num_heads;
  const int64_t processors = device_attribute(cudaDevAttrMultiProcessorCount);
  ChunkPlan plan;
  plan.segments = 1;
  plan.segment_tokens = INT32_MAX;
  if (kHasSummaries<Op> && p.sequences.cu_seqlens == nullptr && heads > 0) {
    const int64_t places = processors * Op::kBlocksPerProcessor / heads;
    const int64_t most = p.sequences.tokens / kFewestSegmentTokens;
    const int64_t segments = places < most ? places : most;
    if (segments > 2) {
      constexpr int64_t kStep = kCheckpointTokens;
      plan.segment_tokens = static_cast<int>((p.sequences.tokens + segments * kStep - 1) / (segments * kStep) * kStep);
      plan.segments = static_cast<int>((p.sequences.tokens + plan.segment_tokens - 1) / plan.segment_tokens);
    }
  }
  const int64_t units = heads * plan.segments;
  plan.splits = units * 4 <= processors ? 4 : units * 2 <= processors ? 2 : 1;
  plan.state_warps = kRowGroups / plan.splits;
  plan.wide_decay = p.w.dtype == DType::kFloat32;
  // Blocks share a multiprocessor's memory if there are more of them than multiprocessors.
  const int sharing = units * plan.splits > processors ? Op::kBlocksPerProcessor : 1;
  const int memory = device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  const int reserved = memory - device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);  // of each block
  const int most = (memory / sharing - reserved) / Op::memory_of_preparer(plan.wide_decay);
  const int warps = Op::kMostWarps - plan.state_warps;
  plan.preparers = warps;
  for (const int limit : {most, kMostPreparers}) plan.preparers = limit < plan.preparers ? limit : plan.preparers;
  return plan;
}

template <class Op>
cudaError_t launch_blocks(const typename Op::Params& p, const ChunkPlan& plan, int segments, cudaStream_t stream) {
  const int64_t blocks = p.sequences.count * p.num_heads * segments * plan.splits;
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

template <class Op>
cudaError_t launch_forward(const typename Op::Params& p, cudaStream_t stream) {
  const ChunkPlan plan = plan_of<Op>(p);
  if constexpr (kHasSummaries<Op>) {
    const cudaError_t error = launch_blocks<typename Op::Summarize>(p, plan, plan.segments - 1, stream);
    if (error != cudaSuccess) return error;
  }
  return launch_blocks<Op>(p, plan, plan.segments, stream);
}

// Bytes that summaries take.
template <class Op>
int64_t bytes_of_summaries(const typename Op::Params& p) {
  const int64_t count = p.sequences.count * p.num_heads * (plan_of<Op>(p).segments - 1);
  return count * Summary<Op::kSize>::kFloats * static_cast<int64_t>(sizeof(float));
}

}  // namespace flash_rwkv::cuda::chunk
