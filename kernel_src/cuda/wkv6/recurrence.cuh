// WKV6 and WKV5. With S the state before token t, i a value row and j a key column:
//   y_i = sum_j r_j (S_ij + u_j k_j v_i);   S_ij <- d_j S_ij + v_i k_j.
#pragma once

#include "cuda/heads/decode.cuh"
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
    out[c] = column < size ? load_as_float(u.data, head * u.stride[2] + column * u.stride[3], u.dtype) : 0.0f;
  }
}

// sum_j r_j u_j k_j of these columns, the same for all rows.
template <int kColumns>
__device__ __forceinline__ float bonus_of(const float (&r)[kColumns], const float (&u)[kColumns],
                                          const float (&k)[kColumns]) {
  float sum;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) add(sum, __fmul_rn(r[c], u[c]), k[c], c == 0);
  return sum;
}

// y: the sums that this lane owns. They are inside the branch so that their shuffles overlap with the update.
template <class Layout>
__device__ __forceinline__ void wkv6_token(StateTile<Layout>& state, const float (&d)[Layout::kColumns],
                                           const float (&k)[Layout::kColumns], const float (&r)[Layout::kColumns],
                                           const float (&v)[Layout::kRows], float bonus, float (&y)[Layout::kRows]) {
  const auto all = [&](auto near) {
#pragma unroll
    for (int i = 0; i < Layout::kRows; ++i) {
      y[i] = __fmul_rn(v[i], bonus);
#pragma unroll
      for (int c = 0; c < Layout::kColumns; ++c) y[i] = fmaf(state.x[i][c], r[c], y[i]);
    }
    RowSums<Layout>::reduce(y);
#pragma unroll
    for (int i = 0; i < Layout::kRows; ++i)
#pragma unroll
      for (int c = 0; c < Layout::kColumns; ++c)
        state.x[i][c] = wkv6_update<decltype(near)::value>(state.x[i][c], d[c], k[c], v[i]);
  };
  if (all_near_one(d)) all(Constant<true>());
  else all(Constant<false>());
}

struct Wkv6 {
  using Params = Wkv6Params;
  static constexpr int kCheckpointRows = 0;
  enum Vector { kK, kV, kR, kVectors, kDecay = kVectors };

  __device__ static void token_rows_of(const Params& p, int64_t batch, int64_t begin, int64_t head, TokenRows* rows) {
    rows[kK] = token_rows(p.k, batch, begin, head);
    rows[kV] = token_rows(p.v, batch, begin, head);
    rows[kR] = token_rows(p.r, batch, begin, head);
  }

  static constexpr bool kLooksBack = false;

  template <class Layout>
  struct Forward {
    static constexpr int R = Layout::kRows;
    static constexpr int C = Layout::kColumns;
    Layout at;
    float u[C];

    __device__ Forward(const Params& p, int64_t head, const Layout& layout) : at(layout) {
      load_bonus(p.u, head, p.head_size, at, u);
    }

    // token: its vectors in shared memory. y: the sums that this lane
    // owns.
    __device__ __forceinline__ void token(const float* token, int row, StateTile<Layout>& state, float (&y)[R],
                                          float*) const {
      constexpr int kWidth = Layout::kWidth;
      float d[C], k[C], r[C], v[R];
      at.columns_of(token + kDecay * kWidth, d);
      at.columns_of(token + kK * kWidth, k);
      at.columns_of(token + kR * kWidth, r);
      elements_of(token + kV * kWidth + row, v);
      wkv6_token<Layout>(state, d, k, r, v, bonus_of(r, u, k), y);
    }
  };

  template <class T, class Layout>
  struct Decode {
    float r[Layout::kColumns], d[Layout::kColumns], k[Layout::kColumns];
    float bonus;

    struct Loads {
      ColumnLoads<T, Layout> r, k;
      RetentionLoads<T, Layout> d;
      float u[Layout::kColumns];

      __device__ Loads(const Params& p, int64_t sequence, int64_t head, int size, const Layout& at) {
        k.fetch(p.k, sequence, head, size, at);
        r.fetch(p.r, sequence, head, size, at);
        d.fetch(p.w, p.decay_per_token ? sequence : 0, head, size, at);
        load_bonus(p.u, head, size, at, u);
      }
    };

    __device__ Decode(const Params& p, const Loads& loads) {
      loads.k.unpack(k);
      loads.r.unpack(r);
      loads.d.unpack(p.decay, d);
      bonus = bonus_of(r, loads.u, k);
    }

    // y: the sums that this lane owns.
    __device__ __forceinline__ void token(const float (&v)[Layout::kRows], StateTile<Layout>& state,
                                          float (&y)[Layout::kRows]) const {
      wkv6_token<Layout>(state, d, k, r, v, bonus, y);
    }
  };
};

}  // namespace flash_rwkv::cuda
