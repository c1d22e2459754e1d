// Backward of WKV7. With S the state before token t, S' after it and G the gradient of S' less what y_t sends back:
//   G_ij += dy_i r_j;   dsa_i = sum_j G_ij b_j;   dv_i = sum_j G_ij k_j;
//   dr_j = sum_i S'_ij dy_i;   dk_j = sum_i G_ij v_i;   db_j = sum_i G_ij sa_i;   dd_j = sum_i G_ij S_ij;
//   da_j = sum_i S_ij dsa_i;   then G_ij <- d_j G_ij + dsa_i a_j is the gradient of S.
// S' is not needed: dr_j = d_j sum_i S_ij dy_i + b_j (sum_i sa_i dy_i) + k_j (sum_i v_i dy_i).
#include "cuda/heads/backward.cuh"
#include "cuda/kernels.h"
#include "cuda/wkv7/recurrence.cuh"

namespace flash_rwkv::cuda {
namespace {

struct Wkv7Back {
  using Params = Wkv7Params;
  using Gradients = Wkv7Gradients;
  // What recomputing states takes comes first. Behind the plain vectors: sa, which forward has saved, and the decay.
  enum Vector { kK, kV, kB, kRecompute, kR = kRecompute, kA, kDy, kVectors, kSa = kVectors, kDecay };
  static constexpr int kSavedVectors = 1;
  enum Gradient { kDr, kDk, kDd, kDa, kDb, kGradients };

  __device__ static void token_rows_of(const Params& p, const Gradients& g, int64_t batch, int64_t begin, int64_t head,
                                       TokenRows (&rows)[kVectors]) {
    rows[kK] = token_rows(p.k, batch, begin, head);
    rows[kV] = token_rows(p.v, batch, begin, head);
    rows[kB] = token_rows(p.b, batch, begin, head);
    rows[kR] = token_rows(p.r, batch, begin, head);
    rows[kA] = token_rows(p.a, batch, begin, head);
    rows[kDy] = token_rows(g.grad_y, batch, begin, head);
  }

  __device__ static bool has_gradient(const Params&, int) { return true; }

  __device__ static const View& gradient_view(const Gradients& g, int gradient) {
    switch (gradient) {
      case kDr: return g.dr;
      case kDk: return g.dk;
      case kDd: return g.dw;
      case kDa: return g.da;
      default: return g.db;
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

    __device__ Backward(const Params&, int64_t, const Layout& layout) : at(layout) {}

    // after = the state after the token, before = that before it; may be the same tile.
    __device__ __forceinline__ void update(const float* token, int row, const Tile& before, Tile& after) const {
      float d[C], k[C], b[C], v[R], sa[R];
      at.columns_of(token + kDecay * kWidth, d);
      at.columns_of(token + kK * kWidth, k);
      at.columns_of(token + kB * kWidth, b);
      elements_of(token + kV * kWidth + row, v);
      elements_of(token + kSa * kWidth + row, sa);
      wkv7_update_tile(before, after, d, k, b, v, sa);
    }

    // dv: the sums that this lane owns. columns: sums over this thread's rows, a gradient.
    __device__ __forceinline__ void token(const float* token, int row, bool, const Tile& before, Tile& grad,
                                          float (&dv)[R], float (&columns)[kGradients][C]) const {
      float k[C], b[C], r[C], d[C], dy[R], v[R], sa[R], dsa[R];
      at.columns_of(token + kR * kWidth, r);
      at.columns_of(token + kK * kWidth, k);
      at.columns_of(token + kB * kWidth, b);
      at.columns_of(token + kDecay * kWidth, d);
      elements_of(token + kDy * kWidth + row, dy);
      elements_of(token + kV * kWidth + row, v);
      elements_of(token + kSa * kWidth + row, sa);
      float owned_dsa[R];
      float sa_dy = 0.0f, v_dy = 0.0f;
#pragma unroll
      for (int i = 0; i < R; ++i) {
        sa_dy = fmaf(sa[i], dy[i], sa_dy);
        v_dy = fmaf(v[i], dy[i], v_dy);
#pragma unroll
        for (int c = 0; c < C; ++c) {
          const float s = before.x[i][c];
          const float gradient = fmaf(dy[i], r[c], grad.x[i][c]);
          grad.x[i][c] = gradient;
          add(owned_dsa[i], gradient, b[c], c == 0);
          add(dv[i], gradient, k[c], c == 0);
          add(columns[kDr][c], s, dy[i], i == 0);
          add(columns[kDk][c], gradient, v[i], i == 0);
          add(columns[kDb][c], gradient, sa[i], i == 0);
          add(columns[kDd][c], gradient, s, i == 0);
        }
      }
      Rows::reduce(owned_dsa);
      Rows::reduce(dv);
      Rows::share(owned_dsa, dsa);
      float a[C];
      at.columns_of(token + kA * kWidth, a);
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const float decayed = fmaf(d[c], columns[kDr][c], kept<false>(d[c], columns[kDr][c]));
        columns[kDr][c] = fmaf(b[c], sa_dy, fmaf(k[c], v_dy, decayed));
      }
      const auto all = [&](auto near) {
#pragma unroll
        for (int i = 0; i < R; ++i)
#pragma unroll
          for (int c = 0; c < C; ++c) {
            add(columns[kDa][c], before.x[i][c], dsa[i], i == 0);
            const float gradient = grad.x[i][c];
            grad.x[i][c] = fmaf(d[c], gradient, fmaf(dsa[i], a[c], kept<decltype(near)::value>(d[c], gradient)));
          }
      };
      if (all_near_one(d)) all(Constant<true>());
      else all(Constant<false>());
    }

    __device__ __forceinline__ void end_of_block() {}

    template <class Shape>
    __device__ __forceinline__ void finish(const Params&, const Gradients&, float*, int, int64_t, int64_t) const {}
  };
};

}  // namespace

RowSplit wkv7_backward_split(const Wkv7Params& p) { return backward_split<Wkv7Back>(p); }

cudaError_t wkv7_backward(const Wkv7Params& p, const Wkv7Gradients& g, cudaStream_t stream) {
  return backward<Wkv7Back>(p, g, stream);
}

}  // namespace flash_rwkv::cuda
