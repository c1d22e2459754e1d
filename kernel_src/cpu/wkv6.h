// WKV6 and WKV5. With S the state before token t, i a value row and j a key column:
//   y_i  = sum_j r_j (S_ij + u_j k_j v_i) = sum_j r_j S_ij + v_i (sum_j r_j u_j k_j)
//   S_ij = d_j S_ij + v_i k_j
// Value rows are independent, so a tile of them stays in registers for a whole block of tokens.
#pragma once

#include "backward.h"
#include "forward.h"

namespace flash_rwkv::cpu::FLASH_RWKV_ISA {

// Inputs of one block, shared by both directions.
template <class T, int NP>
struct Wkv6Inputs {
  alignas(64) T r[kBlock * NP];
  T k[kBlock * NP];
  T d[kBlock * NP];  // as a retention, see decay.h
  T u[NP];
  T bonus[kBlock];  // sum_j r_j u_j k_j

  void load(const Wkv6Params& p, Place at, int n, T* derivative) {
    load_tokens<NP>(p.r, at, n, p.head_size, r);
    load_tokens<NP>(p.k, at, n, p.head_size, k);
    load_tokens<NP>(p.w, at, n, p.head_size, d);
    decay_rows<T>(d, derivative, n * NP, p.decay);
    for (int t = 0; t < n; ++t) {
      Vec<T> sum = Vec<T>::fill(T(0));
      for (int j = 0; j < NP; j += Vec<T>::kLanes)
        sum = fma(Vec<T>::load(r + t * NP + j) * Vec<T>::load(u + j), Vec<T>::load(k + t * NP + j), sum);
      bonus[t] = sum_lanes(sum);
    }
  }
};

template <class T, int NP>
struct Wkv6Forward {
  using Params = Wkv6Params;
  static constexpr int R = Tile<T, NP>::kRows;
  static constexpr int L = Tile<T, NP>::kLanes;
  static constexpr int NV = Tile<T, NP>::kVectors;

  struct Scratch {
    Wkv6Inputs<T, NP> in;
    T v[kBlock * NP];
    T y[kBlock * NP];
    T state[NP * NP];
    T* rows;  // of the state: `state`, or the caller's memory
  };

  static void prepare(const Params& p, int64_t head, Scratch& s) {
    load_tokens<NP>(p.u, {0, 0, head}, 1, p.head_size, s.in.u);
  }

  static void load(const Params& p, Place at, int n, Scratch& s) {
    s.in.load(p, at, n, nullptr);
    load_tokens<NP>(p.v, at, n, p.head_size, s.v);
  }

  static void look_ahead(const Params& p, Place at, Ahead& ahead) {
    const View* const views[] = {&p.r, &p.k, &p.v, &p.w, &p.y};
    for (const View* view : views) ahead.add(*view, at, p.head_size);
  }

  static void tile(Scratch& s, int64_t row, int n, Ahead::Share ahead) {
    Tile<T, NP> state;
    state.load(s.rows + row * NP);
    for (int t = 0; t < n; ++t) {
      ahead.fetch(t);
      const T* r = s.in.r + t * NP;
      const T* k = s.in.k + t * NP;
      const T* d = s.in.d + t * NP;
      const T* v = s.v + t * NP + row;
      Vec<T> y[R];
      clear(y);
#pragma GCC unroll 16
      for (int c = 0; c < NV; ++c) {
        const Vec<T> rc = Vec<T>::load(r + c * L);
        const Vec<T> kc = Vec<T>::load(k + c * L);
        const Vec<T> dc = Vec<T>::load(d + c * L);
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) {
          y[i] = fma(rc, state.x[i][c], y[i]);
          state.x[i][c] = retain(dc, state.x[i][c], kc * Vec<T>::fill(v[i]));
        }
      }
      sum_rows(y, s.y + t * NP + row);
    }
    state.store(s.rows + row * NP);
  }

  // y_i += v_i sum_j r_j u_j k_j, for all rows at once.
  static void finish(Scratch& s, int n) {
    for (int t = 0; t < n; ++t) add_scaled<NP>(s.y + t * NP, s.v + t * NP, s.in.bonus[t]);
  }

  static void run(const Params& p, const Workers& workers) { ForwardWalk<Wkv6Forward, T, NP>::run(p, workers); }
};

template <class T, int NP>
struct Wkv6Backward {
  using Params = Wkv6Params;
  using Gradients = Wkv6Gradients;
  static constexpr int R = Tile<T, NP>::kRows;
  static constexpr int L = Tile<T, NP>::kLanes;
  static constexpr int NV = Tile<T, NP>::kVectors;
  static constexpr int kKeys = 3;
  static constexpr int kSums = 2;
  enum Key { kR, kK, kD };
  enum Sum { kU, kW };

  struct Scratch : BackwardScratch<T, NP, kKeys, kSums> {
    Wkv6Inputs<T, NP> in;
  };

  static void prepare(const Params& p, int64_t head, Scratch& s) {
    load_tokens<NP>(p.u, {0, 0, head}, 1, p.head_size, s.in.u);
  }

  static void load(const Params& p, Place at, int n, Scratch& s) { s.in.load(p, at, n, s.derivative); }

  static void look_ahead(const Params& p, const Gradients& g, Place at, Ahead& ahead) {
    const View* const views[] = {&p.r, &p.k, &p.w, &p.v, &g.grad_y, &g.dr, &g.dk, &g.dw, &g.dv};
    for (const View* view : views) ahead.add(*view, at, p.head_size);
  }

  // history[t] = the tile's state before token t
  static void recompute(Scratch& s, int64_t row, int n) {
    Tile<T, NP> state;
    state.load(s.state + row * NP);
    for (int t = 0; t < n; ++t) {
      state.store(s.history + t * R * NP);
      const T* v = s.v + t * NP + row;
#pragma GCC unroll 16
      for (int c = 0; c < NV; ++c) {
        const Vec<T> kc = Vec<T>::load(s.in.k + t * NP + c * L);
        const Vec<T> dc = Vec<T>::load(s.in.d + t * NP + c * L);
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) state.x[i][c] = retain(dc, state.x[i][c], kc * Vec<T>::fill(v[i]));
      }
    }
  }

  // With G the gradient of the state after token t: dk_j += G_ij v_i, dd_j += G_ij S_ij, dr_j += S_ij dy_i,
  // dv_i += G_ij k_j; then G_ij = d_j G_ij + dy_i r_j is the gradient of the state before it.
  static void tile(Scratch& s, int64_t row, int n, Ahead::Share ahead) {
    recompute(s, row, n);
    Tile<T, NP> grad;
    grad.load(s.grad_state + row * NP);
    for (int t = n - 1; t >= 0; --t) {
      ahead.fetch(t);
      const T* v = s.v + t * NP + row;
      const T* dy = s.dy + t * NP + row;
      const T* history = s.history + t * R * NP;
      Vec<T> dv[R];
      clear(dv);
#pragma GCC unroll 16
      for (int c = 0; c < NV; ++c) {
        const int at = t * NP + c * L;
        const Vec<T> rc = Vec<T>::load(s.in.r + at);
        const Vec<T> kc = Vec<T>::load(s.in.k + at);
        const Vec<T> dc = Vec<T>::load(s.in.d + at);
        Vec<T> dr = Vec<T>::load(s.part[kR] + at);
        Vec<T> dk = Vec<T>::load(s.part[kK] + at);
        Vec<T> dd = Vec<T>::load(s.part[kD] + at);
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) {
          const Vec<T> before = Vec<T>::load(history + i * NP + c * L);
          const Vec<T> dyi = Vec<T>::fill(dy[i]);
          dk = fma(grad.x[i][c], Vec<T>::fill(v[i]), dk);
          dd = fma(grad.x[i][c], before, dd);
          dr = fma(before, dyi, dr);
          dv[i] = fma(grad.x[i][c], kc, dv[i]);
          grad.x[i][c] = retain(dc, grad.x[i][c], dyi * rc);
        }
        dr.store(s.part[kR] + at);
        dk.store(s.part[kK] + at);
        dd.store(s.part[kD] + at);
      }
      sum_rows(dv, s.dv + t * NP + row);
    }
    grad.store(s.grad_state + row * NP);
  }

  // The bonus term y_i += v_i sum_j r_j u_j k_j, through dyv = sum_i dy_i v_i, and the sums over tokens.
  static void finish_group(const Params& p, Scratch& s, int group, int n) {
    for (int t = 0; t < n; ++t) {
      T dyv = 0;
      for (int i = group * kGroupRows; i < (group + 1) * kGroupRows; ++i) dyv += s.dy[t * NP + i] * s.v[t * NP + i];
      const Vec<T> scale = Vec<T>::fill(dyv);
      for (int j = 0; j < NP; j += L) {
        const int at = t * NP + j;
        const Vec<T> r = Vec<T>::load(s.in.r + at) * scale;
        const Vec<T> k = Vec<T>::load(s.in.k + at);
        const Vec<T> u = Vec<T>::load(s.in.u + j);
        fma(k * scale, u, Vec<T>::load(s.part[kR] + at)).store(s.part[kR] + at);
        fma(r, u, Vec<T>::load(s.part[kK] + at)).store(s.part[kK] + at);
        fma(r, k, Vec<T>::load(s.sums[group][kU] + j)).store(s.sums[group][kU] + j);
      }
      if (!p.decay_per_token) {
        multiply_by(s.part[kD] + t * NP, s.derivative + t * NP, NP);
        add_to(s.sums[group][kW], s.part[kD] + t * NP, NP);
      }
    }
  }

  static void finish_rows(Scratch& s, int n) {
    for (int t = 0; t < n; ++t) add_scaled<NP>(s.dv + t * NP, s.dy + t * NP, s.in.bonus[t]);
  }

  static void finish_block(const Params& p, const Gradients& g, Scratch& s, Place at, int n) {
    store_tokens<NP>(g.dr, at, n, 0, p.head_size, s.total[kR]);
    store_tokens<NP>(g.dk, at, n, 0, p.head_size, s.total[kK]);
    if (!p.decay_per_token) return;
    multiply_by(s.total[kD], s.derivative, n * NP);
    store_tokens<NP>(g.dw, at, n, 0, p.head_size, s.total[kD]);
  }

  static void finish_sums(const Params& p, const Gradients& g, int64_t sequence, int64_t head, const T* sums) {
    const int64_t at = (sequence * p.num_heads + head) * p.head_size;
    copy_row(sums + kU * NP, static_cast<T*>(g.du_sum) + at, p.head_size);
    if (!p.decay_per_token) copy_row(sums + kW * NP, static_cast<T*>(g.dw_sum) + at, p.head_size);
  }

  static void run(const Params& p, const Gradients& g, const Workers& workers) {
    BackwardWalk<Wkv6Backward, T, NP>::run(p, g, workers);
  }
};

}  // namespace flash_rwkv::cpu::FLASH_RWKV_ISA
