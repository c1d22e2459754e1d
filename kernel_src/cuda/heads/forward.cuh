// Forward pass and decode of the recurrences with a matrix state, token by token.
//
// A block of threads owns some value rows of one head, for all tokens of one sequence: rows do not depend on each
// other. Its state stays in registers; tokens come through shared memory, a few at a time, loaded behind the
// arithmetic of those before. How many rows a thread holds changes nothing in the results, to the last bit.
//
// Op says what a token does: see wkv6/recurrence.cuh and wkv7/recurrence.cuh.
#pragma once

#include "cuda/heads/device.h"
#include "cuda/heads/stage.cuh"
#include "cuda/heads/state.cuh"
#include "cuda/launch.h"

namespace flash_rwkv::cuda {

// kWidth: head size, rounded up. kRows: of the state, a thread.
template <int kWidth, int kRows>
struct ForwardShape {
  using Layout = TileLayout<kWidth / 8, 8, kRows>;
  static constexpr int kWarps = kWidth <= Layout::kWarpRows      ? 1
                                : kWidth / Layout::kWarpRows < 4 ? kWidth / Layout::kWarpRows
                                                                 : 4;
  static constexpr int kThreads = kWarp * kWarps;
  static constexpr int kBlockRows = kWarps * Layout::kWarpRows;
  static constexpr int kBuffers = kWidth == 256 ? 1 : 2;          // 48 KiB of shared memory hold no more
  static constexpr int kWarpsPerProcessor = kRows == 8 ? 8 : 16;  // leaves a thread 255 or 128 registers
};

// What the host works out.
struct ForwardPlan {
  int row_blocks;  // a head is cut into
  StateAccess state, final_state;
};

template <class Op, class T, int kWidth, int kRows>
__global__ void __launch_bounds__(ForwardShape<kWidth, kRows>::kThreads,
                                  ForwardShape<kWidth, kRows>::kWarpsPerProcessor / ForwardShape<kWidth, kRows>::kWarps)
    forward_kernel(const __grid_constant__ typename Op::Params p, const __grid_constant__ ForwardPlan plan) {
  using Shape = ForwardShape<kWidth, kRows>;
  using Layout = typename Shape::Layout;
  using Sums = RowSums<Layout>;
  constexpr int kTokenFloats = (Op::kVectors + 1) * kWidth;  // the decay comes last
  constexpr int kStageFloats = kStageTokens * kTokenFloats;
  using Vectors = VectorLoads<T, Op::kVectors, kWidth, Shape::kThreads>;
  using Decays = DecayLoads<T, kWidth, Shape::kThreads>;
  __shared__ float4 shared[Shape::kBuffers * kStageFloats / 4];
  __shared__ uint4 vectors_in_flight[Vectors::kSharedBytes / sizeof(uint4)];
  __shared__ uint4 decay_in_flight[Decays::kSharedBytes / sizeof(uint4)];
  float* current = reinterpret_cast<float*>(shared);
  float* next = current + (Shape::kBuffers - 1) * kStageFloats;

  // --- Which rows of which head of which sequence
  const Layout at;
  const int64_t unit = blockIdx.x / plan.row_blocks;
  const int64_t head = unit % p.num_heads;
  const int64_t sequence = unit / p.num_heads;
  const int row_block = static_cast<int>(blockIdx.x % plan.row_blocks);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int first_row = (row_block * Shape::kWarps + warp) * Layout::kWarpRows + at.row_group * kRows;
  const int size = static_cast<int>(p.head_size);
  const int64_t batch = p.sequences.batch(sequence);
  const int64_t begin = p.sequences.begin(sequence);
  const int length = static_cast<int>(p.sequences.length(sequence));
  const int64_t slot = p.slots ? p.slots[sequence] : sequence;
  const bool known_slot = p.slots == nullptr || (slot >= 0 && slot < p.num_states);

  // --- Loads of the first tokens, then of the state, all in flight at once
  // In shared memory, unless the rest fills the 48 KiB of it.
  constexpr int kVectorRows = Op::kVectors + 1;
  constexpr bool kFull =
      sizeof(shared) + sizeof(vectors_in_flight) + sizeof(decay_in_flight) + kVectorRows * sizeof(TokenRows) > 48 << 10;
  TokenRows own_rows[kFull ? kVectorRows : 1];
  TokenRows* rows = own_rows;
  if constexpr (!kFull) {
    __shared__ TokenRows shared_rows[kVectorRows];
    rows = shared_rows;
  }
  if (kFull || threadIdx.x == 0) {
    Op::token_rows_of(p, batch, begin, head, rows);
    rows[Op::kVectors] = token_rows(p.w, batch, begin, head);
  }
  __syncthreads();
  Vectors vectors(rows, size, reinterpret_cast<char*>(vectors_in_flight));
  Decays decay(rows + Op::kVectors, p.w.dtype == DType::kFloat32, p.decay, size,
               reinterpret_cast<char*>(decay_in_flight));
  const auto fetch = [&](int first) {
    vectors.fetch(first, length, Op::kVectors);
    decay.fetch(first, length);
  };
  const auto commit = [&](float* to) {
    wait_for_loads();
    vectors.template commit<kTokenFloats>(to, Op::kVectors);
    decay.template commit<kTokenFloats>(to + Op::kVectors * kWidth);
  };
  fetch(0);
  StateTile<Layout> state;
  state.load({p.state, known_slot ? plan.state : StateAccess::kAbsent, slot, head, first_row, size}, at);
  typename Op::template Forward<Layout> op(p, head, at);
  commit(current);
  __syncthreads();

  // --- Where this lane writes y, and what backward will want to find
  const int y_row = first_row + Sums::owned();
  const bool writes_y = Sums::owns_first() && y_row < size;
  T* y_at = static_cast<T*>(p.y.data) + batch * p.y.stride[0] + begin * p.y.stride[1] + head * p.y.stride[2] + y_row;
  const auto write_y = [&](const float (&y)[kRows]) {
    if (writes_y) {
#pragma unroll
      for (int i = 0; i < Sums::kOwned; ++i) {
        if (Sums::kOwned == 1 || y_row + i < size)
          y_at[i] = from_float<T>(known_slot ? y[i] : __int_as_float(0x7fc00000));
      }
    }
    y_at += p.y.stride[1];
  };
  const int64_t checkpoint_size = int64_t{size} * (size + Op::kCheckpointRows);
  float* checkpoint = nullptr;
  if (p.checkpoints != nullptr)
    checkpoint = static_cast<float*>(p.checkpoints) +
                 (p.sequences.first_checkpoint(sequence) * p.num_heads + head) * checkpoint_size;

  for (int first = 0; first < length; first += kStageTokens) {
    const bool more = first + kStageTokens < length;
    if (more) fetch(first + kStageTokens);
    float* extra = nullptr;  // what Op saves of a token
    if (checkpoint != nullptr) {
      const int in_block = first % kCudaCheckpointTokens;
      if (in_block == 0) {
        if (first > 0) checkpoint += p.num_heads * checkpoint_size;
        const View saved = {checkpoint, DType::kFloat32, {0, 0, size, 1}};
        state.store({saved, StateAccess::kFours, 0, 0, first_row, size}, at);
      }
      if (writes_y) extra = checkpoint + (size + in_block) * size + y_row;
    }
    const int count = length - first < kStageTokens ? length - first : kStageTokens;
#pragma unroll 1
    for (int t = 0; t < count; ++t) {
      float y[kRows];
      // Rows beyond the padded size belong to nobody: such lanes follow row 0 and write nothing.
      op.token(current + t * kTokenFloats, first_row < kWidth ? first_row : 0, state, y, extra);
      if (extra != nullptr) extra += size;
      if (!Op::kLooksBack || first + t > 0) write_y(y);
    }
    if constexpr (Shape::kBuffers == 1) __syncthreads();
    if (more) commit(next);
    __syncthreads();
    float* const swapped = current;
    current = next;
    next = swapped;
  }
  if constexpr (Op::kLooksBack) {
    float y[kRows];
    op.last(state, y);
    if (length > 0) write_y(y);
  }
  if (Op::kCheckpointRows > 0 && checkpoint != nullptr && writes_y) {
    // Rows of tokens past the end, so that what is saved is the same in every run.
    for (int row = length % kCudaCheckpointTokens; row > 0 && row < kCudaCheckpointTokens; ++row) {
#pragma unroll
      for (int i = 0; i < Sums::kOwned; ++i) checkpoint[(size + row) * size + y_row + i] = 0.0f;
    }
  }
  if (known_slot) state.store({p.final_state, plan.final_state, slot, head, first_row, size}, at);
}

// --- Launch ----------------------------------------------------------------------------------------------------------

template <class Op, class T, int kWidth, int kRows>
cudaError_t launch_forward(const typename Op::Params& p, cudaStream_t stream) {
  using Shape = ForwardShape<kWidth, kRows>;
  const int64_t row_blocks = (p.head_size + Shape::kBlockRows - 1) / Shape::kBlockRows;
  const ForwardPlan plan = {static_cast<int>(row_blocks), access_of(p.state), access_of(p.final_state)};
  const int64_t blocks = p.sequences.count * p.num_heads * row_blocks;
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX || p.sequences.tokens > INT32_MAX / 2) return cudaErrorInvalidConfiguration;
  return launch(forward_kernel<Op, T, kWidth, kRows>, blocks, Shape::kThreads, 0, stream, p, plan);
}

// Eight rows a thread make the best use of what is loaded from shared memory; one gives eight times as many warps, for
// when there are fewer heads than would keep every scheduler of the device busy.
template <class Op, class T, int kWidth>
cudaError_t launch_forward(const typename Op::Params& p, cudaStream_t stream) {
  constexpr int kSchedulers = 4;
  constexpr int kWarpRows = ForwardShape<kWidth, 8>::Layout::kWarpRows;
  const int64_t warps = p.sequences.count * p.num_heads * ((p.head_size + kWarpRows - 1) / kWarpRows);
  const bool few = warps < int64_t{kSchedulers} * device_attribute(cudaDevAttrMultiProcessorCount);
  return few ? launch_forward<Op, T, kWidth, 1>(p, stream) : launch_forward<Op, T, kWidth, 8>(p, stream);
}

template <class Op>
cudaError_t forward(const typename Op::Params& p, cudaStream_t stream) {
  return dispatch_dtype(p.r.dtype, [&](auto type) {
    using T = decltype(type);
    if (p.head_size <= 32) return launch_forward<Op, T, 32>(p, stream);
    if (p.head_size <= 64) return launch_forward<Op, T, 64>(p, stream);
    if (p.head_size <= 128) return launch_forward<Op, T, 128>(p, stream);
    return launch_forward<Op, T, 256>(p, stream);
  });
}

}  // namespace flash_rwkv::cuda
