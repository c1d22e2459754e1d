// WKV4 forward, for whole sequences and for decode steps: one thread a channel, token by token.
//
// The chain from one token to the next is short (a sum, a maximum, a fused multiply-add), and the exponentials beside
// it can overlap over tokens. So a thread runs at the speed of its arithmetic if it never waits for memory: the
// tokens of the next group are on their way to registers while this group is computed.

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/wkv4/channel.cuh"
#include "cuda/wkv4/recurrence.cuh"

namespace flash_rwkv::cuda {
inline namespace wkv4_forward_unit {

constexpr int kGroup = 16;  // tokens that are computed together
constexpr int kAhead = 2;   // groups in registers: the one at hand, and those whose loads are in flight
constexpr int kTurn = kAhead * kGroup;
constexpr int kRest = 8;  // tokens together where they fill no turn
static_assert(kCheckpointTokens % kTurn == 0, "checkpoints are taken between turns");

template <int kCount>
FLASH_RWKV_ALWAYS_INLINE void tokens_forward(Wkv4State& state, const float (&k)[kCount], const float (&v)[kCount],
                                             float w, float u, float (&y)[kCount]) {
  Wkv4State before[kCount];
  Wkv4Weights next[kCount];
  wkv4_walk(state, k, v, w, before, next);
#pragma unroll
  for (int i = 0; i < kCount; ++i) y[i] = wkv4_output(before[i], k[i], v[i], u);
}

// kTurns: whether there may be enough tokens for a turn. A decode step does without, and with far fewer registers.
template <class T, bool kTurns>
FLASH_RWKV_ALWAYS_INLINE void forward_channel(const Wkv4Params& p, int64_t sequence, int64_t channel) {
  const int64_t length = p.sequences.tokens;
  const Column<const T> keys(p.k, sequence, channel), values(p.v, sequence, channel);
  const Column<T> y(p.y, sequence, channel);
  T k[kAhead][kGroup], v[kAhead][kGroup];
  T k_rest[kRest], v_rest[kRest];
  const auto fetch_rest = [&](int64_t t) {
#pragma unroll
    for (int i = 0; i < kRest; ++i)
      if (t + i < length) k_rest[i] = keys.load(t + i), v_rest[i] = values.load(t + i);
  };

  // --- Tokens first, then what there is one of: all loads are in flight at once
  if (!kTurns) fetch_rest(0);
  if (kTurns && length >= kTurn) {
#pragma unroll
    for (int a = 0; a < kAhead; ++a) keys.load(a * kGroup, k[a]), values.load(a * kGroup, v[a]);
  }
  const uint32_t w_bits = load_channel(p.w, channel), u_bits = load_channel(p.u, channel);
  const int64_t slot = p.slots != nullptr ? p.slots[sequence] : sequence;
  if (p.slots != nullptr && (slot < 0 || slot >= p.num_states)) {
#pragma unroll 1
    for (int64_t t = 0; t < length; ++t) y.store(t, NAN);
    return;
  }
  Wkv4State state;
  if (p.state.data != nullptr) {
    float x[3];
    load_three(p.state, slot, channel, x);
    state = {x[0], x[1], x[2]};
  }
  const float w = float_of_bits(w_bits, p.w.dtype), u = float_of_bits(u_bits, p.u.dtype);

  const int64_t first_checkpoint = p.sequences.first_checkpoint(sequence);
  const auto checkpoint = [&](int64_t t) {
    if (p.checkpoints != nullptr && t % kCheckpointTokens == 0)
      save_checkpoint(p, first_checkpoint + t / kCheckpointTokens, channel, state);
  };
  int64_t t = 0;
  if (kTurns) {
    for (; t + kTurn <= length; t += kTurn) {
      checkpoint(t);
      // After the last full turn there is nothing to fetch; to fetch these tokens again is simpler than not to.
      const int64_t next = t + 2 * kTurn <= length ? t + kTurn : t;
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        float k_now[kGroup], v_now[kGroup], y_now[kGroup];
#pragma unroll
        for (int i = 0; i < kGroup; ++i) k_now[i] = to_float(k[a][i]), v_now[i] = to_float(v[a][i]);
        keys.load(next + a * kGroup, k[a]);
        values.load(next + a * kGroup, v[a]);
        tokens_forward(state, k_now, v_now, w, u, y_now);
        y.store(t + a * kGroup, y_now);
      }
    }
    fetch_rest(t);
  }

  // --- Tokens that fill no turn
  if (t < length) checkpoint(t);
#pragma unroll 1
  for (; t < length; t += kRest) {
#pragma unroll
    for (int i = 0; i < kRest; ++i) {
      if (t + i >= length) break;
      const float k_now[1] = {to_float(k_rest[i])}, v_now[1] = {to_float(v_rest[i])};
      float y_now[1];
      tokens_forward(state, k_now, v_now, w, u, y_now);
      y.store(t + i, y_now);
    }
    fetch_rest(t + kRest);
  }

  const float x[3] = {state.p, state.q, state.o};
  store_three(p.final_state, slot, channel, x);
}

template <class T, bool kTurns>
__global__ void __launch_bounds__(kMaxChannelThreads)
    forward_kernel(const __grid_constant__ Wkv4Params p, const __grid_constant__ ChannelGrid grid) {
  const int64_t channel = grid.channel();
  if (channel < p.num_channels) forward_channel<T, kTurns>(p, grid.sequence(), channel);
}

}  // namespace wkv4_forward_unit

cudaError_t wkv4_forward(const Wkv4Params& p, cudaStream_t stream) {
  const ChannelGrid grid(p.sequences.count, p.num_channels);
  if (grid.blocks == 0) return cudaSuccess;
  if (!grid.fits()) return cudaErrorInvalidConfiguration;
  return dispatch_dtype(p.k.dtype, [&](auto element) {
    using T = decltype(element);
    const auto kernel = p.sequences.tokens < kTurn ? forward_kernel<T, false> : forward_kernel<T, true>;
    return launch(kernel, grid.blocks, grid.threads, 0, stream, p, grid);
  });
}

// A step is a short forward pass over the caller's own states.
cudaError_t wkv4_step(const Wkv4Params& p, cudaStream_t stream) { return wkv4_forward(p, stream); }

}  // namespace flash_rwkv::cuda
