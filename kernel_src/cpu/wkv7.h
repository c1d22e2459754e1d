// WKV7. With S the state before token t, i a value row and j a key column:
//   sa_i = sum_j S_ij a_j
//   S_ij = d_j S_ij + sa_i b_j + v_i k_j
//   y_i  = sum_j S_ij r_j, of the new S
// Value rows are independent, so a tile of them stays in registers for a whole block of tokens.
#pragma once

#include "backward.h"
#include "forward.h"

namespace flash_rwkv::cpu::FLASH_RWKV_ISA {

// Inputs of one block, shared by both directions.
template <class T, int NP, int kTokens>
struct Wkv7Inputs {
  alignas(64) T r[kTokens * NP];
  T d[kTokens * NP];  // as a retention, see decay.h
  T k[kTokens * NP];
  T a[kTokens * NP];
  T b[kTokens * NP];

  void load(const Wkv7Params& p, Place at, int n, T* derivative) {
    load_tokens<NP>(p.r, at, n, p.head_size, r);
    load_tokens<NP>(p.w, at, n, p.head_size, d);
    load_tokens<NP>(p.k, at, n, p.head_size, k);
    load_tokens<NP>(p.a, at, n, p.head_size, a);
    load_tokens<NP>(p.b, at, n, p.head_size, b);
    decay_rows<T>(d, derivative, n * NP, p.decay);
  }
};

// One token of a tile up to the new state; sa[i] = sum_j S_ij a_j of the state before.
template <class T, int NP>
FLASH_RWKV_INLINE void wkv7_state_times_a(const Tile<T, NP>& state, const T* a, T* sa) {
  using Rows = Tile<T, NP>;
  Vec<T> sum[Rows::kRows];
  clear(sum);
#pragma GCC unroll 16
  for (int c = 0; c < Rows::kVectors; ++c) {
    const Vec<T> ac = Vec<T>::load(a + c * Rows::kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < Rows::kRows; ++i) sum[i] = fma(state.x[i][c], ac, sum[i]);
  }
  sum_rows(sum, sa);
}

template <class T, int NP>
struct Wkv7Forward {
  using Params = Wkv7Params;
  static constexpr int R = Tile<T, NP>::kRows;
  static constexpr int L = Tile<T, NP>::kLanes;
  static constexpr int NV = Tile<T, NP>::kVectors;

  struct Scratch {
    Wkv7Inputs<T, NP, kForwardBlock> in;
    T v[kForwardBlock * NP];
    T y[kForwardBlock * NP];
    T state[NP * NP];
    T* rows;  // of the state: `state`, or the caller's memory
  };

  static void prepare(const Params&, int64_t, Scratch&) {}

  static void load(const Params& p, Place at, int n, Scratch& s) {
    s.in.load(p, at, n, nullptr);
    load_tokens<NP>(p.v, at, n, p.head_size, s.v);
  }

  static void look_ahead(const Params& p, Place at, Ahead& ahead) {
    const View* const views[] = {&p.r, &p.w, &p.k, &p.v, &p.a, &p.b, &p.y};
    for (const View* view : views) ahead.add(*view, at, p.head_size);
  }

  static void tile(Scratch& s, int64_t row, int n, Ahead::Share<kForwardAhead> ahead) {
    Tile<T, NP> state;
    state.load(s.rows + row * NP);
    // The sum with a of the next token is taken beside y, so that both are reduced at once.
    T sa[R];
    wkv7_state_times_a(state, s.in.a, sa);
    for (int t = 0; t < n; ++t) {
      ahead.fetch(t);
      const int at = t * NP;
      const int next = t + 1 < n ? at + NP : at;
      const T* v = s.v + at + row;
      Vec<T> y[R], sum[R];
      clear(y);
      clear(sum);
#pragma GCC unroll 16
      for (int c = 0; c < NV; ++c) {
        const Vec<T> rc = Vec<T>::load(s.in.r + at + c * L);
        const Vec<T> dc = Vec<T>::load(s.in.d + at + c * L);
        const Vec<T> kc = Vec<T>::load(s.in.k + at + c * L);
        const Vec<T> bc = Vec<T>::load(s.in.b + at + c * L);
        const Vec<T> ac = Vec<T>::load(s.in.a + next + c * L);
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) {
          // sa comes last: the rest need not wait for the sum over the row.
          const Vec<T> kept = retain(dc, state.x[i][c], kc * Vec<T>::fill(v[i]));
          state.x[i][c] = fma(Vec<T>::fill(sa[i]), bc, kept);
          y[i] = fma(state.x[i][c], rc, y[i]);
          sum[i] = fma(state.x[i][c], ac, sum[i]);
        }
      }
      sum_rows(y, sum, s.y + at + row, sa);
      keep_in_memory(sa);
    }
    state.store(s.rows + row * NP);
  }

  static void finish(Scratch&, int) {}

  static void run(const Params& p, const Workers& workers) { ForwardWalk<Wkv7Forward, T, NP>::run(p, workers); }
};

template <class T, int NP>
struct Wkv7Backward {
  using Params = Wkv7Params;
  using Gradients = Wkv7Gradients;
  static constexpr int R = Tile<T, NP>::kRows;
  static constexpr int L = Tile<T, NP>::kLanes;
  static constexpr int NV = Tile<T, NP>::kVectors;
  static int keys(const Params&) { return kKeys; }
  static constexpr int kKeys = 5;
  static constexpr int kSums = 0;
  enum Key { kR, kK, kA, kB, kD };

  struct Scratch : BackwardScratch<T, NP, kKeys, kSums> {
    Wkv7Inputs<T, NP, kBlock> in;
    T sa[kWindow * R];  // of the tile at hand
  };

  static void prepare(const Params&, int64_t, Scratch&) {}

  static void load(const Params& p, Place at, int n, Scratch& s) { s.in.load(p, at, n, s.derivative); }

  static void inputs_ahead(const Params& p, const Gradients& g, Place at, Ahead& ahead) {
    const View* const views[] = {&p.r, &p.w, &p.k, &p.v, &p.a, &p.b, &g.grad_y};
    for (const View* view : views) ahead.add(*view, at, p.head_size);
  }

  static void outputs_ahead(const Gradients& g, Place at, int64_t size, Ahead& ahead) {
    const View* const views[] = {&g.dr, &g.dw, &g.dk, &g.dv, &g.da, &g.db};
    for (const View* view : views) ahead.add(*view, at, size);
  }

  // The tile's state through n tokens from `begin` on. kKeep: history[t] = the state before each, history[n] = after
  // the last, sa[t] = what the state before gives with a.
  template <bool kKeep>
  static FLASH_RWKV_INLINE void walk(Scratch& s, Tile<T, NP>& state, int64_t row, int begin, int n) {
    for (int t = 0; t < n; ++t) {
      if constexpr (kKeep) state.store(s.history + t * R * NP);
      const int in = (begin + t) * NP;
      const T* v = s.v + in + row;
      T sa[R];
      wkv7_state_times_a(state, s.in.a + in, sa);
      keep_in_memory(sa);
      if constexpr (kKeep) copy_row(sa, s.sa + t * R, R);
#pragma GCC unroll 16
      for (int c = 0; c < NV; ++c) {
        const Vec<T> dc = Vec<T>::load(s.in.d + in + c * L);
        const Vec<T> kc = Vec<T>::load(s.in.k + in + c * L);
        const Vec<T> bc = Vec<T>::load(s.in.b + in + c * L);
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) {
          const Vec<T> kept = retain(dc, state.x[i][c], kc * Vec<T>::fill(v[i]));
          state.x[i][c] = fma(Vec<T>::fill(sa[i]), bc, kept);
        }
      }
    }
    if constexpr (kKeep) state.store(s.history + n * R * NP);
  }

  // With G the gradient of the state after token t, first G_ij += dy_i r_j, then with S the state before it
  //   dr_j += S'_ij dy_i (S' after), dv_i = G_ij k_j, dk_j += G_ij v_i, db_j += G_ij sa_i, dd_j += G_ij S_ij,
  //   dsa_i = G_ij b_j, da_j += dsa_i S_ij, and G_ij = d_j G_ij + dsa_i a_j is the gradient of S.
  static void tile(Scratch& s, int64_t row, int window, int n, Ahead::Share<kBackwardAhead> ahead) {
    Tile<T, NP> state;
    state.load(s.states[window] + row * NP);
    walk<true>(s, state, row, window * kWindow, n);
    Tile<T, NP> grad;
    grad.load(s.grad_state + row * NP);
    for (int t = n - 1; t >= 0; --t) {
      ahead.fetch(t);
      const int in = (window * kWindow + t) * NP;
      const T* v = s.v + in + row;
      const T* dy = s.dy + in + row;
      const T* sa = s.sa + t * R;
      const T* before = s.history + t * R * NP;
      const T* after = before + R * NP;
      Vec<T> dv[R], sum[R];
      clear(dv);
      clear(sum);
#pragma GCC unroll 16
      for (int c = 0; c < NV; ++c) {
        const int at = t * NP + c * L;
        const Vec<T> rc = Vec<T>::load(s.in.r + in + c * L);
        const Vec<T> kc = Vec<T>::load(s.in.k + in + c * L);
        const Vec<T> bc = Vec<T>::load(s.in.b + in + c * L);
        Vec<T> dr = Vec<T>::load(s.part[kR] + at);
        Vec<T> dk = Vec<T>::load(s.part[kK] + at);
        Vec<T> db = Vec<T>::load(s.part[kB] + at);
        Vec<T> dd = Vec<T>::load(s.part[kD] + at);
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) {
          const Vec<T> dyi = Vec<T>::fill(dy[i]);
          const Vec<T> gi = fma(dyi, rc, grad.x[i][c]);
          dr = fma(Vec<T>::load(after + i * NP + c * L), dyi, dr);
          dd = fma(Vec<T>::load(before + i * NP + c * L), gi, dd);
          dk = fma(gi, Vec<T>::fill(v[i]), dk);
          db = fma(gi, Vec<T>::fill(sa[i]), db);
          dv[i] = fma(gi, kc, dv[i]);
          sum[i] = fma(gi, bc, sum[i]);
          grad.x[i][c] = gi;
        }
        dr.store(s.part[kR] + at);
        dk.store(s.part[kK] + at);
        db.store(s.part[kB] + at);
        dd.store(s.part[kD] + at);
      }
      T dsa[R];
      sum_rows(dv, sum, s.dv + t * NP + row, dsa);
      keep_in_memory(dsa);
#pragma GCC unroll 16
      for (int c = 0; c < NV; ++c) {
        const int at = t * NP + c * L;
        const Vec<T> ac = Vec<T>::load(s.in.a + in + c * L);
        const Vec<T> dc = Vec<T>::load(s.in.d + in + c * L);
        Vec<T> da = Vec<T>::load(s.part[kA] + at);
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) {
          const Vec<T> dsai = Vec<T>::fill(dsa[i]);
          da = fma(Vec<T>::load(before + i * NP + c * L), dsai, da);
          grad.x[i][c] = retain(dc, grad.x[i][c], dsai * ac);
        }
        da.store(s.part[kA] + at);
      }
    }
    grad.store(s.grad_state + row * NP);
  }

  static void finish_group(const Params&, Scratch&, int, int, int) {}

  static void finish_rows(Scratch&, int, int) {}

  static void finish_window(const Params& p, const Gradients& g, Scratch& s, Place at, int begin, int n) {
    multiply_by(s.total[kD], s.derivative + begin * NP, n * NP);
    store_tokens<NP>(g.dr, at, n, 0, p.head_size, s.total[kR]);
    store_tokens<NP>(g.dw, at, n, 0, p.head_size, s.total[kD]);
    store_tokens<NP>(g.dk, at, n, 0, p.head_size, s.total[kK]);
    store_tokens<NP>(g.da, at, n, 0, p.head_size, s.total[kA]);
    store_tokens<NP>(g.db, at, n, 0, p.head_size, s.total[kB]);
  }

  static void finish_sums(const Params&, const Gradients&, int64_t, int64_t, const T*) {}

  static void run(const Params& p, const Gradients& g, const Workers& workers) {
    BackwardWalk<Wkv7Backward, T, NP>::run(p, g, workers);
  }
};

}  // namespace flash_rwkv::cpu::FLASH_RWKV_ISA
