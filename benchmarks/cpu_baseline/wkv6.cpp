// RWKV-6 (and, with one decay a head, RWKV-5), forward, as one would write it down: tokens, then a value row, then
// its keys. The inner loop is over contiguous keys; the pragma allows the compiler to vectorise the sum.
#include "heads.h"

// r, k, v, y [B, T, H, N]; w [B, T, H, N], or [H, N] with per_head; u [H, N]; state [B, H, N_value, N_key].
// `given`: w holds the decay itself; else it is computed here, token by token.
extern "C" void wkv6_forward(Shape s, const float* r, const float* k, const float* v, const float* w, const float* u,
                             float* y, float* state, bool per_head, bool given, int threads) {
  for_each_head(s, threads, [=](int64_t b, int64_t h) {
    float S[N][N], d[N];
    std::memset(S, 0, sizeof S);
    const float* uh = u + h * N;
    for (int64_t t = 0; t < s.tokens; ++t) {
      const int64_t at = ((b * s.tokens + t) * s.heads + h) * N;
      const float *rt = r + at, *kt = k + at, *vt = v + at;
      const float* dt = w + (per_head ? h * N : at);
      if (!given) {
        for (int j = 0; j < N; ++j) d[j] = decay(dt[j], true);
        dt = d;
      }
      for (int i = 0; i < N; ++i) {
        const float vi = vt[i];
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < N; ++j) {
          const float kv = kt[j] * vi;
          sum += rt[j] * (S[i][j] + uh[j] * kv);
          S[i][j] = dt[j] * S[i][j] + kv;
        }
        y[at + i] = sum;
      }
    }
    std::memcpy(state + (b * s.heads + h) * N * N, S, sizeof S);
  });
}

// The same with the loops the other way round: keys outside, contiguous values inside, the state transposed.
extern "C" void wkv6_forward_transposed(Shape s, const float* r, const float* k, const float* v, const float* w,
                                        const float* u, float* y, float* state, bool per_head, bool given,
                                        int threads) {
  for_each_head(s, threads, [=](int64_t b, int64_t h) {
    float S[N][N], d[N], sum[N];
    std::memset(S, 0, sizeof S);
    const float* uh = u + h * N;
    for (int64_t t = 0; t < s.tokens; ++t) {
      const int64_t at = ((b * s.tokens + t) * s.heads + h) * N;
      const float *rt = r + at, *kt = k + at, *vt = v + at;
      const float* dt = w + (per_head ? h * N : at);
      if (!given) {
        for (int j = 0; j < N; ++j) d[j] = decay(dt[j], true);
        dt = d;
      }
      std::memset(sum, 0, sizeof sum);
      for (int j = 0; j < N; ++j) {
        const float rj = rt[j], kj = kt[j], uj = uh[j], dj = dt[j];
        for (int i = 0; i < N; ++i) {
          const float kv = kj * vt[i];
          sum[i] += rj * (S[j][i] + uj * kv);
          S[j][i] = dj * S[j][i] + kv;
        }
      }
      std::memcpy(y + at, sum, sizeof sum);
    }
    float* out = state + (b * s.heads + h) * N * N;
    for (int i = 0; i < N; ++i)
      for (int j = 0; j < N; ++j) out[i * N + j] = S[j][i];
  });
}
