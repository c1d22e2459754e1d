// RWKV-4, forward, as one would write it down: tokens, then channels.
#include <algorithm>

#include "heads.h"

// k, v, y [B, T, C]; w, u [C]; state [B, 3, C]: p, q and the exponent o they are multiples of. Threads take groups of
// N channels: s.heads counts those.
extern "C" void wkv4_forward(Shape s, const float* k, const float* v, const float* w, const float* u, float* y,
                             float* state, int threads) {
  const int64_t channels = s.heads * N;
  for_each_head(s, threads, [=](int64_t b, int64_t group) {
    float p[N], q[N], o[N];
    std::fill(p, p + N, 0.0f);
    std::fill(q, q + N, 0.0f);
    std::fill(o, o + N, -1e38f);
    for (int64_t t = 0; t < s.tokens; ++t) {
      const int64_t at = (b * s.tokens + t) * channels + group * N;
      for (int c = 0; c < N; ++c) {
        const float key = k[at + c], value = v[at + c], wc = w[group * N + c], uc = u[group * N + c];
        float m = std::max(o[c], uc + key);
        float past = std::exp(o[c] - m), present = std::exp(uc + key - m);
        y[at + c] = (past * p[c] + present * value) / (past * q[c] + present);
        m = std::max(wc + o[c], key);
        past = std::exp(wc + o[c] - m);
        present = std::exp(key - m);
        p[c] = past * p[c] + present * value;
        q[c] = past * q[c] + present;
        o[c] = m;
      }
    }
    float* out = state + b * 3 * channels + group * N;
    std::copy(p, p + N, out);
    std::copy(q, q + N, out + channels);
    std::copy(o, o + N, out + 2 * channels);
  });
}
