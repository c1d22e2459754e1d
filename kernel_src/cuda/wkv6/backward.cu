// Backward of WKV6 and WKV5. With S the state before token t, G the gradient of the state after it, and
// q = sum_i dy_i v_i:
//   dr_j = sum_i S_ij dy_i + q u_j k_j;   dk_j = sum_i G_ij v_i + q u_j r_j;   du_j = q r_j k_j, summed over tokens;
//   dd_j = sum_i G_ij S_ij;   dv_i = sum_j G_ij k_j + dy_i sum_j r_j u_j k_j;
//   then G_ij <- d_j G_ij + dy_i r_j is the gradient of S.
// So the state is read with r and written with k v, and a token reads before it writes.
#include "cuda/heads/backward.cuh"
#include "cuda/kernels.h"
#include "cuda/wkv6/recurrence.cuh"

namespace flash_rwkv::cuda {
inline namespace wkv6_backward_unit {

struct Wkv6Back {
  using Params = Wkv6Params;
  using Gradients = Wkv6Gradients;
  // What recomputing states takes comes first. Behind the plain vectors: the decay.
  enum Vector { kK, kV, kRecompute, kR = kRecompute, kDy, kVectors, kDecay = kVectors, kDerivative, kTokenVectors };
  static constexpr int kSavedVectors = 0;
  enum Gradient { kDr, kDk, kDd, kGradients };
  static constexpr int kSets = 1;
  static constexpr bool kFeedback = false;

  __device__ static constexpr int written_column(int) { return kK; }
  __device__ static constexpr int written_row(int) { return kV; }
  __device__ static constexpr int written_gradient(int) { return kDk; }
  __device__ static constexpr int read_column(int) { return kR; }
  __device__ static constexpr int read_gradient(int) { return kDr; }

  __device__ static float bonus(const Params& p, int64_t head, int column) {
    return column < p.head_size ? load_as_float(p.u.data, head * p.u.stride[2] + column * p.u.stride[3], p.u.dtype)
                                : 0.0f;
  }

  __device__ static void token_rows_of(const Params& p, const Gradients& g, int64_t batch, int64_t begin, int64_t head,
                                       TokenRows* rows) {
    rows[kK] = token_rows(p.k, batch, begin, head);
    rows[kV] = token_rows(p.v, batch, begin, head);
    rows[kR] = token_rows(p.r, batch, begin, head);
    rows[kDy] = token_rows(g.grad_y, batch, begin, head);
  }

  // WKV5's decay has one gradient for all tokens.
  __device__ static bool has_gradient(const Params& p, int gradient) { return gradient != kDd || p.decay_per_token; }

  __device__ static const View& gradient_view(const Gradients& g, int gradient) {
    switch (gradient) {
      case kDr: return g.dr;
      case kDk: return g.dk;
      default: return g.dw;
    }
  }

  // The state through one token, which lies in shared memory.
  template <class Layout>
  __device__ __forceinline__ static void update(const float* token, int row, const Layout& at,
                                                StateTile<Layout>& state) {
    constexpr int kWidth = Layout::kWidth;
    float d[Layout::kColumns], k[Layout::kColumns], v[Layout::kRows];
    at.columns_of(token + kDecay * kWidth, d);
    at.columns_of(token + kK * kWidth, k);
    elements_of(token + kV * kWidth + row, v);
    const auto all = [&](auto near) {
#pragma unroll
      for (int i = 0; i < Layout::kRows; ++i)
#pragma unroll
        for (int c = 0; c < Layout::kColumns; ++c)
          state.x[i][c] = wkv6_update<decltype(near)::value>(state.x[i][c], d[c], k[c], v[i]);
    };
    if (all_near_one(d)) all(Constant<true>());
    else all(Constant<false>());
  }

  // The gradients of u and of WKV5's decay: of the tokens of this block, and of all blocks before. Two sums, so that a long
  // sequence does not add small numbers to a large one.
  template <int kRounds>
  struct TokenSums {
    float block_du[kRounds][kEach] = {}, block_dd[kRounds][kEach] = {};
    float total_du[kRounds][kEach] = {}, total_dd[kRounds][kEach] = {};

    __device__ __forceinline__ void add_bonus(float du, int i, int round) { block_du[round][i] += du; }

    __device__ __forceinline__ void add_decays(const GroupColumns& dd, int round) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) block_dd[round][i] += dd[0][i] + dd[1][i] + dd[2][i] + dd[3][i];
    }

    __device__ __forceinline__ void end_of_block() {
#pragma unroll
      for (int round = 0; round < kRounds; ++round)
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
          total_du[round][i] += block_du[round][i];
          total_dd[round][i] += block_dd[round][i];
          block_du[round][i] = block_dd[round][i] = 0.0f;
        }
    }

    // Adds to what is there if the launch goes on after another. `shared` is free to use.
    template <class Shape>
    __device__ __forceinline__ void finish(const Params& p, const Gradients& g, float* shared, bool goes_on, int part,
                                           int64_t sequence, int64_t head) const {
      constexpr int kPairsOfColumns = Shape::kWidth / kEach;
      const int64_t to = ((part * p.sequences.count + sequence) * p.num_heads + head) * p.head_size;
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        const int unit = static_cast<int>(threadIdx.x) + round * Shape::kThreads;
        if (unit >= 2 * kPairsOfColumns) break;
        const int role = unit / kPairsOfColumns, column = unit % kPairsOfColumns * kEach;
        store_pair(shared + role * Shape::kWidth + column, total_dd[round][0], total_dd[round][1]);
        if (role != 0 || column >= p.head_size) continue;
        float* const du = static_cast<float*>(g.du_sum) + to + column;
        const float before[kEach] = {goes_on ? du[0] : 0.0f, goes_on ? du[1] : 0.0f};
        store_pair(du, before[0] + total_du[round][0], before[1] + total_du[round][1]);
      }
      if (p.decay_per_token) return;
      __syncthreads();
      for (int column = threadIdx.x; column < p.head_size; column += Shape::kThreads) {
        float* const dw = static_cast<float*>(g.dw_sum) + to + column;
        *dw = (goes_on ? *dw : 0.0f) + shared[column] + shared[Shape::kWidth + column];
      }
    }
  };
};

}  // namespace wkv6_backward_unit

RowSplit wkv6_backward_split(const Wkv6Params& p) { return backward_split<Wkv6Back>(p); }

cudaError_t wkv6_backward(const Wkv6Params& p, const Wkv6Gradients& g, cudaStream_t stream) {
  return backward<Wkv6Back>(p, g, stream);
}

}  // namespace flash_rwkv::cuda
