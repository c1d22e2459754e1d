// What becomes of sums over value rows: the gradients of what belongs to columns.
//
// Each warp leaves its sums of a few tokens in shared memory. Where one block owns all rows of a head, it adds the warps
// up and writes the gradients. Where several blocks share a head, each writes its sums to scratch memory, and a second
// kernel adds the blocks up, in their order.
#pragma once

#include "cuda/heads/decay.cuh"
#include "cuda/heads/layout.cuh"
#include "cuda/heads/stage.cuh"
#include "cuda/heads/state.cuh"
#include "cuda/heads/vectors.cuh"

namespace flash_rwkv::cuda {

struct PartsPlan {
  int parts;           // blocks that share a head
  int64_t first_head;  // of this launch
  int64_t num_heads;   // in this launch
  int64_t batch;
  StateAccess grad_final_state;
  float* sums;  // [parts, gradients, batch, tokens, num_heads, head_size], or nullptr where parts is 1
};

// Sums of two neighbouring columns of one token, to where the caller of the op will find them: `out` elements into the
// gradients, which are all allocated alike; w is `from_w` elements into its tensor.
template <class Op, class T>
__device__ __forceinline__ void write_gradient(const typename Op::Params& p, const typename Op::Gradients& g,
                                               int gradient, int64_t out, int64_t from_w, float (&x)[2]) {
  const View& to = Op::gradient_view(g, gradient);
  if (gradient != Op::kDd) return store_pair(static_cast<T*>(to.data) + out, x[0], x[1]);
  const float w[2] = {load_as_float(p.w.data, from_w, p.w.dtype), load_as_float(p.w.data, from_w + 1, p.w.dtype)};
  multiply_by_derivatives(w, p.decay, x);
  if (to.dtype == DType::kFloat32) store_pair(static_cast<float*>(to.data) + out, x[0], x[1]);
  else store_pair(static_cast<T*>(to.data) + out, x[0], x[1]);
}

// Which sums in scratch memory, as pairs.
template <class Op>
__device__ __forceinline__ int64_t scratch_pair(const typename Op::Params& p, const PartsPlan& plan, int part,
                                                int gradient, int64_t pair) {
  const int64_t pairs = plan.batch * p.sequences.tokens * plan.num_heads * (p.head_size / 2);
  return (int64_t{part} * Op::kGradients + gradient) * pairs + pair;
}

// Adds up the sums that the warps of a block have left of a few tokens, and writes them. A thread takes the same columns of
// the same token for all gradients, or for every second one where there are threads enough.
template <class Op, class T, class Shape>
class SumWriter {
 public:
  __device__ __forceinline__ SumWriter(const typename Op::Params& p, const typename Op::Gradients& g,
                                       const PartsPlan& plan, int64_t batch, int64_t begin, int length, int64_t head,
                                       int part)
      : p_(p),
        g_(g),
        plan_(plan),
        length_(length),
        part_(part),
        out_(batch * g.dr.stride[0] + begin * g.dr.stride[1] + head * g.dr.stride[2]),
        w_(batch * p.w.stride[0] + begin * p.w.stride[1] + head * p.w.stride[2]),
        row_((batch * p.sequences.tokens + begin) * plan.num_heads + head - plan.first_head) {}

  // Of tokens first … first + kStageTokens - 1 of the sequence.
  __device__ __forceinline__ void write(const float* sums, int first) const {
    constexpr int kWarpSums = kStageTokens * Op::kGradients * Shape::kWidth;
#pragma unroll
    for (int index = threadIdx.x; index < kUnits * kShares; index += Shape::kThreads) {
      const int share = index / kUnits;
      const int t = index % kUnits / kPairs;
      const int column = index % kPairs * 2;
      const int token = first + t;
      if (token >= length_ || column >= p_.head_size) continue;
      const int64_t out = out_ + token * g_.dr.stride[1] + column;
      const int64_t from_w = w_ + token * p_.w.stride[1] + column;
#pragma unroll
      for (int gradient = 0; gradient < Op::kGradients; ++gradient) {
        if (gradient % kShares != share || !Op::has_gradient(p_, gradient)) continue;
        const float* from = sums + (t * Op::kGradients + gradient) * Shape::kWidth + column;
        float x[2] = {0.0f, 0.0f};
#pragma unroll
        for (int warp = 0; warp < Shape::kWarps; ++warp) {
          const float2 more = *reinterpret_cast<const float2*>(from + warp * kWarpSums);
          x[0] += more.x, x[1] += more.y;
        }
        if (plan_.sums == nullptr) {
          write_gradient<Op, T>(p_, g_, gradient, out, from_w, x);
        } else {
          const int64_t pair = (row_ + token * plan_.num_heads) * (p_.head_size / 2) + column / 2;
          reinterpret_cast<float2*>(plan_.sums)[scratch_pair<Op>(p_, plan_, part_, gradient, pair)] =
              make_float2(x[0], x[1]);
        }
      }
    }
  }

 private:
  static constexpr int kPairs = Shape::kWidth / 2;
  static constexpr int kUnits = kStageTokens * kPairs;
  static constexpr int kShares = Shape::kThreads >= 2 * kUnits ? Shape::kThreads / kUnits : 1;

  const typename Op::Params& p_;
  const typename Op::Gradients& g_;
  const PartsPlan& plan_;
  int length_, part_;
  int64_t out_, w_, row_;
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
  const int64_t batch = line / p.sequences.tokens, token = line % p.sequences.tokens;
  const int64_t head = plan.first_head + row % plan.num_heads, column = pair % row_pairs * 2;
  const auto offset = [&](const View& view) {
    return batch * view.stride[0] + token * view.stride[1] + head * view.stride[2] + column;
  };
  write_gradient<Op, T>(p, g, gradient, offset(g.dr), offset(p.w), x);
}

template <class Op, class T>
cudaError_t add_parts(const typename Op::Params& p, const typename Op::Gradients& g, const PartsPlan& plan,
                      cudaStream_t stream) {
  constexpr int kThreads = 256;
  const int64_t pairs = plan.batch * p.sequences.tokens * plan.num_heads * p.head_size / 2;
  const int64_t blocks = (Op::kGradients * pairs + kThreads - 1) / kThreads;
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  add_parts_kernel<Op, T><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p, g, plan, pairs);
  return cudaGetLastError();
}

}  // namespace flash_rwkv::cuda
