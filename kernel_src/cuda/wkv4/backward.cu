// WKV4 backward: one thread a channel, from the last token to the first.
//
// Going back through a token takes the state before it. Forward left one before every block of 64 tokens; from there
// a *scout* walks forwards through a block and leaves a snapshot before every run of 8, and from a snapshot the states
// of a run are found again in registers. The scout walks through a block while the one after it is walked back, so
// that the two fill each other's waits.

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/wkv4/channel.cuh"
#include "cuda/wkv4/recurrence.cuh"

namespace flash_rwkv::cuda {
inline namespace wkv4_backward_unit {

constexpr int kRun = 8;  // tokens
constexpr int kRuns = static_cast<int>(kCheckpointTokens) / kRun;

// Gradient of the state (p, q, o) after the token at hand, and the sums over all tokens after it. y depends on the
// state only through p e^o and q e^o, for which grad_o = grad_p p + grad_q q; what the caller's gradient of the final
// state has beyond that is kept apart as `excess`: it follows the maximum back, to k where k was the larger and to w
// and the earlier o where not.
struct Wkv4Gradient {
  float p = 0.0f;
  float q = 0.0f;
  float excess = 0.0f;
  float dw = 0.0f;
  float du = 0.0f;

  // grad_o at state s, without the excess.
  FLASH_RWKV_ALWAYS_INLINE float along(const Wkv4State& s) const { return fmaf(p, s.p, q * s.q); }
};

// One token back: from the gradient of the state after it to that of the state s before it, and dk, dv of the token.
// next: the weights of w + o and k.
FLASH_RWKV_ALWAYS_INLINE void token_back(const Wkv4State& s, const Wkv4Weights& next, float k, float v, float w,
                                         float u, float dy, Wkv4Gradient& grad, float& dk, float& dv) {
  // Through the next state: p' = first p + second v, q' = first q + second.
  const bool past_leads = !(w + s.o - k < 0.0f);
  const float excess = past_leads ? grad.excess : 0.0f;
  grad.dw = fmaf(next.first, grad.along(s), grad.dw) + excess;
  dk = fmaf(next.second, fmaf(grad.p, v, grad.q), past_leads ? 0.0f : grad.excess);

  // Through y = (first p + second v) / (first q + second).
  const Wkv4Weights e(s.o - (u + k));
  const float numerator = fmaf(e.first, s.p, e.second * v);
  const float denominator = fmaf(e.first, s.q, e.second);
  const float inverse = wkv4_divide(1.0f, denominator);
  // y to its last bit: where the present counts for little, grad_p p + grad_q q is nothing but the rounding of y.
  const float rough = numerator * inverse;
  const float y = fmaf(fmaf(-rough, denominator, numerator), inverse, rough);
  const float past = dy * inverse * e.first;
  const float present = dy * inverse * e.second;
  grad.du = fmaf(present, v - y, grad.du);
  dk = fmaf(present, v - y, dk);
  dv = fmaf(grad.p, next.second, present);

  grad.p = fmaf(grad.p, next.first, past);
  grad.q = fmaf(grad.q, next.first, -(past * y));
  grad.excess = excess;
}

// What one thread reads: tokens of its channel, and states of which it finds again those in between.
template <class T>
struct Channel {
  const Wkv4Params& p;
  int64_t channel;
  int64_t first_checkpoint;
  Column<const T> k, v, dy;
  float w, u;
  float* snapshots;  // [kRuns, 3]
  int width;         // from one number of a snapshot to the next

  FLASH_RWKV_ALWAYS_INLINE Wkv4State checkpoint(int64_t block) const {
    return load_checkpoint(p, first_checkpoint + block, channel);
  }

  // Walking a block back empties the places of its runs from the last to the first, while the scout fills them with
  // the runs of the block before from the first to the last: so their order alternates.
  FLASH_RWKV_ALWAYS_INLINE float* place(int64_t block, int run) const {
    return snapshots + (block % 2 == 0 ? run : kRuns - 1 - run) * 3 * width;
  }
  FLASH_RWKV_ALWAYS_INLINE void leave(int64_t block, int run, const Wkv4State& s) const {
    float* at = place(block, run);
    at[0] = s.p, at[width] = s.q, at[2 * width] = s.o;
  }
  FLASH_RWKV_ALWAYS_INLINE Wkv4State find(int64_t block, int run) const {
    const float* at = place(block, run);
    return {at[0], at[width], at[2 * width]};
  }
};

template <class T>
struct Scout {
  Wkv4State state;
  Wkv4State upcoming;  // at the start of the block before
  T k[kRun], v[kRun];  // of the next run, in flight

  FLASH_RWKV_ALWAYS_INLINE void start(const Channel<T>& c, int64_t block) {
    state = upcoming;
    upcoming = c.checkpoint(block > 0 ? block - 1 : 0);
  }

  // A run of a block of `runs`; past its last, the first of the block before.
  FLASH_RWKV_ALWAYS_INLINE void fetch(const Channel<T>& c, int64_t block, int run, int runs) {
    const int64_t t = run < runs ? block * kCheckpointTokens + run * kRun : (block - 1) * kCheckpointTokens;
    c.k.load(t > 0 ? t : 0, k);
    c.v.load(t > 0 ? t : 0, v);
  }

  // Through the run that was fetched.
  FLASH_RWKV_ALWAYS_INLINE void walk(const Channel<T>& c, int64_t block, int run, int runs) {
    c.leave(block, run, state);
    float k_now[kRun], v_now[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) k_now[i] = to_float(k[i]), v_now[i] = to_float(v[i]);
    fetch(c, block, run + 1, runs);
    Wkv4State before[kRun];
    Wkv4Weights weights[kRun];
    wkv4_walk(state, k_now, v_now, c.w, before, weights);
  }
};

template <class T>
struct WayBack {
  Wkv4Gradient grad;
  Column<T> dk, dv;
  T k[kRun], v[kRun], dy[kRun];  // of the next run, in flight

  FLASH_RWKV_ALWAYS_INLINE void fetch(const Channel<T>& c, int64_t t) {
    c.k.load(t, k), c.v.load(t, v), c.dy.load_or_zero(t, dy);
  }

  // Through the run that was fetched, which starts at token t with state s.
  FLASH_RWKV_ALWAYS_INLINE void walk(const Channel<T>& c, Wkv4State s, int64_t t) {
    float k_now[kRun], v_now[kRun], dy_now[kRun], dk_now[kRun], dv_now[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) k_now[i] = to_float(k[i]), v_now[i] = to_float(v[i]), dy_now[i] = to_float(dy[i]);
    fetch(c, t >= kRun ? t - kRun : t);
    Wkv4State before[kRun];
    Wkv4Weights next[kRun];
    wkv4_walk(s, k_now, v_now, c.w, before, next);
#pragma unroll
    for (int i = kRun - 1; i >= 0; --i)
      token_back(before[i], next[i], k_now[i], v_now[i], c.w, c.u, dy_now[i], grad, dk_now[i], dv_now[i]);
    dk.store(t, dk_now);
    dv.store(t, dv_now);
  }

  // Through the tokens start … end - 1, less than a run; s: the state before them. Each is found again from there.
  FLASH_RWKV_ALWAYS_INLINE void walk_rest(const Channel<T>& c, const Wkv4State& s, int64_t start, int64_t end) {
    for (int64_t t = end; t >= start; --t) {
      Wkv4State state = s;
      Wkv4State before[1];
      Wkv4Weights next[1];
      float k_now[1], v_now[1];
      for (int64_t i = start; i <= t && i < end; ++i) {
        k_now[0] = to_float(c.k.load(i)), v_now[0] = to_float(c.v.load(i));
        wkv4_walk(state, k_now, v_now, c.w, before, next);
      }
      if (t == end) {
        grad.excess -= grad.along(state);
        continue;
      }
      float dk_now, dv_now;
      token_back(before[0], next[0], k_now[0], v_now[0], c.w, c.u, to_float(c.dy.load_or_zero(t)), grad, dk_now,
                 dv_now);
      dk.store(t, dk_now);
      dv.store(t, dv_now);
    }
  }
};

template <class T>
FLASH_RWKV_ALWAYS_INLINE void backward_channel(const Wkv4Params& p, const Wkv4Gradients& g, int64_t sequence,
                                               int64_t channel, float* snapshots, int width) {
  const int64_t length = p.sequences.tokens;
  const Channel<T> c = {p,
                        channel,
                        p.sequences.first_checkpoint(sequence),
                        {p.k, sequence, channel},
                        {p.v, sequence, channel},
                        {g.grad_y, sequence, channel},
                        float_of_bits(load_channel(p.w, channel), p.w.dtype),
                        float_of_bits(load_channel(p.u, channel), p.u.dtype),
                        snapshots,
                        width};
  WayBack<T> back = {{}, {g.dk, sequence, channel}, {g.dv, sequence, channel}};
  if (g.grad_final_state.data != nullptr) {
    float x[3];
    load_three(g.grad_final_state, sequence, channel, x);
    back.grad.p = x[0], back.grad.q = x[1], back.grad.excess = x[2];
  }

  if (length > 0) {
    const int64_t last = (length - 1) / kCheckpointTokens;
    const int last_runs = static_cast<int>((length - last * kCheckpointTokens) / kRun);
    const int64_t rest = last * kCheckpointTokens + last_runs * kRun;  // where the tokens start that fill no run
    Scout<T> scout;
    scout.upcoming = c.checkpoint(last);
    if (rest > 0) {
      back.fetch(c, rest - kRun);
      scout.fetch(c, last, last_runs > 0 ? 0 : kRuns, kRuns);
    }

    // --- The scout through the last block, then on until it is eight runs ahead
    scout.start(c, last);
    for (int run = 0; run < last_runs; ++run) scout.walk(c, last, run, last_runs);
    back.walk_rest(c, scout.state, rest, length);
    if (last > 0) {
      scout.start(c, last - 1);
      for (int run = 0; run < kRuns - last_runs; ++run) scout.walk(c, last - 1, run, kRuns);
    }

    // --- Back through each block, the scout through the one before it. Before the first block there is none: what the
    // scout then does is for nothing, and cheaper than to ask at every run.
    for (int64_t block = last; block >= 0; --block) {
      if (block < last) scout.start(c, block - 1);
#pragma unroll 1
      for (int run = (block < last ? kRuns : last_runs) - 1; run >= 0; --run) {
        back.walk(c, c.find(block, run), block * kCheckpointTokens + run * kRun);
        scout.walk(c, block - 1, kRuns - 1 - run, kRuns);
      }
    }
    back.grad.excess += back.grad.along(c.checkpoint(0));
  }

  const float x[3] = {back.grad.p, back.grad.q, back.grad.excess};
  store_three(g.dstate, sequence, channel, x);
  const int64_t sum = sequence * p.num_channels + channel;
  static_cast<float*>(g.dw_sum)[sum] = back.grad.dw;
  static_cast<float*>(g.du_sum)[sum] = back.grad.du;
}

template <class T>
__global__ void __launch_bounds__(kMaxChannelThreads)
    backward_kernel(const __grid_constant__ Wkv4Params p, const __grid_constant__ Wkv4Gradients g,
                    const __grid_constant__ ChannelGrid grid) {
  extern __shared__ float snapshots[];  // [kRuns, 3, threads]
  const int64_t channel = grid.channel();
  if (channel < p.num_channels)
    backward_channel<T>(p, g, grid.sequence(), channel, snapshots + threadIdx.x, static_cast<int>(blockDim.x));
}

}  // namespace wkv4_backward_unit

cudaError_t wkv4_backward(const Wkv4Params& p, const Wkv4Gradients& g, cudaStream_t stream) {
  const ChannelGrid grid(p.sequences.count, p.num_channels);
  if (grid.blocks == 0) return cudaSuccess;
  if (!grid.fits()) return cudaErrorInvalidConfiguration;
  return dispatch_dtype(p.k.dtype, [&](auto element) {
    using T = decltype(element);
    const int shared_bytes = kRuns * 3 * grid.threads * static_cast<int>(sizeof(float));
    return launch(backward_kernel<T>, grid.blocks, grid.threads, shared_bytes, stream, p, g, grid);
  });
}

}  // namespace flash_rwkv::cuda
