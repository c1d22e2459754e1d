// Where gradients of what belongs to columns go, which are sums over value rows.
//
// A block that owns all rows of a head writes the gradients. Where several blocks share a head, each writes its share to
// scratch memory, and a second kernel adds the blocks up, in their order.
#pragma once

#include "cuda/heads/layout.cuh"
#include "cuda/heads/stage.cuh"
#include "cuda/heads/state.cuh"
#include "cuda/heads/vectors.cuh"
#include "cuda/launch.h"

namespace flash_rwkv::cuda {

// One launch: some heads, and a window of tokens of each sequence, or all windows, which blocks take in turn (turns.cuh). The
// last window comes first; the gradient of the state goes on from window to window through the memory for that of the
// initial state.
struct PartsPlan {
  int parts;           // blocks that share a head
  int64_t first_head;  // of this launch
  int64_t num_heads;   // in this launch
  int64_t batch;
  int first_token, tokens;  // the window; begins with a checkpoint. Where blocks take turns, of the first and of each
  StateAccess grad_final_state;
  int* turns;   // [1 + sequences * num_heads], zeros; or nullptr
  int windows;  // that blocks take in turn
  float* sums;  // [parts, gradients, batch, tokens, num_heads, head_size], or nullptr where parts is 1
};

// Two neighbouring columns of one token, to where the caller of the op will find them: `out` elements into the gradients,
// which are all allocated alike.
template <class Op, class T>
__device__ __forceinline__ void write_gradient(const typename Op::Gradients& g, int gradient, int64_t out, float x0,
                                               float x1) {
  const View& to = Op::gradient_view(g, gradient);
  if (gradient == Op::kDd && to.dtype == DType::kFloat32) store_pair(static_cast<float*>(to.data) + out, x0, x1);
  else store_pair(static_cast<T*>(to.data) + out, x0, x1);
}

// Which sums in scratch memory, as pairs.
template <class Op>
__device__ __forceinline__ int64_t scratch_pair(const typename Op::Params& p, const PartsPlan& plan, int part,
                                                int gradient, int64_t pair) {
  const int64_t pairs = plan.batch * plan.tokens * plan.num_heads * (p.head_size / 2);
  return (int64_t{part} * Op::kGradients + gradient) * pairs + pair;
}

// Where a block writes one of the gradients, or its share of one: a row a token of the sequence.
struct __align__(16) GradientRows {
  char* data;
  int64_t token_bytes;  // from token to token
};

template <class Op>
__device__ __forceinline__ bool is_fp32(const typename Op::Gradients& g, const PartsPlan& plan, int gradient) {
  return plan.sums != nullptr || (gradient == Op::kDd && g.dw.dtype == DType::kFloat32);
}

// batch, begin: of the sequence's first token.
template <class Op, class T>
__device__ __forceinline__ GradientRows gradient_rows(const typename Op::Params& p, const typename Op::Gradients& g,
                                                      const PartsPlan& plan, int64_t batch, int64_t begin, int64_t head,
                                                      int part, int gradient) {
  if (plan.sums != nullptr) {
    const int64_t row = (batch * plan.tokens + begin - plan.first_token) * plan.num_heads + head - plan.first_head;
    const int64_t pair = scratch_pair<Op>(p, plan, part, gradient, row * (p.head_size / 2));
    return {reinterpret_cast<char*>(plan.sums + 2 * pair), plan.num_heads * p.head_size * int64_t{sizeof(float)}};
  }
  const View& to = Op::gradient_view(g, gradient);
  const int64_t bytes = is_fp32<Op>(g, plan, gradient) ? 4 : int64_t{sizeof(T)};
  const int64_t first = batch * to.stride[0] + begin * to.stride[1] + head * to.stride[2];
  return {static_cast<char*>(to.data) + first * bytes, to.stride[1] * bytes};
}

// Writes gradients of two neighbouring columns.
template <class Op, class T>
struct GradientWriter {
  const typename Op::Params& p;
  const typename Op::Gradients& g;
  const PartsPlan& plan;
  const GradientRows* rows;  // of each gradient, in shared memory
  int length;                // of the sequence

  // x: of kTokens tokens from `first` on, at columns `column` and the next. Only what exists is written.
  template <int kTokens>
  __device__ __forceinline__ void write(int gradient, int first, int column, const float (&x)[kTokens][2]) const {
    if (column >= p.head_size || !Op::has_gradient(p, gradient)) return;
    const GradientRows to = rows[gradient];
    const bool fp32 = is_fp32<Op>(g, plan, gradient);
    char* at = to.data + first * to.token_bytes + column * (fp32 ? 4 : int{sizeof(T)});
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (first + t >= length) return;
      if (fp32) store_pair(reinterpret_cast<float*>(at), x[t][0], x[t][1]);
      else store_pair(reinterpret_cast<T*>(at), x[t][0], x[t][1]);
      at += to.token_bytes;
    }
  }
};

// One thread adds up two columns of one gradient of one token.
template <class Op, class T>
__global__ void add_parts_kernel(const __grid_constant__ typename Op::Params p,
                                 const __grid_constant__ typename Op::Gradients g,
                                 const __grid_constant__ PartsPlan plan, int64_t pairs) {
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= Op::kGradients * pairs) return;
  const int gradient = static_cast<int>(index / pairs);
  if (!Op::has_gradient(p, gradient)) return;
  const int64_t pair = index % pairs;
  float x[2] = {0.0f, 0.0f};
  for (int part = 0; part < plan.parts; ++part) {
    const float2 more = reinterpret_cast<const float2*>(plan.sums)[scratch_pair<Op>(p, plan, part, gradient, pair)];
    x[0] += more.x, x[1] += more.y;
  }
  const int64_t row_pairs = p.head_size / 2;
  const int64_t row = pair / row_pairs;
  const int64_t line = row / plan.num_heads;
  const int64_t batch = line / plan.tokens, token = plan.first_token + line % plan.tokens;
  const int64_t head = plan.first_head + row % plan.num_heads, column = pair % row_pairs * 2;
  const int64_t out = batch * g.dr.stride[0] + token * g.dr.stride[1] + head * g.dr.stride[2] + column;
  write_gradient<Op, T>(g, gradient, out, x[0], x[1]);
}

template <class Op, class T>
cudaError_t add_parts(const typename Op::Params& p, const typename Op::Gradients& g, const PartsPlan& plan,
                      cudaStream_t stream) {
  constexpr int kThreads = 256;
  const int64_t pairs = plan.batch * plan.tokens * plan.num_heads * p.head_size / 2;
  const int64_t blocks = (Op::kGradients * pairs + kThreads - 1) / kThreads;
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  return launch(add_parts_kernel<Op, T>, blocks, kThreads, 0, stream, p, g, plan, pairs);
}

}  // namespace flash_rwkv::cuda
