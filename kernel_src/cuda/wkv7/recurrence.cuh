// WKV7. With S the state before token t, i a value row and j a key column:
//   sa_i = sum_j S_ij a_j;   S_ij <- d_j S_ij + sa_i b_j + v_i k_j;   y_i = sum_j S_ij r_j, of the new S.
// Backward finds sa again behind each saved state, so that recomputing states needs no sums.
#pragma once

#include "cuda/heads/decode.cuh"
#include "cuda/heads/stage.cuh"
#include "cuda/heads/state.cuh"

namespace flash_rwkv::cuda {

// One element of the state after a token.
template <bool kAllNear>
__device__ __forceinline__ float wkv7_update(float s, float d, float k, float v, float b, float sa) {
  return fmaf(d, s, fmaf(sa, b, fmaf(v, k, kept<kAllNear>(d, s))));
}

// This thread's part of S x.
template <class Layout>
__device__ __forceinline__ void row_products(const StateTile<Layout>& state, const float (&x)[Layout::kColumns],
                                             float (&out)[Layout::kRows]) {
#pragma unroll
  for (int i = 0; i < Layout::kRows; ++i)
#pragma unroll
    for (int c = 0; c < Layout::kColumns; ++c) add(out[i], state.x[i][c], x[c], c == 0);
}

// after = the state after a token, before = that before it; may be the same tile.
template <class Layout>
__device__ __forceinline__ void wkv7_update_tile(const StateTile<Layout>& before, StateTile<Layout>& after,
                                                 const float (&d)[Layout::kColumns], const float (&k)[Layout::kColumns],
                                                 const float (&b)[Layout::kColumns], const float (&v)[Layout::kRows],
                                                 const float (&sa)[Layout::kRows]) {
  const auto all = [&](auto near) {
#pragma unroll
    for (int i = 0; i < Layout::kRows; ++i)
#pragma unroll
      for (int c = 0; c < Layout::kColumns; ++c)
        after.x[i][c] = wkv7_update<decltype(near)::value>(before.x[i][c], d[c], k[c], v[i], b[c], sa[i]);
  };
  if (all_near_one(d)) all(Constant<true>());
  else all(Constant<false>());
}

struct Wkv7 {
  using Params = Wkv7Params;
  static constexpr int kCheckpointRows = kCudaCheckpointTokens;
  enum Vector { kK, kV, kB, kR, kA, kVectors, kDecay = kVectors };

  __device__ static void token_rows_of(const Params& p, int64_t batch, int64_t begin, int64_t head, TokenRows* rows) {
    rows[kK] = token_rows(p.k, batch, begin, head);
    rows[kV] = token_rows(p.v, batch, begin, head);
    rows[kB] = token_rows(p.b, batch, begin, head);
    rows[kR] = token_rows(p.r, batch, begin, head);
    rows[kA] = token_rows(p.a, batch, begin, head);
  }

  // y_t = S r is of the state after token t, where sa of the next token starts from too: both sums are taken together,
  // at the next token, so that their shuffles overlap.
  static constexpr bool kLooksBack = true;

  template <class Layout>
  struct Forward {
    static constexpr int R = Layout::kRows;
    static constexpr int C = Layout::kColumns;
    using Sums = RowSums<Layout>;
    Layout at;
    float r[C] = {};  // of the token before

    __device__ Forward(const Params&, int64_t, const Layout& layout) : at(layout) {}

    // token: its vectors in shared memory. y: of the token before, the sums that this lane owns. saved_sa: where those of
    // sa belong, or nullptr.
    __device__ __forceinline__ void token(const float* token, int row, StateTile<Layout>& state, float (&y)[R],
                                          float* saved_sa) {
      constexpr int kWidth = Layout::kWidth;
      float a[C], owned[R], sa[R];
      at.columns_of(token + kA * kWidth, a);
      row_products(state, a, owned);
      row_products(state, r, y);
      Sums::reduce(owned);
      Sums::reduce(y);
      if (saved_sa != nullptr) {
#pragma unroll
        for (int i = 0; i < Sums::kOwned; ++i) saved_sa[i] = owned[i];
      }
      Sums::share(owned, sa);

      float d[C], k[C], b[C], v[R];
      at.columns_of(token + kDecay * kWidth, d);
      at.columns_of(token + kK * kWidth, k);
      at.columns_of(token + kB * kWidth, b);
      elements_of(token + kV * kWidth + row, v);
      at.columns_of(token + kR * kWidth, r);
      wkv7_update_tile(state, state, d, k, b, v, sa);
    }

    // y of the last token.
    __device__ __forceinline__ void last(const StateTile<Layout>& state, float (&y)[R]) const {
      row_products(state, r, y);
      Sums::reduce(y);
    }
  };

  template <class T, class Layout>
  struct Decode {
    float r[Layout::kColumns], d[Layout::kColumns], k[Layout::kColumns], a[Layout::kColumns], b[Layout::kColumns];

    struct Loads {
      ColumnLoads<T, Layout> r, k, a, b;
      RetentionLoads<T, Layout> d;

      __device__ Loads(const Params& p, int64_t sequence, int64_t head, int size, const Layout& at) {
        a.fetch(p.a, sequence, head, size, at);
        b.fetch(p.b, sequence, head, size, at);
        k.fetch(p.k, sequence, head, size, at);
        r.fetch(p.r, sequence, head, size, at);
        d.fetch(p.w, sequence, head, size, at);
      }
    };

    __device__ Decode(const Params& p, const Loads& loads) {
      loads.a.unpack(a);
      loads.b.unpack(b);
      loads.k.unpack(k);
      loads.r.unpack(r);
      loads.d.unpack(p.decay, d);
    }

    // y: the sums that this lane owns.
    __device__ __forceinline__ void token(const float (&v)[Layout::kRows], StateTile<Layout>& state,
                                          float (&y)[Layout::kRows]) const {
      float owned[Layout::kRows], sa[Layout::kRows];
      row_products(state, a, owned);
      RowSums<Layout>::reduce(owned);
      RowSums<Layout>::share(owned, sa);
      wkv7_update_tile(state, state, d, k, b, v, sa);
      row_products(state, r, y);
      RowSums<Layout>::reduce(y);
    }
  };
};

}  // namespace flash_rwkv::cuda
