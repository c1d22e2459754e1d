// WKV6 and WKV5. With S the state before token t, i a value row and j a key column:
//   y_i = sum_j r_j (S_ij + u_j k_j v_i);   S_ij <- d_j S_ij + v_i k_j.
#pragma once

#include "cuda/heads/stage.cuh"
#include "cuda/heads/state.cuh"

namespace flash_rwkv::cuda {

// One element of the state after a token.
template <bool kAllNear>
__device__ __forceinline__ float wkv6_update(float s, float d, float k, float v) {
  return fmaf(d, s, fmaf(v, k, kept<kAllNear>(d, s)));
}

// This lane's columns of u, zeros beyond the head size.
template <class Layout>
__device__ __forceinline__ void load_bonus(const View& u, int64_t head, int64_t size, const Layout& at,
                                           float (&out)[Layout::kColumns]) {
#pragma unroll
  for (int c = 0; c < Layout::kColumns; ++c) {
    const int column = at.column(c / 4) + c % 4;
    out[c] = column < size ? load_element(u.data, head * u.stride[2] + column * u.stride[3], u.dtype) : 0.0f;
  }
}

struct Wkv6 {
  using Params = Wkv6Params;
  static constexpr int kCheckpointRows = 0;
  enum Vector { kK, kV, kR, kVectors, kDecay = kVectors };

  __device__ static void token_rows_of(const Params& p, int64_t batch, int64_t begin, int64_t head,
                                       TokenRows (&rows)[kVectors]) {
    rows[kK] = token_rows(p.k, batch, begin, head);
    rows[kV] = token_rows(p.v, batch, begin, head);
    rows[kR] = token_rows(p.r, batch, begin, head);
  }

  template <class Layout>
  struct Forward {
    static constexpr int R = Layout::kRows;
    static constexpr int C = Layout::kColumns;
    using Sums = RowSums<Layout>;
    Layout at;
    float u[C];

    __device__ Forward(const Params& p, int64_t head, const Layout& layout) : at(layout) {
      load_bonus(p.u, head, p.head_size, at, u);
    }

    // token: its vectors in shared memory. y: the sums that this lane owns.
    __device__ __forceinline__ void token(const float* token, int row, StateTile<Layout>& state, float (&y)[R], float*,
                                          int) {
      constexpr int kWidth = Layout::kWidth;
      float d[C], k[C], r[C], v[R];
      at.columns_of(token + kDecay * kWidth, d);
      at.columns_of(token + kK * kWidth, k);
      at.columns_of(token + kR * kWidth, r);
      elements_of(token + kV * kWidth + row, v);
      // sum_j r_j u_j k_j of these columns, the same for all rows
      float bonus = __fmul_rn(__fmul_rn(r[0], u[0]), k[0]);
#pragma unroll
      for (int c = 1; c < C; ++c) bonus = fmaf(__fmul_rn(r[c], u[c]), k[c], bonus);
#pragma unroll
      for (int i = 0; i < R; ++i) y[i] = __fmul_rn(v[i], bonus);
      if (all_near_one(d)) update<true>(state, d, k, r, v, y);
      else update<false>(state, d, k, r, v, y);
      Sums::reduce(y);
    }

    template <bool kAllNear>
    __device__ static __forceinline__ void update(StateTile<Layout>& state, const float (&d)[C], const float (&k)[C],
                                                  const float (&r)[C], const float (&v)[R], float (&y)[R]) {
#pragma unroll
      for (int i = 0; i < R; ++i) {
#pragma unroll
        for (int c = 0; c < C; ++c) {
          float& s = state.x[i][c];
          y[i] = fmaf(s, r[c], y[i]);
          s = wkv6_update<kAllNear>(s, d[c], k[c], v[i]);
        }
      }
    }
  };
};

}  // namespace flash_rwkv::cuda
