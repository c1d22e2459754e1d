// Backward pass of WKV7 on tensor cores. A block of four or eight warps has a head of a sequence, and goes back through
// its checkpoints. All that a checkpoint's tokens need of those behind them is G; where heads are few, one kernel goes
// through the tokens for that alone, and here a block has a checkpoint.
#include "cuda/heads/device.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/wkv7/chunk_backward_carry.cuh"
#include "cuda/wkv7/chunk_backward_finish.cuh"
#include "cuda/wkv7/chunk_backward_prepare.cuh"
#include "cuda/wkv7/chunk_backward_state.cuh"
#include "cuda/wkv7/chunk_backward_tokens.cuh"
#include "cuda/wkv7/chunk_backward_write.cuh"

namespace flash_rwkv::cuda {
inline namespace wkv7_chunk_backward_unit {

using namespace wkv7_chunk;

template <int kSize>
constexpr int kBackwardWarps = kSize / 16;
constexpr int kBlockTokens = kChunks * kTokens;

// kCarried: G has been carried to every checkpoint, and a block has one of them.
template <class T, int kSize, int kStates, bool kCarried>
__global__ void __launch_bounds__(kBackwardWarps<kSize>* kWarp, kSize == 64 ? 2 : 1)
    wkv7_chunk_backward_kernel(const __grid_constant__ Wkv7Params p, const __grid_constant__ Wkv7Gradients g,
                               int most_checkpoints) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  using Memory = BackwardMemory<kSize, kStates>;
  constexpr int kWarps = kBackwardWarps<kSize>;  // as many as groups of rows and of columns
  static_assert((kWarps == kChunks || kWarps == 2 * kChunks) && Memory::kScores == kChunks);
  extern __shared__ uint4 dynamic_shared[];
  const Memory memory = {reinterpret_cast<char*>(dynamic_shared)};

  // --- Which checkpoints, from `last` back to `stop`, of which head of which sequence
  const int64_t unit = kCarried ? blockIdx.x / most_checkpoints : blockIdx.x;
  const int64_t head = unit % p.num_heads;
  const int64_t sequence = unit / p.num_heads;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int length = static_cast<int>(p.sequences.length(sequence));
  int last = (length + kBlockTokens - 1) / kBlockTokens - 1, stop = 0;
  if constexpr (kCarried) {
    stop = static_cast<int>(blockIdx.x % most_checkpoints);
    if (stop > last) return;
    last = stop;
  }

  if (threadIdx.x == 0) memory.vectors().set(p, g, sequence, head);
  __syncthreads();
  const BackwardTokens<T, kSize, true> tokens(memory.vectors(), p.w.dtype == DType::kFloat32, length);
  const Columns<Operand, true, T> columns(p.decay, length);

  // States before, and G behind, each checkpoint's tokens.
  const int64_t first_matrix = (p.sequences.first_checkpoint(sequence) * p.num_heads + head) * kSize * kSize;
  const int64_t next_matrix = p.num_heads * kSize * kSize;
  const float* const states = static_cast<const float*>(p.checkpoints) + first_matrix;
  float* const gradients = static_cast<float*>(g.scratch) + first_matrix;
  const auto matrix_of = [&](const View& view) {
    return static_cast<float*>(view.data) + sequence * view.stride[0] + head * view.stride[1];
  };
  BackwardRows<T, kSize, kStates> gradient(16 * warp);
  if (kCarried) gradient.load_saved(gradients + last * next_matrix);
  else if (g.grad_final_state.data != nullptr)
    gradient.load(matrix_of(g.grad_final_state), g.grad_final_state.stride[2]);
  else gradient.clear();

  BackwardRows<T, kSize, kStates> state(16 * warp);
  const auto fetch_state = [&](int checkpoint) { state.fetch(memory, states + checkpoint * next_matrix); };
  const auto fetch_chunks = [&](int checkpoint, int begin, int end) {
#pragma unroll 1
    for (int chunk = begin; chunk < end; ++chunk)
      tokens.fetch(memory.chunk(chunk), checkpoint * kBlockTokens + chunk * kTokens);
  };
  if (last >= stop) {
    fetch_chunks(last, 0, kChunks);
    fetch_state(last);
  }

  for (int checkpoint = last; checkpoint >= stop; --checkpoint) {
    const int first = checkpoint * kBlockTokens;
    const int left = (length - first + kTokens - 1) / kTokens;
    const int chunks = left < kChunks ? left : kChunks;
    ptx::cp_async_wait_all();
    for (int chunk = 0; chunk < kChunks; ++chunk) tokens.convert_values(memory.chunk(chunk));
    __syncthreads();

    // --- Of all chunks what does not depend on the state
    if constexpr (kWarps == kChunks) {
      if (warp < chunks) prepare_backward(memory.chunk(warp), tokens, p.decay, first + warp * kTokens, length);
    } else {
      prepare_in_pairs(memory, tokens, p.decay, first, length);
    }
    __syncthreads();

    // --- Forward through them
    const auto go_forward = [&](int end) {
      state.load_fetched(memory);
#pragma unroll 1
      for (int chunk = 0; chunk < end; ++chunk) state.forward(memory, chunk, chunk + 1 < end);
    };
    go_forward(chunks);

    // --- Back
    // Once those of the last two chunks have been used there is room for the state of the checkpoint before.
    const int state_fetched_at = !Memory::kAllStates ? 0 : chunks < kChunks ? chunks - 1 : kChunks - 2;
#pragma unroll 1
    for (int chunk = chunks - 1; chunk >= 0; --chunk) {
      const int token = first + chunk * kTokens;
      if constexpr (!Memory::kAllStates) {
        if (chunk == kStates - 1 && chunks > kStates) {
          ptx::cp_async_wait_all();
          __syncwarp();
          go_forward(kStates);
        }
      }
      const Fragment dv = gradient.backward(memory, chunk, g.grad_y.data != nullptr);
      __syncthreads();

      // What is prepared of the columns has been used: they are fetched once more.
      tokens.fetch_columns(memory.chunk(chunk), token);
      if (kWarps == Memory::kScores || warp < Memory::kScores) score_gradients(memory, chunk, warp);
      const StateGradients through_state = state_gradients(memory, chunk, warp);
      __syncthreads();

      const GradientWrites<T, kSize, kStates> writes(memory, chunk, memory.vectors().gradients + token * g.dr.stride[1],
                                                     g.dr.stride[1], length - token);
      writes.stage_values(dv);
      ptx::cp_async_wait_all();
      __syncwarp();
      const Raw raw = tokens.load(memory.chunk(chunk), token, warp);
      __syncwarp();
      // --- In their place the chunk of the checkpoint before, and that for those that there are not; in that of states
      // the one to go forward from next
      if (checkpoint > stop) {
        fetch_chunks(checkpoint - 1, chunk, chunk + 1 == chunks ? kChunks : chunk + 1);
        if (chunk == state_fetched_at) fetch_state(checkpoint - 1);
      }
      if (!Memory::kAllStates && chunk == kStates) fetch_state(checkpoint);
      FinishColumns<T, kSize, kStates> finish(memory);
      SliceGradients out = finish.run(raw, columns.unpacked(raw, token), through_state);
      to_gradients_of_w(p.decay, raw.w, out.log_decay);
      writes.write(g, out);
    }
  }
  if (!kCarried) gradient.store(matrix_of(g.dstate), g.dstate.stride[2]);
#endif
}

// --- Launch ----------------------------------------------------------------------------------------------------------

// Whether heads are so few that going through their tokens twice takes less time.
bool carries_first(const Wkv7Params& p) {
  return p.sequences.count * p.num_heads <= device_attribute(cudaDevAttrMultiProcessorCount) &&
         p.sequences.tokens > kBlockTokens;
}

template <class Kernel, class... Arguments>
cudaError_t launch_with_memory(Kernel kernel, int64_t blocks, int threads, int bytes, cudaStream_t stream,
                               const Arguments&... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
  if (error != cudaSuccess) return error;
  return launch(kernel, blocks, threads, bytes, stream, arguments...);
}

template <class T, int kSize>
cudaError_t launch_carry(const Wkv7Params& p, const Wkv7Gradients& g, cudaStream_t stream) {
  const int64_t heads = p.sequences.count * p.num_heads;
  const int64_t processors = device_attribute(cudaDevAttrMultiProcessorCount);
  CarryPlan plan;
  plan.splits = heads * 4 <= processors ? 4 : heads * 2 <= processors ? 2 : 1;
  plan.state_warps = kSize / 16 / plan.splits;
  plan.groups = (kCarryWarps - plan.state_warps) / kGroup;
  if (plan.groups > kMostGroups) plan.groups = kMostGroups;
  const int memory = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  while (plan.groups > 1 && CarryMemory<kSize>::bytes(plan.groups) > memory) --plan.groups;
  return launch_with_memory(wkv7_chunk_carry_kernel<T, kSize>, heads * plan.splits,
                            (plan.state_warps + plan.groups * kGroup) * kWarp, CarryMemory<kSize>::bytes(plan.groups),
                            stream, p, g, plan);
}

// Of how many of a checkpoint's chunks there is room for the states in a block's shared memory.
template <int kSize>
int states_that_fit() {
  const int memory = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (BackwardMemory<kSize, kChunks>::kBytes <= memory) return kChunks;
  return BackwardMemory<kSize, kChunks / 2>::kBytes <= memory ? kChunks / 2 : 0;
}

template <class T, int kSize, int kStates, bool kCarried>
cudaError_t launch_rest(const Wkv7Params& p, const Wkv7Gradients& g, cudaStream_t stream) {
  const int64_t most_checkpoints = (p.sequences.tokens + kBlockTokens - 1) / kBlockTokens;
  return launch_with_memory(wkv7_chunk_backward_kernel<T, kSize, kStates, kCarried>,
                            p.sequences.count * p.num_heads * (kCarried ? most_checkpoints : 1),
                            kBackwardWarps<kSize> * kWarp, BackwardMemory<kSize, kStates>::kBytes, stream, p, g,
                            static_cast<int>(most_checkpoints));
}

template <class T, int kSize, bool kCarried>
cudaError_t launch_rest(const Wkv7Params& p, const Wkv7Gradients& g, cudaStream_t stream) {
  // No device has room for all states of head size 128.
  if constexpr (kSize == 64) {
    if (states_that_fit<kSize>() == kChunks) return launch_rest<T, kSize, kChunks, kCarried>(p, g, stream);
  }
  return launch_rest<T, kSize, kChunks / 2, kCarried>(p, g, stream);
}

template <class T, int kSize>
cudaError_t launch_chunks_backward(const Wkv7Params& p, const Wkv7Gradients& g, cudaStream_t stream) {
  // One offset is good for all gradients.
  for (const View* view : {&g.dw, &g.dk, &g.dv, &g.da, &g.db})
    for (int i = 0; i < 3; ++i)
      if (view->stride[i] != g.dr.stride[i]) return cudaErrorInvalidValue;
  if (p.sequences.tokens > INT32_MAX / 2) return cudaErrorInvalidConfiguration;
  if (!carries_first(p)) return launch_rest<T, kSize, false>(p, g, stream);
  const cudaError_t error = launch_carry<T, kSize>(p, g, stream);
  return error != cudaSuccess ? error : launch_rest<T, kSize, true>(p, g, stream);
}

}  // namespace wkv7_chunk_backward_unit

bool has_wkv7_chunk_gradients(int64_t head_size) {
  return (head_size == 64 && states_that_fit<64>() > 0) || (head_size == 128 && states_that_fit<128>() > 0);
}

int64_t wkv7_chunk_backward_scratch_bytes(const Wkv7Params& p) {
  if (!carries_first(p)) return 0;
  const Sequences& s = p.sequences;
  const int64_t checkpoints =
      s.cu_seqlens ? s.tokens / kBlockTokens + s.count : s.count * ((s.tokens + kBlockTokens - 1) / kBlockTokens);
  return checkpoints * p.num_heads * p.head_size * p.head_size * static_cast<int64_t>(sizeof(float));
}

cudaError_t wkv7_chunk_backward(const Wkv7Params& p, const Wkv7Gradients& g, cudaStream_t stream) {
  return dispatch_dtype(p.r.dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (sizeof(T) == 2) {
      if (p.head_size == 64) return launch_chunks_backward<T, 64>(p, g, stream);
      if (p.head_size == 128) return launch_chunks_backward<T, 128>(p, g, stream);
    }
    return cudaErrorInvalidValue;
  });
}

}  // namespace flash_rwkv::cuda
