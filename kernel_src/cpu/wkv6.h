// WKV6 and WKV5. With S the state before token t, i a value row and j a key column:
//   y_i  = sum_j r_j (S_ij + u_j k_j v_i) = sum_j r_j S_ij + v_i (sum_j r_j u_j k_j)
//   S_ij = d_j S_ij + v_i k_j
// Value rows are independent, so a tile of them stays in registers for a whole block of tokens.
#pragma once

#include "backward.h"
#include "forward.h"

namespace flash_rwkv::cpu::FLASH_RWKV_ISA {

// Inputs of one block, shared by both directions.
template <class T, int NP, int kTokens>
struct Wkv6Inputs {
  alignas(64) T r[kTokens * NP];
  T k[kTokens * NP];
  T d[kTokens * NP];  // as a retention, see decay.h
  T u[NP];
  T bonus[kTokens];  // sum_j r_j u_j k_j
  int d_step;        // from a token's d to the next's: 0 in wkv5, whose decay is loaded once a head

  void prepare(const Wkv6Params& p, int64_t head, T* derivative) {
    load_tokens<NP>(p.u, {0, 0, head}, 1, p.head_size, u);
    d_step = p.decay_per_token ? NP : 0;
    if (p.decay_per_token) return;
    load_tokens<NP>(p.w, {0, 0, head}, 1, p.head_size, d);
    decay_rows<T>(d, derivative, NP, p.decay);
  }

  void load(const Wkv6Params& p, Place at, int n, T* derivative) {
    load_tokens<NP>(p.r, at, n, p.head_size, r);
    load_tokens<NP>(p.k, at, n, p.head_size, k);
    if (p.decay_per_token) {
      load_tokens<NP>(p.w, at, n, p.head_size, d);
      decay_rows<T>(d, derivative, n * NP, p.decay);
    }
    // Four tokens at a time: a sum over the lanes of one vector is mostly waiting.
    for (int t = 0; t < n; t += 4) {
      Vec<T> sum[4];
      clear(sum);
      for (int i = 0; i < 4 && t + i < n; ++i) {
        const int row = (t + i) * NP;
#pragma GCC unroll 16
        for (int j = 0; j < NP; j += Vec<T>::kLanes)
          sum[i] = fma(Vec<T>::load(r + row + j) * Vec<T>::load(u + j), Vec<T>::load(k + row + j), sum[i]);
      }
      sum_rows(sum, bonus + t);
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
    Wkv6Inputs<T, NP, kForwardBlock> in;
    T v[kForwardBlock * NP];
    T y[kForwardBlock * NP];
    T state[NP * NP];
    T* rows;  // of the state: `state`, or the caller's memory
  };

  static void prepare(const Params& p, int64_t head, Scratch& s) { s.in.prepare(p, head, nullptr); }

  static void load(const Params& p, Place at, int n, Scratch& s) {
    s.in.load(p, at, n, nullptr);
    load_tokens<NP>(p.v, at, n, p.head_size, s.v);
  }

  static void look_ahead(const Params& p, Place at, Ahead& ahead) {
    const View* const views[] = {&p.r, &p.k, &p.v, &p.w, &p.y};
    for (const View* view : views) ahead.add(*view, at, p.head_size);
  }

  static void tile(Scratch& s, int64_t row, int n, Ahead::Share<kForwardAhead> ahead) {
    Tile<T, NP> state;
    state.load(s.rows + row * NP);
    for (int t = 0; t < n; ++t) {
      ahead.fetch(t);
      const T* r = s.in.r + t * NP;
      const T* k = s.in.k + t * NP;
      const T* d = s.in.d + t * s.in.d_step;
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
  // Key-side gradients in use: wkv5 has its decay's in the sums only.
  static int keys(const Params& p) { return p.decay_per_token ? 3 : 2; }
  static constexpr int kKeys = 3;
  static constexpr int kSums = 2;
  enum Key { kR, kK, kD };
  enum Sum { kU, kW };

  struct Scratch : BackwardScratch<T, NP, kKeys, kSums> {
    Wkv6Inputs<T, NP, kBlock> in;
  };

  static void prepare(const Params& p, int64_t head, Scratch& s) { s.in.prepare(p, head, s.derivative); }

  static void load(const Params& p, Place at, int n, Scratch& s) { s.in.load(p, at, n, s.derivative); }

  static void inputs_ahead(const Params& p, const Gradients& g, Place at, Ahead& ahead) {
    const View* const views[] = {&p.r, &p.k, &p.w, &p.v, &g.grad_y};
    for (const View* view : views) ahead.add(*view, at, p.head_size);
  }

  static void outputs_ahead(const Gradients& g, Place at, int64_t size, Ahead& ahead) {
    const View* const views[] = {&g.dr, &g.dk, &g.dw, &g.dv};
    for (const View* view : views) ahead.add(*view, at, size);
  }

  // The tile's state through n tokens from `begin` on. kKeep: history[t] = the state before each.
  template <bool kKeep>
  static FLASH_RWKV_INLINE void walk(Scratch& s, Tile<T, NP>& state, int64_t row, int begin, int n) {
    for (int t = 0; t < n; ++t) {
      if constexpr (kKeep) state.store(s.history + t * R * NP);
      const T* k = s.in.k + (begin + t) * NP;
      const T* d = s.in.d + (begin + t) * s.in.d_step;
      const T* v = s.v + (begin + t) * NP + row;
#pragma GCC unroll 16
      for (int c = 0; c < NV; ++c) {
        const Vec<T> kc = Vec<T>::load(k + c * L);
        const Vec<T> dc = Vec<T>::load(d + c * L);
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) state.x[i][c] = retain(dc, state.x[i][c], kc * Vec<T>::fill(v[i]));
      }
    }
  }

  // With G the gradient of the state after token t: dk_j += G_ij v_i, dd_j += G_ij S_ij, dr_j += S_ij dy_i,
  // dv_i += G_ij k_j; then G_ij = d_j G_ij + dy_i r_j is the gradient of the state before it.
  static void tile(Scratch& s, int64_t row, int window, int n, Ahead::Share<kBackwardAhead> ahead) {
    Tile<T, NP> state;
    state.load(s.states[window] + row * NP);
    walk<true>(s, state, row, window * kWindow, n);
    Tile<T, NP> grad;
    grad.load(s.grad_state + row * NP);
    for (int t = n - 1; t >= 0; --t) {
      ahead.fetch(t);
      const int in = (window * kWindow + t) * NP;
      const int decay = (window * kWindow + t) * s.in.d_step;
      T* part_d = s.part[kD] + t * s.in.d_step;
      const T* v = s.v + in + row;
      const T* dy = s.dy + in + row;
      const T* history = s.history + t * R * NP;
      Vec<T> dv[R];
      clear(dv);
#pragma GCC unroll 16
      for (int c = 0; c < NV; ++c) {
        const int at = t * NP + c * L;
        const Vec<T> rc = Vec<T>::load(s.in.r + in + c * L);
        const Vec<T> kc = Vec<T>::load(s.in.k + in + c * L);
        const Vec<T> dc = Vec<T>::load(s.in.d + decay + c * L);
        Vec<T> dr = Vec<T>::load(s.part[kR] + at);
        Vec<T> dk = Vec<T>::load(s.part[kK] + at);
        Vec<T> dd = Vec<T>::load(part_d + c * L);
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
        dd.store(part_d + c * L);
      }
      sum_rows(dv, s.dv + t * NP + row);
    }
    grad.store(s.grad_state + row * NP);
  }

  // The bonus term y_i += v_i sum_j r_j u_j k_j, through dyv = sum_i dy_i v_i, and the sums over tokens.
  static void finish_group(const Params& p, Scratch& s, int group, int begin, int n) {
    for (int t = 0; t < n; ++t) {
      const int in = (begin + t) * NP;
      Vec<T> products = Vec<T>::fill(T(0));
      for (int i = group * kGroupRows; i < (group + 1) * kGroupRows; i += L)
        products = fma(Vec<T>::load(s.dy + in + i), Vec<T>::load(s.v + in + i), products);
      const Vec<T> scale = Vec<T>::fill(sum_lanes(products));
      for (int j = 0; j < NP; j += L) {
        const int at = t * NP + j;
        const Vec<T> r = Vec<T>::load(s.in.r + in + j) * scale;
        const Vec<T> k = Vec<T>::load(s.in.k + in + j);
        const Vec<T> u = Vec<T>::load(s.in.u + j);
        fma(k * scale, u, Vec<T>::load(s.part[kR] + at)).store(s.part[kR] + at);
        fma(r, u, Vec<T>::load(s.part[kK] + at)).store(s.part[kK] + at);
        fma(r, k, Vec<T>::load(s.sums[group][kU] + j)).store(s.sums[group][kU] + j);
      }
    }
    if (p.decay_per_token) return;
    multiply_by(s.part[kD], s.derivative, NP);
    add_to(s.sums[group][kW], s.part[kD], NP);
  }

  static void finish_rows(Scratch& s, int begin, int n) {
    for (int t = 0; t < n; ++t) add_scaled<NP>(s.dv + t * NP, s.dy + (begin + t) * NP, s.in.bonus[begin + t]);
  }

  static void finish_window(const Params& p, const Gradients& g, Scratch& s, Place at, int begin, int n) {
    store_tokens<NP>(g.dr, at, n, 0, p.head_size, s.total[kR]);
    store_tokens<NP>(g.dk, at, n, 0, p.head_size, s.total[kK]);
    if (!p.decay_per_token) return;
    multiply_by(s.total[kD], s.derivative + begin * NP, n * NP);
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
