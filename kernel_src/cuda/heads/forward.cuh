// Forward pass and decode of the recurrences with a matrix state, token by token.
//
// A block of threads owns some value rows of one head, for all tokens of one sequence: rows do not depend on each
// other. Its state stays in registers; tokens come through shared memory, a few at a time, loaded behind the
// arithmetic of those before. How many rows a thread holds changes nothing in the results, to the last bit.
//
// Op says what a token does: see wkv6/recurrence.cuh and wkv7/recurrence.cuh.
#pragma once

#include "cuda/heads/stage.cuh"
#include "cuda/heads/state.cuh"

namespace flash_rwkv::cuda {

// kWidth: head size, rounded up. kRows: of the state, a thread.
template <int kWidth, int kRows>
struct ForwardShape {
  using Layout = TileLayout<kWidth / 8, 8, kRows>;
  static constexpr int kWarps = kWidth <= 64 ? 2 : 4;
  static constexpr int kThreads = kWarp * kWarps;
  static constexpr int kBlockRows = kWarps * Layout::kWarpRows;
  // Registers for the state and what a token needs, or all there are.
  static constexpr int kBlocksPerProcessor = kRows <= 2 ? 8 : 4;
};

// Launch-wide facts that the host works out.
struct ForwardPlan {
  int row_blocks;         // a head is cut into
  bool state_in_fours;    // has_rows_of_four
  bool final_in_fours;
};

template <class Op, int kWidth, int kRows>
__global__ void __launch_bounds__(ForwardShape<kWidth, kRows>::kThreads,
                                  kWidth <= 64 ? ForwardShape<kWidth, kRows>::kBlocksPerProcessor
                                               : ForwardShape<kWidth, kRows>::kBlocksPerProcessor / 2)
    forward_kernel(const __grid_constant__ typename Op::Params p, const __grid_constant__ ForwardPlan plan) {
  using Shape = ForwardShape<kWidth, kRows>;
  using Layout = typename Shape::Layout;
  using Tokens = Stage<Op::kVectors, kWidth, Shape::kThreads>;
  using Sums = RowSums<Layout>;
  extern __shared__ float4 shared[];
  float* const staged = reinterpret_cast<float*>(shared);

  // --- Which rows of which head of which sequence
  const Layout at;
  const int64_t unit = blockIdx.x / plan.row_blocks;
  const int64_t head = unit % p.num_heads;
  const int64_t sequence = unit / p.num_heads;
  const int row_block = static_cast<int>(blockIdx.x % plan.row_blocks);
  const int first_row =
      (row_block * Shape::kWarps + static_cast<int>(threadIdx.x) / kWarp) * Layout::kWarpRows + at.row_group * kRows;
  const int size = static_cast<int>(p.head_size);
  const int64_t batch = p.sequences.batch(sequence);
  const int64_t begin = p.sequences.begin(sequence);
  const int64_t length = p.sequences.length(sequence);
  const int64_t slot = p.slots ? p.slots[sequence] : sequence;
  const bool known_slot = p.slots == nullptr || (slot >= 0 && slot < p.num_states);

  // --- Loads of the first tokens, then of the state, all in flight at once
  TokenRows rows[Op::kVectors];
  Op::token_rows_of(p, batch, begin, head, rows);
  Tokens tokens(rows, token_rows(p.w, batch, begin, head), p.decay, length, size);
  tokens.fetch(0);
  StateTile<Layout> state;
  if (known_slot) state.load(p.state, plan.state_in_fours, slot, head, first_row, size, at);
  typename Op::template Forward<Layout> op(p, head, at);
  tokens.commit(staged);
  __syncthreads();

  // --- Where this lane writes y, and what backward will want to find
  const int y_row = first_row + Sums::owned();
  const bool writes_y = Sums::owns_first() && y_row < size;
  const int64_t y_first = batch * p.y.stride[0] + begin * p.y.stride[1] + head * p.y.stride[2] + y_row;
  const int64_t checkpoint_size = int64_t{size} * (size + Op::kCheckpointRows);
  float* checkpoint = nullptr;
  if (p.checkpoints != nullptr)
    checkpoint = static_cast<float*>(p.checkpoints) +
                 (p.sequences.first_checkpoint(sequence) * p.num_heads + head) * checkpoint_size;

  float* current = staged;
  float* next = staged + Tokens::kFloats;
  for (int64_t first = 0; first < length; first += kStageTokens) {
    const bool more = first + kStageTokens < length;
    if (more) tokens.fetch(first + kStageTokens);
    if (checkpoint != nullptr && first % kCudaCheckpointTokens == 0) {
      if (first > 0) checkpoint += p.num_heads * checkpoint_size;
      const View saved = {checkpoint, DType::kFloat32, {0, 0, size, 1}};
      state.store(saved, true, 0, 0, first_row, size, at);
    }
    const int count = static_cast<int>(length - first < kStageTokens ? length - first : kStageTokens);
#pragma unroll 1
    for (int t = 0; t < count; ++t) {
      const float* token = current + t * Tokens::kTokenFloats;
      float* extra = nullptr;
      if (checkpoint != nullptr) extra = checkpoint + (size + (first + t) % kCudaCheckpointTokens) * size;
      float y[kRows];
      // Rows beyond the padded size belong to nobody: such lanes follow row 0 and write nothing.
      op.token(token, first_row < kWidth ? first_row : 0, state, y, extra, writes_y ? y_row : -1);
      if (!writes_y) continue;
#pragma unroll
      for (int i = 0; i < Sums::kOwned; ++i) {
        if (y_row + i >= size) continue;
        const float value = known_slot ? y[i] : __int_as_float(0x7fc00000);
        store_element(p.y.data, y_first + (first + t) * p.y.stride[1] + i, p.y.dtype, value);
      }
    }
    if (more) tokens.commit(next);
    __syncthreads();
    float* const swapped = current;
    current = next;
    next = swapped;
  }
  if (known_slot) state.store(p.final_state, plan.final_in_fours, slot, head, first_row, size, at);
}

// --- Launch ----------------------------------------------------------------------------------------------------------

inline int multiprocessors() {
  int device = 0, count = 1;
  if (cudaGetDevice(&device) == cudaSuccess) cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

template <class Op, int kWidth, int kRows>
cudaError_t launch_forward(const typename Op::Params& p, cudaStream_t stream) {
  using Shape = ForwardShape<kWidth, kRows>;
  const int row_blocks = static_cast<int>((p.head_size + Shape::kBlockRows - 1) / Shape::kBlockRows);
  const ForwardPlan plan = {row_blocks, has_rows_of_four(p.state), has_rows_of_four(p.final_state)};
  const int64_t blocks = p.sequences.count * p.num_heads * row_blocks;
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  constexpr int kBytes = 2 * Stage<Op::kVectors, kWidth, Shape::kThreads>::kFloats * sizeof(float);
  static_assert(kBytes <= 48 * 1024, "more needs an attribute of the kernel");
  forward_kernel<Op, kWidth, kRows><<<static_cast<unsigned>(blocks), Shape::kThreads, kBytes, stream>>>(p, plan);
  return cudaGetLastError();
}

// Eight rows a thread make the best use of what is loaded from shared memory; two give four times as many warps, for
// when there are fewer heads than would keep every scheduler of the device busy.
template <class Op, int kWidth>
cudaError_t launch_forward(const typename Op::Params& p, cudaStream_t stream) {
  using Shape = ForwardShape<kWidth, 8>;
  const int64_t warps = p.sequences.count * p.num_heads * (p.head_size + Shape::Layout::kWarpRows - 1) /
                        Shape::Layout::kWarpRows;
  constexpr int kSchedulers = 4;
  if (warps < int64_t{kSchedulers} * multiprocessors()) return launch_forward<Op, kWidth, 2>(p, stream);
  return launch_forward<Op, kWidth, 8>(p, stream);
}

template <class Op>
cudaError_t forward(const typename Op::Params& p, cudaStream_t stream) {
  if (p.head_size <= 32) return launch_forward<Op, 32>(p, stream);
  if (p.head_size <= 64) return launch_forward<Op, 64>(p, stream);
  if (p.head_size <= 128) return launch_forward<Op, 128>(p, stream);
  return launch_forward<Op, 256>(p, stream);
}

}  // namespace flash_rwkv::cuda
