// Backward pass of the recurrences with a matrix state, four tokens at a time.
//
// A block of threads owns some value rows of one head. Forward has saved the state before every 16th token. Blocks of
// 16 tokens are taken from the last to the first, each in *steps* of a group of four tokens: forward, to find the state
// before a later group, and back. G, the gradient of the state, stays in registers throughout.
// group.cuh says what happens within a group, row_tiles.cuh and tensor_tiles.cuh what holds the state and G. Nothing is divided
// by a decay. Sums over rows are added up in the order of the warps, and of the blocks where several share a head: no atomics on
// floats.
//
// Op says what the state is read and written with: see wkv6/backward.cu and wkv7/backward.cu.
#pragma once

#include "cuda/heads/backward_memory.cuh"
#include "cuda/heads/column_roles.cuh"
#include "cuda/heads/device.h"
#include "cuda/heads/group.cuh"
#include "cuda/heads/parts.cuh"
#include "cuda/heads/row_tiles.cuh"
#include "cuda/heads/tensor_tiles.cuh"
#include "cuda/heads/turns.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace flash_rwkv::cuda {

// What is done with a group of a block of 16 tokens. One state is kept in shared memory: that before the block, or that
// before group 2 while groups 3 and 2 are dealt with.
struct Step {
  int group;
  bool back;
  bool recall;       // the state before the group is the kept one, as behind each step back; else it is at hand
  bool keep_middle;  // it is to be kept
  bool keep_start;   // the state before the block of the next step is to be kept
};

// Forward 0, 1, 2; back 3, 2; forward 0; back 1, 0.
constexpr int kSteps = 8;
__device__ __forceinline__ Step step_of(int i) {
  constexpr unsigned kGroups = 0 | 1 << 4 | 2 << 8 | 3 << 12 | 2 << 16 | 0 << 20 | 1 << 24 | 0 << 28;
  const auto is_in = [i](unsigned steps) { return (steps >> i & 1) != 0; };
  return {static_cast<int>(kGroups >> 4 * i & 15), is_in(0b11011000), is_in(0b10110001), is_in(0b00000100),
          is_in(0b10010000)};
}

// Tokens from first_token on, of one head of one sequence.
template <class Op, class T, class Shape>
__device__ __forceinline__ void backward_window(const typename Op::Params& p, const typename Op::Gradients& g,
                                                const PartsPlan& plan, int unit, int part, int first_token,
                                                float* shared) {
  using Memory = BackwardMemory<Op, T, Shape>;
  using Tiles = std::conditional_t<Shape::kOnTensorCores, TensorTiles<Op, T, Shape>, RowTiles<Op, T, Shape>>;
  constexpr int kThreads = Shape::kThreads;
  constexpr int kWidth = Shape::kWidth;
  constexpr bool kWholeBlocks = Memory::Stage::kWholeBlocks;

  // --- Which head of which sequence
  const int num_heads = static_cast<int>(plan.num_heads);
  const int64_t head = plan.first_head + unit % num_heads;
  const int64_t sequence = unit / num_heads;
  const int size = static_cast<int>(p.head_size);
  const int64_t batch = p.sequences.batch(sequence);
  const int64_t begin = p.sequences.begin(sequence);
  const int length = static_cast<int>(p.sequences.length(sequence));
  const bool goes_on = length > first_token + plan.tokens;  // later tokens have been dealt with
  const int window_end = goes_on ? first_token + plan.tokens : length;
  const int first_block = first_token / kCudaCheckpointTokens;
  const int end_block = (window_end + kCudaCheckpointTokens - 1) / kCudaCheckpointTokens;

  // --- Checkpoints: the state, and behind it a row of each saved vector for every token of the block
  const int64_t checkpoint_size = int64_t{size} * (size + Op::kSavedVectors * kCudaCheckpointTokens);
  const int64_t checkpoint_stride = p.num_heads * checkpoint_size;
  float* const checkpoints = static_cast<float*>(p.checkpoints) +
                             (p.sequences.first_checkpoint(sequence) * p.num_heads + head) * checkpoint_size;
  const uint32_t saved_row_bytes = size * static_cast<uint32_t>(sizeof(float));
  const int64_t skip_of_block = checkpoint_stride * sizeof(float) - kCudaCheckpointTokens * int64_t{saved_row_bytes};

  // --- Tokens
  auto* const read_rows = reinterpret_cast<TokenRows*>(shared + Memory::kTokenRows);
  auto* const gradient_rows_at = reinterpret_cast<GradientRows*>(shared + Memory::kGradientRows);
  if (threadIdx.x == 0) {
    Op::token_rows_of(p, g, batch, begin, head, read_rows);
    read_rows[Op::kVectors] = {reinterpret_cast<const char*>(checkpoints + size * size), saved_row_bytes};
    read_rows[Op::kVectors + 1] = token_rows(p.w, batch, begin, head);
    for (int i = 0; i < Op::kGradients; ++i)
      gradient_rows_at[i] = gradient_rows<Op, T>(p, g, plan, batch, begin, head, part, i);
    const int64_t first = batch * g.dv.stride[0] + begin * g.dv.stride[1] + head * g.dv.stride[2];
    gradient_rows_at[Op::kGradients] = {static_cast<char*>(g.dv.data) + first * int64_t{sizeof(T)},
                                        g.dv.stride[1] * int64_t{sizeof(T)}};
  }
  const StageSource source = {read_rows, p.w.dtype == DType::kFloat32, p.decay, size, length, skip_of_block};
  typename Memory::Stage stage(source, reinterpret_cast<char*>(shared) + Memory::kBytes);
  if constexpr (!Op::kFeedback) {
    for (int column = threadIdx.x; column < kWidth; column += kThreads)
      shared[Memory::kBonus + column] = Op::bonus(p, head, column);
  }

  // --- The state and its gradient
  Tiles tiles(shared, part, size, length);
  if (goes_on) tiles.load_gradient(g.dstate, StateAccess::kFours, sequence, head);
  else tiles.load_gradient(g.grad_final_state, plan.grad_final_state, sequence, head);

  const GradientWriter<Op, T> writer = {p, g, plan, gradient_rows_at, length};
  ColumnGradients<Op, T, Shape> of_columns(shared, writer);

  const auto tokens_of = [&](Step step) { return stage.tokens(shared, step.group); };
  const auto prepare = [&](Step step) {
    if (!step.back && !Tiles::kScalesForward) return;
    tiles.prepare(tokens_of(step), step.back);
    __syncthreads();
  };

  // --- Steps. The next step's tokens load meanwhile, unless all of the block are there.
  const auto vectors_of = [](Step step) { return step.back ? int{Op::kVectors} : int{Op::kRecompute}; };
  const auto keep_checkpoint = [&](int block) { tiles.fetch_checkpoint(checkpoints + block * checkpoint_stride); };
  __syncthreads();  // for rows
  if (end_block > first_block) {
    keep_checkpoint(end_block - 1);
    stage.fetch(end_block - 1, step_of(0).group, vectors_of(step_of(0)));
    stage.commit(shared, end_block - 1, vectors_of(step_of(0)));
    __syncthreads();
    if (Tiles::kRecallsAhead) tiles.recall();
    prepare(step_of(0));
  }
  __syncthreads();
  for (int block = end_block - 1; block >= first_block; --block) {
#pragma unroll 1
    for (int index = 0; index < kSteps; ++index) {
      const Step step = step_of(index);
      const int first = block * kCudaCheckpointTokens + step.group * kGroup;
      const bool last = index + 1 == kSteps;
      const bool more = !last || block > first_block;
      const Step next = step_of(last ? 0 : index + 1);
      if (more && !kWholeBlocks) stage.fetch(block - last, next.group, vectors_of(next));

      if (step.back) tiles.begin_back();
      if (step.recall && !Tiles::kRecallsAhead) tiles.recall();
      if (step.keep_middle) tiles.keep();
      if (step.keep_start && more) keep_checkpoint(block - last);
      if (step.back) {
        const auto tokens = tokens_of(step);
        tiles.back(tokens, first);
        if (step.keep_start) wait_for_loads();
        __syncthreads();
        of_columns.group(tokens, first);
        __syncthreads();
        if (more && last && kWholeBlocks) stage.fetch(block - 1, next.group, vectors_of(next));
        of_columns.decays(first);
        if (Tiles::kRecallsAhead) tiles.recall();
      } else if (!Tiles::kScalesForward) {
        tiles.forward();
        __syncthreads();
      }
      if (more && (last || !kWholeBlocks)) stage.commit(shared, block - last, vectors_of(next));
      if (!step.back && Tiles::kScalesForward) tiles.forward();  // takes nothing of the tokens themselves
      if (last || !step.back || !kWholeBlocks) __syncthreads();
      prepare(next);
    }
    of_columns.token_sums.end_of_block();
  }

  tiles.store_gradient(g.dstate, sequence, head);
  of_columns.token_sums.template finish<Shape>(p, g, shared, goes_on, part, sequence, head);
}

template <class Op, class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, (blocks_per_processor<T, Shape>()))
    backward_kernel(const __grid_constant__ typename Op::Params p, const __grid_constant__ typename Op::Gradients g,
                    const __grid_constant__ PartsPlan plan) {
  extern __shared__ float4 shared_fours[];
  float* const shared = reinterpret_cast<float*>(shared_fours);
  if constexpr (Shape::kTakesTurns) {
    const Turns turns(plan.turns, plan.windows, static_cast<int>(p.sequences.count * plan.num_heads),
                      reinterpret_cast<int*>(shared + BackwardMemory<Op, T, Shape>::kTurn));
    const Turn turn = turns.take();
    const int first_token = turn.window * plan.tokens;
    const int64_t length = p.sequences.length(turn.unit / static_cast<int>(plan.num_heads));
    if (turn.window > 0 && length <= first_token) return;
    if (length > first_token + plan.tokens) turns.wait(turn);
    backward_window<Op, T, Shape>(p, g, plan, turn.unit, 0, first_token, shared);
    turns.finish(turn);
  } else {
    backward_window<Op, T, Shape>(p, g, plan, blockIdx.x / plan.parts, blockIdx.x % plan.parts, plan.first_token,
                                  shared);
  }
}

// --- Launch ----------------------------------------------------------------------------------------------------------

// Most scratch memory that a call asks for. Where it does not hold the sums of all tokens, these are dealt with in windows,
// which keeps all heads at work; where sequences are packed and windows of theirs would lie anywhere, heads take turns.
constexpr int64_t kMostScratchBytes = int64_t{256} << 20;
constexpr int64_t kLeastWindow = 256;

// Where blocks take turns, a window takes some fifty times as long as to begin and to end it.
constexpr int64_t kLeastTurn = 128;
constexpr int64_t kMostTurns = 32;  // a head

struct Split {
  int64_t parts;   // blocks of rows of a head
  int64_t heads;   // at a time
  int64_t tokens;  // at a time, a multiple of those between checkpoints if not all
  int64_t scratch_bytes;
};

inline int64_t batch_of(const Sequences& sequences) { return sequences.cu_seqlens ? 1 : sequences.count; }

inline int64_t between(int64_t least, int64_t x, int64_t most) { return x > most ? most : x < least ? least : x; }

inline int64_t windows_of(int64_t tokens, int64_t each) { return each == 0 ? 1 : (tokens + each - 1) / each; }

// Blocks that the device holds at a time.
template <class Op, class Shape>
int64_t places_of(const typename Op::Params& p) {
  constexpr int64_t kReserved = 1024;  // of shared memory, by the driver, a block
  const auto of_type = [](auto type) {
    using T = decltype(type);
    const int64_t bytes = BackwardMemory<Op, T, Shape>::bytes() + kReserved;
    const int64_t fit = device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / bytes;
    return between(1, fit, blocks_per_processor<T, Shape>());
  };
  const int64_t blocks = p.r.dtype == DType::kFloat32 ? of_type(float()) : of_type(__nv_bfloat16());
  return blocks * device_attribute(cudaDevAttrMultiProcessorCount);
}

// Tokens of a window: all, unless whole heads would leave more than an eighth of the places idle in their last round.
inline int64_t tokens_of_turn(int64_t units, int64_t places, int64_t tokens) {
  const int64_t rounds = (units + places - 1) / places;
  if (rounds <= 1 || 8 * rounds * places <= 9 * units || tokens <= kLeastTurn) return tokens;
  const int64_t least = between(kLeastTurn, (tokens + kMostTurns - 1) / kMostTurns, tokens);
  return (least + kCudaCheckpointTokens - 1) / kCudaCheckpointTokens * kCudaCheckpointTokens;
}

template <class Op, class Shape>
Split split_of(const typename Op::Params& p) {
  const int64_t all = p.sequences.tokens;
  if (Shape::kTakesTurns) {
    const int64_t units = p.sequences.count * p.num_heads;
    const int64_t tokens = tokens_of_turn(units, places_of<Op, Shape>(p), all);
    return {1, p.num_heads, tokens, (1 + units) * static_cast<int64_t>(sizeof(int))};
  }
  const int64_t parts = (p.head_size + Shape::kBlockRows - 1) / Shape::kBlockRows;
  const int64_t each =  // a head and token
      parts * Op::kGradients * batch_of(p.sequences) * p.head_size * static_cast<int64_t>(sizeof(float));
  if (parts == 1 || each * all == 0) return {parts, p.num_heads, all, 0};
  const int64_t least = p.sequences.cu_seqlens || all < kLeastWindow ? all : kLeastWindow;
  const int64_t heads = between(1, kMostScratchBytes / (each * least), p.num_heads);
  int64_t tokens = between(least, kMostScratchBytes / (each * heads), all);
  if (tokens < all) tokens -= tokens % kCudaCheckpointTokens;
  return {parts, heads, tokens, each * heads * tokens};
}

// All windows of all heads in one launch.
template <class Op, class Kernel>
cudaError_t launch_turns(Kernel* kernel, int threads, int bytes, const typename Op::Params& p,
                         const typename Op::Gradients& g, const Split& split, PartsPlan plan, cudaStream_t stream) {
  const int64_t windows = windows_of(p.sequences.tokens, split.tokens);
  const int64_t turns = windows * p.sequences.count * p.num_heads;
  if (turns == 0) return cudaSuccess;
  if (turns > INT32_MAX / 2) return cudaErrorInvalidConfiguration;
  plan.num_heads = p.num_heads;
  plan.tokens = static_cast<int>(split.tokens);
  plan.windows = static_cast<int>(windows);
  plan.turns = static_cast<int*>(g.scratch);
  const cudaError_t error = cudaMemsetAsync(g.scratch, 0, split.scratch_bytes, stream);
  if (error != cudaSuccess) return error;
  return launch(kernel, turns, threads, bytes, stream, p, g, plan);
}

// Some heads and a window at a time.
template <class Op, class T, class Kernel>
cudaError_t launch_windows(Kernel* kernel, int threads, int bytes, const typename Op::Params& p,
                           const typename Op::Gradients& g, const Split& split, PartsPlan plan, cudaStream_t stream) {
  const int64_t windows = windows_of(p.sequences.tokens, split.tokens);
  for (int64_t first_head = 0; first_head < p.num_heads; first_head += split.heads) {
    for (int64_t window = windows - 1; window >= 0; --window) {
      const int64_t first_token = window * split.tokens;
      plan.first_head = first_head;
      plan.num_heads = between(0, split.heads, p.num_heads - first_head);
      plan.first_token = static_cast<int>(first_token);
      plan.tokens = static_cast<int>(between(0, split.tokens, p.sequences.tokens - first_token));
      plan.sums = split.parts > 1 ? static_cast<float*>(g.scratch) : nullptr;
      const int64_t blocks = p.sequences.count * plan.num_heads * split.parts;
      if (blocks == 0) return cudaSuccess;
      if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
      cudaError_t error = launch(kernel, blocks, threads, bytes, stream, p, g, plan);
      if (error == cudaSuccess && split.parts > 1) error = add_parts<Op, T>(p, g, plan, stream);
      if (error != cudaSuccess) return error;
    }
  }
  return cudaSuccess;
}

template <class Op, class T, class Shape>
cudaError_t launch_backward(const typename Op::Params& p, const typename Op::Gradients& g, cudaStream_t stream) {
  const int bytes = BackwardMemory<Op, T, Shape>::bytes();
  const auto kernel = backward_kernel<Op, T, Shape>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  if (Shape::kOnTensorCores) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
    if (error != cudaSuccess) return error;
  }
  if (p.sequences.tokens > INT32_MAX / 2) return cudaErrorInvalidConfiguration;
  const Split split = split_of<Op, Shape>(p);
  PartsPlan plan = {};
  plan.parts = static_cast<int>(split.parts);
  plan.batch = batch_of(p.sequences);
  plan.grad_final_state = access_of(g.grad_final_state);
  if constexpr (Shape::kTakesTurns) return launch_turns<Op>(kernel, Shape::kThreads, bytes, p, g, split, plan, stream);
  else return launch_windows<Op, T>(kernel, Shape::kThreads, bytes, p, g, split, plan, stream);
}

// Whether tensor cores can be kept busy: by many heads, two or more of them a multiprocessor at a time.
template <class Op>
bool takes_tensor_cores(const typename Op::Params& p, bool many) {
  return many && p.head_size > 32 && p.head_size <= 64 && device_attribute(cudaDevAttrComputeCapabilityMajor) >= 8 &&
         2 * BackwardMemory<Op, float, TensorShape<64>>::bytes() <=
             device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
}

// f(Shape) for the head size and the device: blocks of four warps where shared memory holds what they need, with few rows
// each where there are few heads; else one warp. Several blocks share a head then.
template <class Op, class F>
auto with_backward_shape(const typename Op::Params& p, const F& f) {
  const int memory = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const int64_t heads = p.sequences.count * p.num_heads;
  const bool many = 2 * heads >= device_attribute(cudaDevAttrMultiProcessorCount);
  const auto sized = [&](auto large, auto small) {
    if (many && BackwardMemory<Op, float, decltype(large)>::bytes() <= memory) return f(large);
    return f(small);
  };
  if constexpr (Op::kSets == 2) {
    if (takes_tensor_cores<Op>(p, many)) return f(TensorShape<64>());
  }
  if (p.head_size <= 32) return f(BackwardShape<32, 1>());
  if (p.head_size <= 64) return many ? f(BackwardShape<64, 4>()) : f(BackwardShape<64, 4, 8>());
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
