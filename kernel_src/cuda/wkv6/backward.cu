// Backward of WKV6 and WKV5. With S the state before token t, G the gradient of the state after it, and
// q = sum_i dy_i v_i:
//   dr_j = sum_i S_ij dy_i + q u_j k_j;   dk_j = sum_i G_ij v_i + q u_j r_j;   du_j = q r_j k_j, summed over tokens;
//   dd_j = sum_i G_ij S_ij;   dv_i = sum_j G_ij k_j + dy_i sum_j r_j u_j k_j;
//   then G_ij <- d_j G_ij + dy_i r_j is the gradient of S.
// Each thread takes its own rows' share of q, since everything is linear in it.
#include "cuda/heads/backward.cuh"
#include "cuda/kernels.h"
#include "cuda/wkv6/recurrence.cuh"

namespace flash_rwkv::cuda {
namespace {

struct Wkv6Back {
  using Params = Wkv6Params;
  using Gradients = Wkv6Gradients;
  // What recomputing states takes comes first. Behind the plain vectors: the decay.
  enum Vector { kK, kV, kRecompute, kR = kRecompute, kDy, kVectors, kDecay = kVectors };
  static constexpr int kSavedVectors = 0;
  enum Gradient { kDr, kDk, kDd, kGradients };

  __device__ static void token_rows_of(const Params& p, const Gradients& g, int64_t batch, int64_t begin, int64_t head,
                                       TokenRows (&rows)[kVectors]) {
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

  template <class Layout>
  struct Backward {
    static constexpr int R = Layout::kRows;
    static constexpr int C = Layout::kColumns;
    static constexpr int kWidth = Layout::kWidth;
    using Tile = StateTile<Layout>;
    using Rows = RowSums<Layout>;
    Layout at;
    float u[C];
    // Sums over tokens of this thread's share: of the tokens of this block, and of all blocks before. Two, so that a
    // long sequence does not add small numbers to a large sum.
    float block_du[C], block_dd[C], total_du[C], total_dd[C];

    __device__ Backward(const Params& p, int64_t head, const Layout& layout) : at(layout) {
      load_bonus(p.u, head, p.head_size, at, u);
#pragma unroll
      for (int c = 0; c < C; ++c) block_du[c] = block_dd[c] = total_du[c] = total_dd[c] = 0.0f;
    }

    // after = the state after the token, before = that before it; may be the same tile.
    __device__ __forceinline__ void update(const float* token, int row, const Tile& before, Tile& after) const {
      float d[C], k[C], v[R];
      at.columns_of(token + kDecay * kWidth, d);
      at.columns_of(token + kK * kWidth, k);
      elements_of(token + kV * kWidth + row, v);
      const auto all = [&](auto near) {
#pragma unroll
        for (int i = 0; i < R; ++i)
#pragma unroll
          for (int c = 0; c < C; ++c)
            after.x[i][c] = wkv6_update<decltype(near)::value>(before.x[i][c], d[c], k[c], v[i]);
      };
      if (all_near_one(d)) all(Constant<true>());
      else all(Constant<false>());
    }

    // dv: the sums that this lane owns. columns: sums over this thread's rows, a gradient. inside: not past the end.
    __device__ __forceinline__ void token(const float* token, int row, bool inside, const Tile& before, Tile& grad,
                                          float (&dv)[R], float (&columns)[kGradients][C]) {
      float k[C], r[C], d[C], dy[R], v[R];
      at.columns_of(token + kR * kWidth, r);
      at.columns_of(token + kK * kWidth, k);
      at.columns_of(token + kDecay * kWidth, d);
      elements_of(token + kDy * kWidth + row, dy);
      elements_of(token + kV * kWidth + row, v);
      float bonus = 0.0f, q = 0.0f;
#pragma unroll
      for (int c = 0; c < C; ++c) bonus = fmaf(__fmul_rn(r[c], u[c]), k[c], bonus);
#pragma unroll
      for (int i = 0; i < R; ++i) {
        q = fmaf(dy[i], v[i], q);
        dv[i] = __fmul_rn(dy[i], bonus);
      }
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const float of_u = __fmul_rn(q, k[c]);
        columns[kDr][c] = __fmul_rn(of_u, u[c]);
        columns[kDk][c] = __fmul_rn(__fmul_rn(q, r[c]), u[c]);
        block_du[c] = fmaf(of_u, r[c], block_du[c]);
      }
      const auto all = [&](auto near) {
#pragma unroll
        for (int i = 0; i < R; ++i)
#pragma unroll
          for (int c = 0; c < C; ++c) {
            const float s = before.x[i][c];
            const float gradient = grad.x[i][c];
            dv[i] = fmaf(gradient, k[c], dv[i]);
            columns[kDr][c] = fmaf(s, dy[i], columns[kDr][c]);
            columns[kDk][c] = fmaf(gradient, v[i], columns[kDk][c]);
            add(columns[kDd][c], gradient, s, i == 0);
            grad.x[i][c] = fmaf(d[c], gradient, fmaf(dy[i], r[c], kept<decltype(near)::value>(d[c], gradient)));
          }
      };
      if (all_near_one(d)) all(Constant<true>());
      else all(Constant<false>());
      Rows::reduce(dv);
#pragma unroll
      for (int c = 0; c < C; ++c) block_dd[c] += inside ? columns[kDd][c] : 0.0f;
    }

    __device__ __forceinline__ void end_of_block() {
#pragma unroll
      for (int c = 0; c < C; ++c) {
        total_du[c] += block_du[c];
        total_dd[c] += block_dd[c];
        block_du[c] = block_dd[c] = 0.0f;
      }
    }

    // Adds up the sums over tokens of all threads of the block. `shared` is free to use.
    template <class Shape>
    __device__ __forceinline__ void finish(const Params& p, const Gradients& g, float* shared, int part,
                                           int64_t sequence, int64_t head) const {
      const int64_t to = ((part * p.sequences.count + sequence) * p.num_heads + head) * p.head_size;
      add_rows<Shape>(shared, total_du, p.head_size,
                      [&](int column, float sum) { static_cast<float*>(g.du_sum)[to + column] = sum; });
      if (p.decay_per_token) return;
      add_rows<Shape>(shared, total_dd, p.head_size, [&](int column, float sum) {
        const float w = load_as_float(p.w.data, head * p.w.stride[2] + column * p.w.stride[3], p.w.dtype);
        float dw[1] = {sum};
        multiply_by_derivatives({w}, p.decay, dw);
        static_cast<float*>(g.dw_sum)[to + column] = dw[0];
      });
    }

    template <class Shape, class Store>
    __device__ __forceinline__ void add_rows(float* shared, const float (&mine)[C], int64_t size,
                                             const Store& store) const {
      constexpr int kRowGroups = Shape::kWarps * Layout::kRowGroups;
      const int group = static_cast<int>(threadIdx.x) / kWarp * Layout::kRowGroups + at.row_group;
      __syncthreads();
#pragma unroll
      for (int c = 0; c < C; ++c) shared[group * kWidth + at.column(c / 4) + c % 4] = mine[c];
      __syncthreads();
      for (int column = threadIdx.x; column < size; column += Shape::kThreads) {
        float sum = 0.0f;
        for (int i = 0; i < kRowGroups; ++i) sum += shared[i * kWidth + column];
        store(column, sum);
      }
    }
  };
};

}  // namespace

RowSplit wkv6_backward_split(const Wkv6Params& p) { return backward_split<Wkv6Back>(p); }

cudaError_t wkv6_backward(const Wkv6Params& p, const Wkv6Gradients& g, cudaStream_t stream) {
  return backward<Wkv6Back>(p, g, stream);
}

}  // namespace flash_rwkv::cuda
