// Backward pass of the recurrences with a matrix state, token by token.
//
// A block of threads owns some value rows of one head. Forward has saved the state before every 16th token. Blocks of
// 16 tokens are taken from the last to the first:
//   1. from the saved state forward through the first twelve tokens, keeping the state before every fourth in shared
//      memory;
//   2. back from the last token to the first, in pairs: the state before a pair is worked out from the nearest kept
//      one, that between the pair from it, and G, the gradient of the state, goes back one token at a time.
// Nothing is divided by a decay. Sums over rows, for the gradients of what belongs to columns, are formed by each warp
// and added up in the order of the warps, and of the blocks where several share a head: no atomics.
//
// Op says what a token does: see wkv6/backward.cu and wkv7/backward.cu.
#pragma once

#include "cuda/heads/device.h"
#include "cuda/heads/parts.cuh"
#include "cuda/heads/stage.cuh"
#include "cuda/heads/state.cuh"
#include "cuda/kernels.h"

namespace flash_rwkv::cuda {

constexpr int kGroups = kCudaCheckpointTokens / kStageTokens;

// Rows of the state by the warps of a block; lanes share a row, four columns each (eight at the largest size). Thirty-two
// elements of the state a thread make good use of what is loaded from shared memory.
template <int kWidth_, int kWarps_>
struct BackwardShape {
  static constexpr int kWidth = kWidth_;
  static constexpr int kWarps = kWarps_;
  static constexpr int kColumns = kWidth == 256 ? 8 : 4;
  static constexpr int kElements = 32;
  using Layout = TileLayout<kWidth / kColumns, kColumns, kElements / kColumns>;
  static constexpr int kThreads = kWarp * kWarps;
  static constexpr int kBlockRows = kWarps * Layout::kWarpRows;
  // One where two would not fit beside the rest.
  static constexpr int kBuffers = kWidth == 256 || (kWidth == 128 && kWarps == 1) ? 1 : 2;
  static constexpr int kBlocksPerProcessor = 8 / kWarps;  // leaves a thread 255 registers
};

// A tile that its own thread puts aside in shared memory: four floats of all threads side by side.
template <class Layout>
__device__ __forceinline__ void keep(const StateTile<Layout>& tile, float4* to, int threads) {
#pragma unroll
  for (int i = 0; i < Layout::kRows; ++i)
#pragma unroll
    for (int q = 0; q < Layout::kQuads; ++q)
      to[(i * Layout::kQuads + q) * threads + threadIdx.x] =
          make_float4(tile.x[i][4 * q], tile.x[i][4 * q + 1], tile.x[i][4 * q + 2], tile.x[i][4 * q + 3]);
}

template <class Layout>
__device__ __forceinline__ void recall(StateTile<Layout>& tile, const float4* from, int threads) {
#pragma unroll
  for (int i = 0; i < Layout::kRows; ++i)
#pragma unroll
    for (int q = 0; q < Layout::kQuads; ++q) {
      const float4 x = from[(i * Layout::kQuads + q) * threads + threadIdx.x];
      tile.x[i][4 * q] = x.x, tile.x[i][4 * q + 1] = x.y, tile.x[i][4 * q + 2] = x.z, tile.x[i][4 * q + 3] = x.w;
    }
}

// Shared memory of a block, in floats. A token is its plain vectors, those that forward saved, and the decay.
template <class Op, class T, class Shape>
struct BackwardMemory {
  using Vectors = VectorLoads<T, Op::kVectors, Shape::kWidth, Shape::kThreads>;
  using Saved = VectorLoads<float, 1, Shape::kWidth, Shape::kThreads, true>;
  using Decays = DecayLoads<T, Shape::kWidth, Shape::kThreads>;
  static constexpr int kToken = (Op::kVectors + Op::kSavedVectors + 1) * Shape::kWidth;
  static constexpr int kStage = kStageTokens * kToken;
  static constexpr int kStaged = Shape::kBuffers * kStage;
  static constexpr int kTile = Shape::kThreads * Shape::kElements;
  static constexpr int kKept = (kGroups - 1) * kTile;  // the first group's is the checkpoint itself
  static constexpr int kTokenSums = Op::kGradients * Shape::kWidth;
  static constexpr int kWarpSums = kStageTokens * kTokenSums;
  static constexpr int kSums = Shape::kWarps * kWarpSums;
  static constexpr int kBytes = (kStaged + kKept + kSums) * static_cast<int>(sizeof(float));
  static constexpr int kSavedBytes = Op::kSavedVectors > 0 ? Saved::kSharedBytes : 0;
  static constexpr int kBytesInFlight = Vectors::kSharedBytes + kSavedBytes + Decays::kSharedBytes;

  // Devices without background copies do without the memory for them.
  static int bytes() {
    return kBytes + (device_attribute(cudaDevAttrComputeCapabilityMajor) >= 8 ? kBytesInFlight : 0);
  }
};

template <class Op, class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocksPerProcessor)
    backward_kernel(const __grid_constant__ typename Op::Params p, const __grid_constant__ typename Op::Gradients g,
                    const __grid_constant__ PartsPlan plan) {
  using Layout = typename Shape::Layout;
  using Memory = BackwardMemory<Op, T, Shape>;
  using Columns = ColumnSums<Layout>;
  using Rows = RowSums<Layout>;
  constexpr int kThreads = Shape::kThreads;
  constexpr int kWidth = Shape::kWidth;
  extern __shared__ float4 shared[];
  float* current = reinterpret_cast<float*>(shared);
  float* next = current + (Shape::kBuffers - 1) * Memory::kStage;
  float4* const kept_states = shared + Memory::kStaged / 4;
  float* const sums = current + Memory::kStaged + Memory::kKept;

  // --- Which rows of which head of which sequence
  const Layout at;
  const int part = static_cast<int>(blockIdx.x % plan.parts);
  const int64_t unit = blockIdx.x / plan.parts;
  const int64_t head = plan.first_head + unit % plan.num_heads;
  const int64_t sequence = unit / plan.num_heads;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int first_row = (part * Shape::kWarps + warp) * Layout::kWarpRows + at.row_group * Layout::kRows;
  const int size = static_cast<int>(p.head_size);
  const int64_t batch = p.sequences.batch(sequence);
  const int64_t begin = p.sequences.begin(sequence);
  const int length = static_cast<int>(p.sequences.length(sequence));
  const int blocks = (length + kCudaCheckpointTokens - 1) / kCudaCheckpointTokens;

  // --- Checkpoints: the state, and behind it a row of each saved vector for every token of the block
  const int64_t checkpoint_size = int64_t{size} * (size + Op::kSavedVectors * kCudaCheckpointTokens);
  const int64_t checkpoint_stride = p.num_heads * checkpoint_size;
  float* const checkpoints = static_cast<float*>(p.checkpoints) +
                             (p.sequences.first_checkpoint(sequence) * p.num_heads + head) * checkpoint_size;
  const int64_t saved_row_bytes = int64_t{size} * sizeof(float);
  const int64_t skip_of_block = checkpoint_stride * sizeof(float) - kCudaCheckpointTokens * saved_row_bytes;

  // --- Tokens
  TokenRows rows[Op::kVectors];
  Op::token_rows_of(p, g, batch, begin, head, rows);
  char* const in_flight = reinterpret_cast<char*>(shared) + Memory::kBytes;
  typename Memory::Vectors vectors(rows, size, in_flight);
  const TokenRows saved_rows[1] = {{reinterpret_cast<const char*>(checkpoints + size * size), saved_row_bytes}};
  typename Memory::Saved saved(saved_rows, size, in_flight + Memory::Vectors::kSharedBytes);
  typename Memory::Decays decay(token_rows(p.w, batch, begin, head), p.w.dtype == DType::kFloat32, p.decay, size,
                                in_flight + Memory::Vectors::kSharedBytes + Memory::kSavedBytes);
  const auto fetch = [&](int block, int group, int count) {
    const int first = block * kCudaCheckpointTokens + group * kStageTokens;
    vectors.fetch(first, length, count);
    if constexpr (Op::kSavedVectors > 0) saved.fetch(first, length, 1, block * skip_of_block);
    decay.fetch(first, length);
  };
  const auto commit = [&](float* to, int count) {
    wait_for_loads();
    vectors.template commit<Memory::kToken>(to, count);
    if constexpr (Op::kSavedVectors > 0) saved.template commit<Memory::kToken>(to + Op::kVectors * kWidth, 1);
    decay.template commit<Memory::kToken>(to + (Op::kVectors + Op::kSavedVectors) * kWidth);
  };

  StateTile<Layout> grad;
  grad.load({g.grad_final_state, plan.grad_final_state, sequence, head, first_row, size}, at);
  typename Op::template Backward<Layout> op(p, head, at);

  // --- Where this lane writes the gradient of v, and its sums for columns
  const int dv_row = first_row + Rows::owned();
  const bool writes_dv = Rows::owns_first() && dv_row < size;
  T* const dv_at =
      static_cast<T*>(g.dv.data) + batch * g.dv.stride[0] + begin * g.dv.stride[1] + head * g.dv.stride[2] + dv_row;
  float* const warp_sums = sums + warp * Memory::kWarpSums;
  const auto back_through = [&](const float* token, int t, int first, const StateTile<Layout>& before) {
    float dv[Layout::kRows];
    float columns[Op::kGradients][Layout::kColumns];
    op.token(token, first_row, first + t < length, before, grad, dv, columns);
    if (writes_dv && first + t < length) {
#pragma unroll
      for (int i = 0; i < Rows::kOwned; ++i) {
        if (Rows::kOwned == 1 || dv_row + i < size) dv_at[(first + t) * g.dv.stride[1] + i] = from_float<T>(dv[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < Op::kGradients; ++i) {
      float* const to = warp_sums + t * Memory::kTokenSums + i * kWidth;
      Columns::reduce(columns[i]);
#pragma unroll
      for (int c = 0; c < Columns::kOwned; ++c) {
        const int column = Columns::owned() + c;
        to[at.column(column / 4) + column % 4] = columns[i][c];
      }
    }
  };

  const SumWriter<Op, T, Shape> writer(p, g, plan, batch, begin, length, head, part);

  // --- Steps: of every block, groups 0, 1, 2 forward, then 3, 2, 1, 0 back. The next step's tokens load meanwhile.
  constexpr int kForward = kGroups - 1;
  constexpr int kSteps = kForward + kGroups;
  const auto group_of = [](int step) { return step < kForward ? step : kSteps - 1 - step; };
  const auto vectors_of = [](int step) { return step < kForward ? int{Op::kRecompute} : int{Op::kVectors}; };
  StateTile<Layout> state;
  if (blocks > 0) {
    fetch(blocks - 1, 0, vectors_of(0));
    commit(current, vectors_of(0));
  }
  __syncthreads();
  for (int block = blocks - 1; block >= 0; --block) {
    const View checkpoint = {checkpoints + block * checkpoint_stride, DType::kFloat32, {0, 0, size, 1}};
    const StateRows checkpoint_rows = {checkpoint, StateAccess::kFours, 0, 0, first_row, size};
    state.load(checkpoint_rows, at);
    if (block > 0) prefetch_matrix<kThreads>(checkpoints + (block - 1) * checkpoint_stride, size);
#pragma unroll 1
    for (int step = 0; step < kSteps; ++step) {
      const int group = group_of(step);
      const bool last_step = step + 1 == kSteps;
      const bool more = !last_step || block > 0;
      const int next_step = last_step ? 0 : step + 1;
      if (more) fetch(block - last_step, group_of(next_step), vectors_of(next_step));

      float4* const kept_state = kept_states + (group - 1) * Memory::kTile / 4;
      const int first = block * kCudaCheckpointTokens + group * kStageTokens;
      if (step <= kForward && group > 0) keep(state, kept_state, kThreads);
      if (step < kForward) {
        // --- Forward through four tokens
#pragma unroll 1
        for (int t = 0; t < kStageTokens; ++t) op.update(current + t * Memory::kToken, first_row, state, state);
      } else {
        // --- Back through four tokens, two pairs
#pragma unroll 1
        for (int t = kStageTokens - 2; t >= 0; t -= 2) {
          if (group == 0) state.load(checkpoint_rows, at);
          else if (t < kStageTokens - 2 || step > kForward) recall(state, kept_state, kThreads);
#pragma unroll 1
          for (int i = 0; i < t; ++i) op.update(current + i * Memory::kToken, first_row, state, state);
          const float* const token = current + t * Memory::kToken;
          StateTile<Layout> between;
          op.update(token, first_row, state, between);
          back_through(token + Memory::kToken, t + 1, first, between);
          back_through(token, t, first, state);
        }
      }

      if constexpr (Shape::kBuffers == 1) __syncthreads();
      if (more) commit(next, vectors_of(next_step));
      __syncthreads();
      if (step >= kForward) {
        writer.write(sums, first);
        __syncthreads();
      }
      float* const swapped = current;
      current = next;
      next = swapped;
    }
    op.end_of_block();
  }

  grad.store({g.dstate, StateAccess::kFours, sequence, head, first_row, size}, at);
  op.template finish<Shape>(p, g, sums, part, sequence, head);
}

// --- Launch ----------------------------------------------------------------------------------------------------------

// Most scratch memory that a call asks for; heads take turns where it does not hold the sums of all of them.
constexpr int64_t kMostScratchBytes = int64_t{256} << 20;

struct Split {
  int64_t parts;            // blocks of rows of a head
  int64_t heads_at_a_time;  // whose sums fit into the scratch memory
  int64_t scratch_bytes;
};

inline int64_t batch_of(const Sequences& sequences) { return sequences.cu_seqlens ? 1 : sequences.count; }

template <class Op, class Shape>
Split split_of(const typename Op::Params& p) {
  const int64_t parts = (p.head_size + Shape::kBlockRows - 1) / Shape::kBlockRows;
  const int64_t each = parts * Op::kGradients * batch_of(p.sequences) * p.sequences.tokens * p.head_size *
                       static_cast<int64_t>(sizeof(float));
  if (parts == 1 || each == 0) return {parts, p.num_heads, 0};
  const int64_t fitting = kMostScratchBytes / each;
  const int64_t heads = fitting < 1 ? 1 : fitting < p.num_heads ? fitting : p.num_heads;
  return {parts, heads, heads * each};
}

template <class Op, class T, class Shape>
cudaError_t launch_backward(const typename Op::Params& p, const typename Op::Gradients& g, cudaStream_t stream) {
  const int bytes = BackwardMemory<Op, T, Shape>::bytes();
  const auto kernel = backward_kernel<Op, T, Shape>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const Split split = split_of<Op, Shape>(p);
  for (int64_t first = 0; first < p.num_heads; first += split.heads_at_a_time) {
    const int64_t left = p.num_heads - first;
    PartsPlan plan;
    plan.parts = static_cast<int>(split.parts);
    plan.first_head = first;
    plan.num_heads = left < split.heads_at_a_time ? left : split.heads_at_a_time;
    plan.batch = batch_of(p.sequences);
    plan.grad_final_state = access_of(g.grad_final_state);
    plan.sums = split.parts > 1 ? static_cast<float*>(g.scratch) : nullptr;
    const int64_t blocks = p.sequences.count * plan.num_heads * split.parts;
    if (blocks == 0) return cudaSuccess;
    if (blocks > INT32_MAX || p.sequences.tokens > INT32_MAX / 2) return cudaErrorInvalidConfiguration;
    kernel<<<static_cast<unsigned>(blocks), Shape::kThreads, bytes, stream>>>(p, g, plan);
    if ((error = cudaGetLastError()) != cudaSuccess) return error;
    if (split.parts > 1 && (error = add_parts<Op, T>(p, g, plan, stream)) != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// f(Shape) for the head size and the device: four warps a block where its shared memory holds what they need and there
// are heads enough; else one, and several blocks share a head.
template <class Op, class F>
auto with_backward_shape(const typename Op::Params& p, const F& f) {
  const int memory = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const int64_t heads = p.sequences.count * p.num_heads;
  const bool many = 2 * heads >= device_attribute(cudaDevAttrMultiProcessorCount);
  const auto sized = [&](auto large, auto small) {
    if (many && BackwardMemory<Op, float, decltype(large)>::bytes() <= memory) return f(large);
    return f(small);
  };
  if (p.head_size <= 32) return f(BackwardShape<32, 1>());
  if (p.head_size <= 64) return sized(BackwardShape<64, 4>(), BackwardShape<64, 1>());
  if (p.head_size <= 128) return sized(BackwardShape<128, 4>(), BackwardShape<128, 1>());
  return sized(BackwardShape<256, 4>(), BackwardShape<256, 1>());
}

template <class Op>
RowSplit backward_split(const typename Op::Params& p) {
  return with_backward_shape<Op>(p, [&](auto shape) {
    const Split split = split_of<Op, decltype(shape)>(p);
    return RowSplit{split.parts, split.scratch_bytes};
  });
}

template <class Op>
cudaError_t backward(const typename Op::Params& p, const typename Op::Gradients& g, cudaStream_t stream) {
  return dispatch_dtype(p.r.dtype, [&](auto type) {
    return with_backward_shape<Op>(
        p, [&](auto shape) { return launch_backward<Op, decltype(type), decltype(shape)>(p, g, stream); });
  });
}

}  // namespace flash_rwkv::cuda
