// What becomes of sums over value rows: the gradients of what belongs to columns.
//
// Each warp leaves its sums of a few tokens in shared memory. Where one block owns all rows of a head, it adds the warps
// up and writes the gradients. Where several blocks share a head, each writes its sums to scratch memory, and a second
// kernel adds the blocks up, in their order.
#pragma once

#include "cuda/heads/decay.cuh"
#include "cuda/heads/layout.cuh"
#include "cuda/heads/stage.cuh"
#include "cuda/heads/vectors.cuh"
#include "cuda/kernels.h"

namespace flash_rwkv::cuda {

struct PartsPlan {
  int parts;           // blocks that share a head
  int64_t first_head;  // of this launch
  int64_t num_heads;   // in this launch
  int64_t batch, tokens, head_size;
  bool grad_state_in_fours;
  float* sums;  // [parts, gradients, batch, tokens, num_heads, head_size], or nullptr where parts is 1
};

// Whose sums they are.
struct PlaceOfSums {
  const PartsPlan& plan;
  int64_t batch, begin, length, head;
  int part;

  __device__ __forceinline__ float* scratch(int gradients, int gradient, int64_t token, int column) const {
    const int64_t line = ((int64_t{part} * gradients + gradient) * plan.batch + batch) * plan.tokens + begin + token;
    return plan.sums + (line * plan.num_heads + head - plan.first_head) * plan.head_size + column;
  }
};

// Four columns of one gradient of one token, to where the caller of the op will find it.
template <class Op>
__device__ __forceinline__ void write_gradient(const typename Op::Params& p, const typename Op::Gradients& g,
                                               int gradient, int64_t batch, int64_t token, int64_t head, int column,
                                               float (&x)[4]) {
  if (gradient == Op::kDd) {
    float w[4];
    const int64_t from = batch * p.w.stride[0] + token * p.w.stride[1] + head * p.w.stride[2] + column;
    load_four(p.w.data, from, p.w.dtype, w);
#pragma unroll
    for (int c = 0; c < 4; ++c) x[c] *= decay_value(w[c], p.decay).derivative;
  }
  const View& to = Op::gradient_view(g, gradient);
  store_four(to.data, batch * to.stride[0] + token * to.stride[1] + head * to.stride[2] + column, to.dtype, x);
}

// The sums of tokens first … first + kStageTokens - 1 of the sequence, from all warps of the block.
template <class Op, class Shape>
__device__ __forceinline__ void write_sums(const typename Op::Params& p, const typename Op::Gradients& g,
                                           const PlaceOfSums& place, const float* sums, int64_t first) {
  constexpr int kQuads = Shape::kWidth / 4;
  constexpr int kUnits = Op::kGradients * kStageTokens * kQuads;
  constexpr int kWarpSums = Op::kGradients * kStageTokens * Shape::kWidth;
  for (int unit = threadIdx.x; unit < kUnits; unit += Shape::kThreads) {
    const int column = unit % kQuads * 4;
    const int t = unit / kQuads % kStageTokens;
    const int gradient = unit / (kQuads * kStageTokens);
    if (first + t >= place.length || column >= p.head_size || !Op::has_gradient(p, gradient)) continue;
    const float* from = sums + (t * Op::kGradients + gradient) * Shape::kWidth + column;
    float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int warp = 0; warp < Shape::kWarps; ++warp) {
      const float4 part = *reinterpret_cast<const float4*>(from + warp * kWarpSums);
      x[0] += part.x, x[1] += part.y, x[2] += part.z, x[3] += part.w;
    }
    if (place.plan.sums == nullptr) {
      write_gradient<Op>(p, g, gradient, place.batch, place.begin + first + t, place.head, column, x);
    } else {
      *reinterpret_cast<float4*>(place.scratch(Op::kGradients, gradient, first + t, column)) =
          make_float4(x[0], x[1], x[2], x[3]);
    }
  }
}

// One thread adds up four columns of one gradient of one token.
template <class Op>
__global__ void add_parts_kernel(const __grid_constant__ typename Op::Params p,
                                 const __grid_constant__ typename Op::Gradients g,
                                 const __grid_constant__ PartsPlan plan, int64_t fours) {
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= Op::kGradients * fours) return;
  const int gradient = static_cast<int>(index / fours);
  if (!Op::has_gradient(p, gradient)) return;
  const int64_t four = index % fours;
  float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (int part = 0; part < plan.parts; ++part) {
    const float4 more = reinterpret_cast<const float4*>(plan.sums)[(part * Op::kGradients + gradient) * fours + four];
    x[0] += more.x, x[1] += more.y, x[2] += more.z, x[3] += more.w;
  }
  const int64_t element = 4 * four;
  const int64_t row = element / plan.head_size;
  const int64_t head = plan.first_head + row % plan.num_heads;
  const int64_t line = row / plan.num_heads;
  write_gradient<Op>(p, g, gradient, line / plan.tokens, line % plan.tokens, head,
                     static_cast<int>(element % plan.head_size), x);
}

template <class Op>
cudaError_t add_parts(const typename Op::Params& p, const typename Op::Gradients& g, const PartsPlan& plan,
                      cudaStream_t stream) {
  constexpr int kThreads = 256;
  const int64_t fours = plan.batch * plan.tokens * plan.num_heads * plan.head_size / 4;
  const int64_t blocks = (Op::kGradients * fours + kThreads - 1) / kThreads;
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  add_parts_kernel<Op><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p, g, plan, fours);
  return cudaGetLastError();
}

}  // namespace flash_rwkv::cuda
