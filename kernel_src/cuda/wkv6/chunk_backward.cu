// Backward pass of WKV6 and WKV5 on tensor cores: one pass back over the tokens of a head, for G, the gradient of the
// state, and that of values; then a block for the tokens of each checkpoint.
#include "cuda/kernels.h"
#include "cuda/wkv6/chunk_gradient_columns.cuh"
#include "cuda/wkv6/chunk_pass.cuh"

namespace flash_rwkv::cuda {
inline namespace wkv6_chunk_backward_unit {

using namespace wkv6_chunk;

template <class T, int kSize, bool kDecayOfTokens>
__global__ void __launch_bounds__(kSize / 16 * kWarp, kSize == 64 ? 3 : 1)
    wkv6_chunk_gradients_kernel(const __grid_constant__ Wkv6Params p, const __grid_constant__ Wkv6Gradients g) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  extern __shared__ uint4 dynamic_shared[];
  using Memory = GradientMemory<kSize, kDecayOfTokens>;
  const Memory memory = {reinterpret_cast<char*>(dynamic_shared)};

  // --- Which tokens of which head of which sequence
  const unsigned num_heads = static_cast<unsigned>(p.num_heads);
  const unsigned head = blockIdx.x % num_heads, checkpoint = blockIdx.x / num_heads;
  const int64_t sequence = p.sequences.sequence_of(checkpoint);
  const int64_t begin = (checkpoint - p.sequences.first_checkpoint(sequence)) * kCheckpointTokens;
  const int64_t left = begin < 0 ? 0 : p.sequences.length(sequence) - begin;
  const int64_t sums_at = blockIdx.x * int64_t{kSize};
  if (left <= 0) {
    for (int column = threadIdx.x; column < kSize; column += Memory::kThreads) {
      static_cast<float*>(g.du_sum)[sums_at + column] = 0.0f;
      if (!kDecayOfTokens) static_cast<float*>(g.dw_sum)[sums_at + column] = 0.0f;
    }
    return;
  }
  const BlockTokens tokens = {p.sequences.batch(sequence), p.sequences.begin(sequence) + begin, head,
                              static_cast<int>(left < kCheckpointTokens ? left : kCheckpointTokens)};

  // --- All that is read
  const GradientCopies<T, kSize, kDecayOfTokens> copies(memory, tokens);
  copies.fetch(g.grad_y, Memory::kDy);
  copies.fetch(p.v, Memory::kV);
  ptx::cp_async_commit_group();
  copies.fetch(p.r, Memory::kR);
  copies.fetch(p.k, Memory::kK);
  if constexpr (kDecayOfTokens) {
    if (p.w.dtype == DType::kFloat32) copies.fetch_wide_decays(p.w);
    else copies.fetch(p.w, Memory::kW);
  }
  ptx::cp_async_commit_group();
  const auto matrix = [&](const void* all) {
    return static_cast<const __nv_bfloat16*>(all) + blockIdx.x * int64_t{kSize * kSize};
  };
  GradientColumns<T, kSize, kDecayOfTokens> columns(memory, p, tokens, matrix(p.checkpoints), matrix(g.scratch));

  // --- Pairs of tokens
  ptx::cp_async_wait_group<1>();
  copies.convert(Memory::kDy);
  copies.convert(Memory::kV);
  __syncthreads();
  pair_gradients(memory, tokens.chunks());
  ptx::cp_async_wait_all();
  __syncthreads();

  // --- Columns
  columns.run();
  columns.write(g, sums_at);
#endif
}

// --- Launch ----------------------------------------------------------------------------------------------------------

int64_t checkpoints_of(const Sequences& s) {
  if (s.cu_seqlens) return s.tokens / kCheckpointTokens + s.count;
  return s.count * ((s.tokens + kCheckpointTokens - 1) / kCheckpointTokens);
}

int64_t bytes_of_checkpoints(const Wkv6Params& p) {
  return checkpoints_of(p.sequences) * p.num_heads * p.head_size * p.head_size *
         static_cast<int64_t>(sizeof(__nv_bfloat16));
}

// The pass back, as a pass: tokens the other way round. Behind the checkpoints of `scratch` come summaries.
Wkv6Params pass_back(const Wkv6Params& p, const Wkv6Gradients& g) {
  const auto turned = [](View view) {
    view.stride[1] = -view.stride[1];
    return view;
  };
  Wkv6Params back = p;
  back.r = turned(p.k);
  back.k = turned(p.r);
  back.v = turned(g.grad_y);
  back.w = turned(p.w);
  back.y = turned(g.dv);
  back.state = g.grad_final_state;
  back.final_state = g.dstate;
  back.checkpoints = g.scratch;
  back.summaries = static_cast<char*>(g.scratch) + bytes_of_checkpoints(p);
  return back;
}

template <class T, int kSize, bool kDecayOfTokens>
cudaError_t launch_gradients(const Wkv6Params& p, const Wkv6Gradients& g, cudaStream_t stream) {
  const int64_t blocks = checkpoints_of(p.sequences) * p.num_heads;
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  using Memory = GradientMemory<kSize, kDecayOfTokens>;
  const int bytes = Memory::bytes(p.w.dtype == DType::kFloat32);
  const auto kernel = wkv6_chunk_gradients_kernel<T, kSize, kDecayOfTokens>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
  if (error != cudaSuccess) return error;
  return launch(kernel, blocks, Memory::kThreads, bytes, stream, p, g);
}

}  // namespace wkv6_chunk_backward_unit

bool has_wkv6_chunk_gradients(int64_t head_size) {
  const int bytes = head_size == 64 ? GradientMemory<64, true>::bytes(true) : GradientMemory<128, true>::bytes(true);
  return bytes <= device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

int64_t wkv6_chunk_backward_scratch_bytes(const Wkv6Params& p) {
  int64_t bytes = bytes_of_checkpoints(p);
  dispatch(p, [&](auto type, auto size, auto decay_of_tokens) {
    bytes += chunk::bytes_of_summaries<Pass<decltype(type), size.value, decay_of_tokens.value, true>>(p);
  });
  return bytes;
}

cudaError_t wkv6_chunk_backward(const Wkv6Params& p, const Wkv6Gradients& g, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  dispatch(p, [&](auto type, auto size, auto decay_of_tokens) {
    using T = decltype(type);
    using Back = Pass<T, size.value, decay_of_tokens.value, true>;
    error = chunk::launch_forward<Back>(pass_back(p, g), stream);
    if (error == cudaSuccess) error = launch_gradients<T, size.value, decay_of_tokens.value>(p, g, stream);
  });
  return error;
}

}  // namespace flash_rwkv::cuda
