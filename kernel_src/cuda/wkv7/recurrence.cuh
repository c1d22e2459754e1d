// WKV7. With S the state before token t, i a value row and j a key column:
//   sa_i = sum_j S_ij a_j;   S_ij <- d_j S_ij + sa_i b_j + v_i k_j;   y_i = sum_j S_ij r_j, of the new S.
// Backward finds sa again behind each saved state, so that recomputing states needs no sums.
#pragma once

#include "cuda/heads/stage.cuh"
#include "cuda/heads/state.cuh"

namespace flash_rwkv::cuda {

// One element of the state after a token.
template <bool kAllNear>
__device__ __forceinline__ float wkv7_update(float s, float d, float k, float v, float b, float sa) {
  return fmaf(d, s, fmaf(sa, b, fmaf(v, k, kept<kAllNear>(d, s))));
}

struct Wkv7 {
  using Params = Wkv7Params;
  static constexpr int kCheckpointRows = kCudaCheckpointTokens;
  enum Vector { kK, kV, kB, kR, kA, kVectors, kDecay = kVectors };

  __device__ static void token_rows_of(const Params& p, int64_t batch, int64_t begin, int64_t head,
                                       TokenRows (&rows)[kVectors]) {
    rows[kK] = token_rows(p.k, batch, begin, head);
    rows[kV] = token_rows(p.v, batch, begin, head);
    rows[kB] = token_rows(p.b, batch, begin, head);
    rows[kR] = token_rows(p.r, batch, begin, head);
    rows[kA] = token_rows(p.a, batch, begin, head);
  }

  template <class Layout>
  struct Forward {
    static constexpr int R = Layout::kRows;
    static constexpr int C = Layout::kColumns;
    using Sums = RowSums<Layout>;
    Layout at;

    __device__ Forward(const Params&, int64_t, const Layout& layout) : at(layout) {}

    // token: its vectors in shared memory. y: the sums that this lane owns. saved_sa: where sa belongs, or nullptr.
    __device__ __forceinline__ void token(const float* token, int row, StateTile<Layout>& state, float (&y)[R],
                                          float* saved_sa, int owned_row) {
      constexpr int kWidth = Layout::kWidth;
      float a[C], owned[R], sa[R];
      at.columns_of(token + kA * kWidth, a);
#pragma unroll
      for (int i = 0; i < R; ++i) {
        owned[i] = __fmul_rn(state.x[i][0], a[0]);
#pragma unroll
        for (int c = 1; c < C; ++c) owned[i] = fmaf(state.x[i][c], a[c], owned[i]);
      }
      Sums::reduce(owned);
      if (saved_sa != nullptr && owned_row >= 0) {
#pragma unroll
        for (int i = 0; i < Sums::kOwned; ++i) saved_sa[owned_row + i] = owned[i];
      }
      Sums::share(owned, sa);

      float d[C], k[C], b[C], r[C], v[R];
      at.columns_of(token + kDecay * kWidth, d);
      at.columns_of(token + kK * kWidth, k);
      at.columns_of(token + kB * kWidth, b);
      at.columns_of(token + kR * kWidth, r);
      elements_of(token + kV * kWidth + row, v);
      if (all_near_one(d)) update<true>(state, d, k, b, r, v, sa, y);
      else update<false>(state, d, k, b, r, v, sa, y);
      Sums::reduce(y);
    }

    template <bool kAllNear>
    __device__ static __forceinline__ void update(StateTile<Layout>& state, const float (&d)[C], const float (&k)[C],
                                                  const float (&b)[C], const float (&r)[C], const float (&v)[R],
                                                  const float (&sa)[R], float (&y)[R]) {
#pragma unroll
      for (int i = 0; i < R; ++i) {
#pragma unroll
        for (int c = 0; c < C; ++c) {
          float& s = state.x[i][c];
          s = wkv7_update<kAllNear>(s, d[c], k[c], v[i], b[c], sa[i]);
          y[i] = c == 0 ? __fmul_rn(s, r[c]) : fmaf(s, r[c], y[i]);
        }
      }
    }
  };
};

}  // namespace flash_rwkv::cuda
