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

#include "cuda/heads/parts.cuh"
#include "cuda/heads/stage.cuh"
#include "cuda/heads/state.cuh"

namespace flash_rwkv::cuda {

constexpr int kGroups = kCudaCheckpointTokens / kStageTokens;

// Rows of the state by the warps of a block; lanes share a row, four columns each (eight at the largest size).
template <int kWidth_, int kWarps_>
struct BackwardShape {
  static constexpr int kWidth = kWidth_;
  static constexpr int kWarps = kWarps_;
  static constexpr int kColumns = kWidth == 256 ? 8 : 4;
  using Layout = TileLayout<kWidth / kColumns, kColumns, 32 / kColumns>;
  static constexpr int kThreads = kWarp * kWarps;
  static constexpr int kBlockRows = kWarps * Layout::kWarpRows;
  // The largest size has no room for loads behind the arithmetic.
  static constexpr int kBuffers = kWidth == 256 ? 1 : 2;
  static constexpr int kBlocksPerProcessor = kWarps == 1 ? 4 : 2;
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

// Shared memory of a block, in floats.
template <class Op, class Shape>
struct BackwardMemory {
  using Tokens = Stage<Op::kVectors, Shape::kWidth, Shape::kThreads>;
  static constexpr int kStaged = Shape::kBuffers * Tokens::kFloats;
  static constexpr int kTile = Shape::kThreads * 32;
  static constexpr int kKept = kGroups * kTile;
  static constexpr int kTokenSums = Op::kGradients * Shape::kWidth;
  static constexpr int kWarpSums = kStageTokens * kTokenSums;
  static constexpr int kSums = Shape::kWarps * kWarpSums;
  static constexpr int kBytes = (kStaged + kKept + kSums) * static_cast<int>(sizeof(float));
};

template <class Op, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocksPerProcessor)
    backward_kernel(const __grid_constant__ typename Op::Params p, const __grid_constant__ typename Op::Gradients g,
                    const __grid_constant__ PartsPlan plan) {
  using Layout = typename Shape::Layout;
  using Memory = BackwardMemory<Op, Shape>;
  using Tokens = typename Memory::Tokens;
  using Columns = ColumnSums<Layout>;
  using Rows = RowSums<Layout>;
  constexpr int kThreads = Shape::kThreads;
  extern __shared__ float4 shared[];
  float* current = reinterpret_cast<float*>(shared);
  float* next = current + (Shape::kBuffers - 1) * Tokens::kFloats;
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
  const int64_t length = p.sequences.length(sequence);
  const int64_t blocks = (length + kCudaCheckpointTokens - 1) / kCudaCheckpointTokens;
  const int64_t checkpoint_size = int64_t{size} * (size + Op::kCheckpointRows);
  const int64_t checkpoint_stride = p.num_heads * checkpoint_size;
  float* const checkpoints = static_cast<float*>(p.checkpoints) +
                             (p.sequences.first_checkpoint(sequence) * p.num_heads + head) * checkpoint_size;

  TokenRows rows[Op::kVectors];
  Op::token_rows_of(p, g, batch, begin, head, checkpoints, checkpoint_stride, rows);
  Tokens tokens(rows, token_rows(p.w, batch, begin, head), p.decay, length, size);
  StateTile<Layout> grad;
  grad.load(g.grad_final_state, plan.grad_state_in_fours, sequence, head, first_row, size, at);
  typename Op::template Backward<Layout> op(p, head, at);
  const PlaceOfSums place = {plan, batch, begin, length, head, part};
  const int dv_row = first_row + Rows::owned();
  const bool writes_dv = Rows::owns_first() && dv_row < size;
  const int64_t dv_first = batch * g.dv.stride[0] + begin * g.dv.stride[1] + head * g.dv.stride[2] + dv_row;

  // --- Steps: of every block, groups 0, 1, 2 forward, then 3, 2, 1, 0 back. The next step's tokens load meanwhile.
  constexpr int kForward = kGroups - 1;
  constexpr int kSteps = kForward + kGroups;
  const auto group_of = [](int step) { return step < kForward ? step : kSteps - 1 - step; };
  const auto vectors_of = [](int step) { return step < kForward ? int{Op::kRecompute} : int{Op::kVectors}; };
  StateTile<Layout> state;
  if (blocks > 0) {
    tokens.fetch((blocks - 1) * kCudaCheckpointTokens, vectors_of(0));
    tokens.commit(current, vectors_of(0));
  }
  __syncthreads();
  for (int64_t block = blocks - 1; block >= 0; --block) {
    const float* const saved = checkpoints + block * checkpoint_stride;
    const View saved_view = {const_cast<float*>(saved), DType::kFloat32, {0, 0, size, 1}};
    state.load(saved_view, true, 0, 0, first_row, size, at);
    for (int step = 0; step < kSteps; ++step) {
      const int group = group_of(step);
      const bool last_step = step + 1 == kSteps;
      const bool more = !last_step || block > 0;
      const int next_step = last_step ? 0 : step + 1;
      if (more)
        tokens.fetch((block - last_step) * kCudaCheckpointTokens + group_of(next_step) * kStageTokens,
                     vectors_of(next_step));

      float4* const kept_state = kept_states + group * Memory::kTile / 4;
      const int64_t first = block * kCudaCheckpointTokens + group * kStageTokens;
      if (step < kForward) {
        // --- Forward through four tokens
        keep(state, kept_state, kThreads);
#pragma unroll 1
        for (int t = 0; t < kStageTokens; ++t) op.update(current + t * Tokens::kTokenFloats, first_row, state, state);
      } else {
        // --- Back through four tokens, two pairs
        if (step == kForward) keep(state, kept_state, kThreads);
#pragma unroll 1
        for (int pair = kStageTokens / 2 - 1; pair >= 0; --pair) {
          recall(state, kept_state, kThreads);
#pragma unroll 1
          for (int t = 0; t < 2 * pair; ++t)
            op.update(current + t * Tokens::kTokenFloats, first_row, state, state);
          const float* early = current + 2 * pair * Tokens::kTokenFloats;
          const float* late = early + Tokens::kTokenFloats;
          float* const early_sums = sums + warp * Memory::kWarpSums + 2 * pair * Memory::kTokenSums;
          const auto one = [&](const float* token, int t, const StateTile<Layout>& before, float* token_sums) {
            float dv[Layout::kRows];
            float columns[Op::kGradients][Layout::kColumns];
            op.token(token, first_row, before, grad, dv, columns);
#pragma unroll
            for (int i = 0; i < Op::kGradients; ++i) {
              Columns::reduce(columns[i]);
              if (!Columns::owns_first()) continue;
#pragma unroll
              for (int c = 0; c < Columns::kOwned; ++c) {
                const int column = Columns::owned() + c;
                token_sums[i * Shape::kWidth + at.column(column / 4) + column % 4] = columns[i][c];
              }
            }
            if (!writes_dv || first + t >= length) return;
#pragma unroll
            for (int i = 0; i < Rows::kOwned; ++i) {
              if (dv_row + i < size)
                store_element(g.dv.data, dv_first + (first + t) * g.dv.stride[1] + i, g.dv.dtype, dv[i]);
            }
          };
          StateTile<Layout> between;
          op.update(early, first_row, state, between);
          one(late, 2 * pair + 1, between, early_sums + Memory::kTokenSums);
          one(early, 2 * pair, state, early_sums);
        }
      }

      if constexpr (Shape::kBuffers == 1) __syncthreads();
      if (more) tokens.commit(next, vectors_of(next_step));
      __syncthreads();
      if (step >= kForward) {
        write_sums<Op, Shape>(p, g, place, sums, first);
        __syncthreads();
      }
      float* const swapped = current;
      current = next;
      next = swapped;
    }
    op.end_of_block();
  }

  grad.store(g.dstate, true, sequence, head, first_row, size, at);
  op.template finish<Shape>(p, g, sums, part, sequence, head);
}

// --- Launch ----------------------------------------------------------------------------------------------------------

// Most scratch memory that a call asks for; heads take turns where it does not hold the sums of all of them.
constexpr int64_t kMostScratchBytes = int64_t{256} << 20;

template <class Op, class Shape>
int64_t scratch_bytes_of_a_head(const typename Op::Params& p, int64_t parts, int64_t batch) {
  return parts > 1 ? parts * Op::kGradients * batch * p.sequences.tokens * p.head_size * int64_t{sizeof(float)} : 0;
}

struct Split {
  int64_t parts;            // blocks of rows of a head
  int64_t heads_at_a_time;  // whose sums fit into the scratch memory
  int64_t scratch_bytes;
};

template <class Op, class Shape>
Split split_of(const typename Op::Params& p) {
  const int64_t parts = (p.head_size + Shape::kBlockRows - 1) / Shape::kBlockRows;
  const int64_t batch = p.sequences.cu_seqlens ? 1 : p.sequences.count;
  const int64_t each = scratch_bytes_of_a_head<Op, Shape>(p, parts, batch);
  if (each == 0) return {parts, p.num_heads, 0};
  const int64_t fitting = kMostScratchBytes / each;
  const int64_t heads = fitting < 1 ? 1 : fitting < p.num_heads ? fitting : p.num_heads;
  return {parts, heads, heads * each};
}

template <class Op, class Shape>
cudaError_t launch_backward(const typename Op::Params& p, const typename Op::Gradients& g, cudaStream_t stream) {
  using Memory = BackwardMemory<Op, Shape>;
  const auto kernel = backward_kernel<Op, Shape>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Memory::kBytes);
  if (error != cudaSuccess) return error;
  const Split split = split_of<Op, Shape>(p);
  for (int64_t first = 0; first < p.num_heads; first += split.heads_at_a_time) {
    const int64_t left = p.num_heads - first;
    const int64_t heads = left < split.heads_at_a_time ? left : split.heads_at_a_time;
    PartsPlan plan;
    plan.parts = static_cast<int>(split.parts);
    plan.first_head = first;
    plan.num_heads = heads;
    plan.batch = p.sequences.cu_seqlens ? 1 : p.sequences.count;
    plan.tokens = p.sequences.tokens;
    plan.head_size = p.head_size;
    plan.grad_state_in_fours = has_rows_of_four(g.grad_final_state);
    plan.sums = split.parts > 1 ? static_cast<float*>(g.scratch) : nullptr;
    const int64_t blocks = p.sequences.count * heads * split.parts;
    if (blocks == 0) return cudaSuccess;
    if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    kernel<<<static_cast<unsigned>(blocks), Shape::kThreads, Memory::kBytes, stream>>>(p, g, plan);
    if ((error = cudaGetLastError()) != cudaSuccess) return error;
    if (split.parts > 1 && (error = add_parts<Op>(p, g, plan, stream)) != cudaSuccess) return error;
  }
  return cudaSuccess;
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) == cudaSuccess) cudaDeviceGetAttribute(&value, attribute, device);
  return value;
}

// f(Shape) for the head size and the device: four warps a block where its shared memory holds what they need and there
// are heads enough; else one, and several blocks share a head.
template <class Op, class F>
auto with_backward_shape(const typename Op::Params& p, const F& f) {
  const int memory = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const int64_t heads = p.sequences.count * p.num_heads;
  const bool many = 2 * heads >= device_attribute(cudaDevAttrMultiProcessorCount);
  const auto sized = [&](auto large, auto small) {
    if (many && BackwardMemory<Op, decltype(large)>::kBytes <= memory) return f(large);
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
  return with_backward_shape<Op>(p, [&](auto shape) { return launch_backward<Op, decltype(shape)>(p, g, stream); });
}

}  // namespace flash_rwkv::cuda
