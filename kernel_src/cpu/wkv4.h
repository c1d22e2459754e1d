// WKV4, one channel at a time, vectors of channels. With (p, q, o) the state before token t:
//   m = max(o, u + k);  y = (e^{o-m} p + e^{u+k-m} v) / (e^{o-m} q + e^{u+k-m})
//   m' = max(w + o, k); p = e^{w+o-m'} p + e^{k-m'} v; q = e^{w+o-m'} q + e^{k-m'}; o = m'
// One of the two exponents is always 0, so each line needs one exponential.
#pragma once

#include "blocks.h"

namespace flash_rwkv::cpu::FLASH_RWKV_ISA {

// e^{x - max(x, y)} and e^{y - max(x, y)}
template <class T>
struct Weights {
  Vec<T> first, second, top;

  FLASH_RWKV_INLINE Weights(Vec<T> x, Vec<T> y) {
    const Vec<T> one = Vec<T>::fill(T(1));
    const Vec<T> zero = Vec<T>::fill(T(0));
    const Vec<T> gap = x - y;
    const Vec<T> small = exp(select_less(gap, zero, gap, zero - gap));
    first = select_less(gap, zero, small, one);
    second = select_less(gap, zero, one, small);
    top = select_less(gap, zero, y, x);
  }
};

template <class T>
struct Wkv4Channel {  // a vector of channels
  Vec<T> p, q, o;

  FLASH_RWKV_INLINE void load(const T* state, int stride) {
    p = Vec<T>::load(state);
    q = Vec<T>::load(state + stride);
    o = Vec<T>::load(state + 2 * stride);
  }
  FLASH_RWKV_INLINE void store(T* state, int stride) const {
    p.store(state);
    q.store(state + stride);
    o.store(state + 2 * stride);
  }
  FLASH_RWKV_INLINE Vec<T> output(Vec<T> k, Vec<T> v, Vec<T> u) const {
    const Weights<T> e(o, u + k);
    return fma(e.first, p, e.second * v) / fma(e.first, q, e.second);
  }
  FLASH_RWKV_INLINE void step(Vec<T> k, Vec<T> v, Vec<T> w) {
    const Weights<T> e(w + o, k);
    p = fma(e.first, p, e.second * v);
    q = fma(e.first, q, e.second);
    o = e.top;
  }
};

// Channels that one worker walks together: four vectors hide the latency of the exponentials.
template <class T>
constexpr int kChannels = 4 * Vec<T>::kLanes;

struct Wkv4Item {
  int64_t sequence, channel, width;
};

template <class T>
struct Wkv4Work {
  int64_t channels, chunks, items;

  explicit Wkv4Work(const Wkv4Params& p)
      : channels(p.num_channels),
        chunks((p.num_channels + kChannels<T> - 1) / kChannels<T>),
        items(p.sequences.count * chunks) {}

  Wkv4Item item(int64_t index) const {
    const int64_t channel = index % chunks * kChannels<T>;
    const int64_t rest = channels - channel;
    return {index / chunks, channel, rest < kChannels<T> ? rest : kChannels<T>};
  }
};

// The same view, from a channel on.
FLASH_RWKV_INLINE View from_channel(View view, int64_t channel) {
  if (view.data == nullptr) return view;
  view.data = static_cast<char*>(view.data) + channel * view.stride[3] * element_bytes(view.dtype);
  return view;
}

template <class T>
void load_wkv4_state(const Wkv4Params& p, Wkv4Item at, int64_t slot, T* state) {
  constexpr int W = kChannels<T>;
  const View view = from_channel(p.state, at.channel);
  for (int row = 0; row < 3; ++row) {
    fill_row(state + row * W, W, row == 2 ? T(-1e38) : T(0));
    if (view.data)
      load_row(view, slot * view.stride[0] + row * view.stride[2], view.stride[3], at.width, state + row * W);
  }
}

template <class T>
struct Wkv4Forward {
  static constexpr int W = kChannels<T>;
  static constexpr int L = Vec<T>::kLanes;

  struct Scratch {
    alignas(64) T k[kBlock * W];
    T v[kBlock * W];
    T y[kBlock * W];
    T w[W];
    T u[W];
    T state[3 * W];
  };

  static void block(Scratch& s, int n) {
    Wkv4Channel<T> channel[4];
    Vec<T> w[4], u[4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      channel[c].load(s.state + c * L, W);
      w[c] = Vec<T>::load(s.w + c * L);
      u[c] = Vec<T>::load(s.u + c * L);
    }
    for (int t = 0; t < n; ++t) {
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        const Vec<T> k = Vec<T>::load(s.k + t * W + c * L);
        const Vec<T> v = Vec<T>::load(s.v + t * W + c * L);
        channel[c].output(k, v, u[c]).store(s.y + t * W + c * L);
        channel[c].step(k, v, w[c]);
      }
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) channel[c].store(s.state + c * L, W);
  }

  static void item(const Wkv4Params& p, Wkv4Item at, Scratch& s) {
    const int64_t length = p.sequences.length(at.sequence);
    const int64_t slot = p.slots ? p.slots[at.sequence] : at.sequence;
    const View k = from_channel(p.k, at.channel), v = from_channel(p.v, at.channel);
    const View y = from_channel(p.y, at.channel), final_state = from_channel(p.final_state, at.channel);
    load_tokens<W>(from_channel(p.w, at.channel), {0, 0, 0}, 1, at.width, s.w);
    load_tokens<W>(from_channel(p.u, at.channel), {0, 0, 0}, 1, at.width, s.u);
    load_wkv4_state(p, at, slot, s.state);
    int64_t checkpoint = p.sequences.first_checkpoint(at.sequence);
    for (int64_t t = 0; t < length; t += kBlock, ++checkpoint) {
      const int n = static_cast<int>(length - t < kBlock ? length - t : kBlock);
      if (p.checkpoints)
        for (int row = 0; row < 3; ++row)
          copy_row(s.state + row * W,
                   static_cast<T*>(p.checkpoints) + (checkpoint * 3 + row) * p.num_channels + at.channel, at.width);
      const Place place = {at.sequence, t, 0};
      load_tokens<W>(k, place, n, at.width, s.k);
      load_tokens<W>(v, place, n, at.width, s.v);
      block(s, n);
      store_tokens<W>(y, place, n, 0, at.width, s.y);
    }
    for (int row = 0; row < 3; ++row)
      store_row(final_state, slot * final_state.stride[0] + row * final_state.stride[2], final_state.stride[3],
                at.width, s.state + row * W);
  }

  static void run(const Wkv4Params& p, const Workers& workers) {
    const Wkv4Work<T> work(p);
    for_each_item<Scratch>(workers, work.items, [&](int64_t index, Scratch& s) { item(p, work.item(index), s); });
  }
};

// Gradient of the state (p, q, o) after the token at hand. y depends on the state only through p e^o and q e^o, for
// which grad_o = grad_p p + grad_q q; what the caller's gradient of the final state has beyond that is kept apart as
// `excess`: it follows the maximum back, to k where k was the larger and to w and the earlier o where not.
template <class T>
struct Wkv4Gradient {
  Vec<T> p, q, excess;
};

template <class T>
struct Wkv4Backward {
  static constexpr int W = kChannels<T>;
  static constexpr int L = Vec<T>::kLanes;

  struct Scratch {
    alignas(64) T k[kBlock * W];
    T v[kBlock * W];
    T dy[kBlock * W];
    T dk[kBlock * W];
    T dv[kBlock * W];
    T w[W];
    T u[W];
    T dw[W];
    T du[W];
    T final_state[3 * W];
    T grad_state[3 * W];  // grad_p, grad_q, excess
    T history[(kBlock + 1) * 3 * W];
  };

  static void recompute(Scratch& s, int n) {
    for (int c = 0; c < W; c += L) {
      Wkv4Channel<T> channel;
      channel.load(s.history + c, W);
      const Vec<T> w = Vec<T>::load(s.w + c);
      for (int t = 0; t < n; ++t) {
        channel.step(Vec<T>::load(s.k + t * W + c), Vec<T>::load(s.v + t * W + c), w);
        channel.store(s.history + (t + 1) * 3 * W + c, W);
      }
    }
  }

  // One token of a vector of channels.
  static FLASH_RWKV_INLINE void token(Scratch& s, int t, int c, Wkv4Gradient<T>& grad, Vec<T>& dw, Vec<T>& du) {
    const Vec<T> zero = Vec<T>::fill(T(0));
    const Vec<T> k = Vec<T>::load(s.k + t * W + c), v = Vec<T>::load(s.v + t * W + c);
    const Vec<T> dy = Vec<T>::load(s.dy + t * W + c);
    const Vec<T> w = Vec<T>::load(s.w + c), u = Vec<T>::load(s.u + c);
    Wkv4Channel<T> before;
    before.load(s.history + t * 3 * W + c, W);

    const Weights<T> next(w + before.o, k);
    const Vec<T> through_old = next.first * fma(grad.p, before.p, grad.q * before.q);
    const Vec<T> through_new = next.second * fma(grad.p, v, grad.q);
    const Vec<T> gap = w + before.o - k;
    const Vec<T> excess = select_less(gap, zero, zero, grad.excess);
    dw = dw + through_old + excess;
    Vec<T> dk = through_new + select_less(gap, zero, grad.excess, zero);
    Vec<T> dv = grad.p * next.second;

    const Weights<T> e(before.o, u + k);
    const Vec<T> numerator = fma(e.first, before.p, e.second * v);
    const Vec<T> denominator = fma(e.first, before.q, e.second);
    const Vec<T> y = numerator / denominator;
    const Vec<T> scaled = dy / denominator;
    const Vec<T> through_bonus = scaled * e.second * (v - y);
    du = du + through_bonus;
    dk = dk + through_bonus;
    dv = fma(scaled, e.second, dv);
    dk.store(s.dk + t * W + c);
    dv.store(s.dv + t * W + c);
    grad.p = fma(scaled, e.first, grad.p * next.first);
    grad.q = grad.q * next.first - scaled * y * e.first;
    grad.excess = excess;
  }

  static void block(Scratch& s, int n) {
    recompute(s, n);
    for (int c = 0; c < W; c += L) {
      Wkv4Gradient<T> grad = {Vec<T>::load(s.grad_state + c), Vec<T>::load(s.grad_state + W + c),
                              Vec<T>::load(s.grad_state + 2 * W + c)};
      Vec<T> dw = Vec<T>::load(s.dw + c), du = Vec<T>::load(s.du + c);
      for (int t = n - 1; t >= 0; --t) token(s, t, c, grad, dw, du);
      grad.p.store(s.grad_state + c);
      grad.q.store(s.grad_state + W + c);
      grad.excess.store(s.grad_state + 2 * W + c);
      dw.store(s.dw + c);
      du.store(s.du + c);
    }
  }

  static void load_checkpoint(const Wkv4Params& p, Wkv4Item at, int64_t checkpoint, T* state) {
    const T* saved = static_cast<const T*>(p.checkpoints);
    for (int row = 0; row < 3; ++row) {
      fill_row(state + row * W, W, T(0));
      copy_row(saved + (checkpoint * 3 + row) * p.num_channels + at.channel, state + row * W, at.width);
    }
  }

  // sign -1: from grad_o to the excess over state (p, q, o); +1: back.
  static void shift_excess(T* grad, const T* state, T sign) {
    for (int c = 0; c < W; c += L) {
      const Vec<T> invariant = fma(Vec<T>::load(grad + c), Vec<T>::load(state + c),
                                   Vec<T>::load(grad + W + c) * Vec<T>::load(state + W + c));
      fma(Vec<T>::fill(sign), invariant, Vec<T>::load(grad + 2 * W + c)).store(grad + 2 * W + c);
    }
  }

  static void item(const Wkv4Params& p, const Wkv4Gradients& g, Wkv4Item at, Scratch& s) {
    const int64_t length = p.sequences.length(at.sequence);
    const View k = from_channel(p.k, at.channel), v = from_channel(p.v, at.channel);
    const View dy = from_channel(g.grad_y, at.channel), grad = from_channel(g.grad_final_state, at.channel);
    const View dk = from_channel(g.dk, at.channel), dv = from_channel(g.dv, at.channel);
    load_tokens<W>(from_channel(p.w, at.channel), {0, 0, 0}, 1, at.width, s.w);
    load_tokens<W>(from_channel(p.u, at.channel), {0, 0, 0}, 1, at.width, s.u);
    fill_row(s.dw, W, T(0));
    fill_row(s.du, W, T(0));
    fill_row(s.grad_state, 3 * W, T(0));
    if (grad.data)
      for (int row = 0; row < 3; ++row)
        load_row(grad, at.sequence * grad.stride[0] + row * grad.stride[2], grad.stride[3], at.width,
                 s.grad_state + row * W);
    const int64_t first = p.sequences.first_checkpoint(at.sequence);
    const int64_t blocks = (length + kBlock - 1) / kBlock;
    for (int64_t index = blocks - 1; index >= 0; --index) {
      const int64_t t = index * kBlock;
      const int n = static_cast<int>(length - t < kBlock ? length - t : kBlock);
      const Place place = {at.sequence, t, 0};
      load_checkpoint(p, at, first + index, s.history);
      load_tokens<W>(k, place, n, at.width, s.k);
      load_tokens<W>(v, place, n, at.width, s.v);
      load_tokens<W>(dy, place, n, at.width, s.dy);
      if (index == blocks - 1) {
        recompute(s, n);
        shift_excess(s.grad_state, s.history + n * 3 * W, T(-1));
      }
      block(s, n);
      store_tokens<W>(dk, place, n, 0, at.width, s.dk);
      store_tokens<W>(dv, place, n, 0, at.width, s.dv);
    }
    if (blocks > 0) shift_excess(s.grad_state, s.history, T(1));
    for (int row = 0; row < 3; ++row)
      copy_row(s.grad_state + row * W,
               static_cast<T*>(g.dstate.data) + (at.sequence * 3 + row) * p.num_channels + at.channel, at.width);
    const int64_t sums = at.sequence * p.num_channels + at.channel;
    copy_row(s.dw, static_cast<T*>(g.dw_sum) + sums, at.width);
    copy_row(s.du, static_cast<T*>(g.du_sum) + sums, at.width);
  }

  static void run(const Wkv4Params& p, const Wkv4Gradients& g, const Workers& workers) {
    const Wkv4Work<T> work(p);
    for_each_item<Scratch>(workers, work.items, [&](int64_t index, Scratch& s) { item(p, g, work.item(index), s); });
  }
};

}  // namespace flash_rwkv::cpu::FLASH_RWKV_ISA
