// RWKV-7, forward, as one would write it down: tokens, then a value row, then its keys. The inner loops are over
// contiguous keys; the pragmas allow the compiler to vectorise the sums.
#include "heads.h"

// r, w, k, v, a, b, y [B, T, H, N]; state [B, H, N_value, N_key]. `given`: w holds the decay itself.
extern "C" void wkv7_forward(Shape s, const float* r, const float* w, const float* k, const float* v, const float* a,
                             const float* b, float* y, float* state, bool given, int threads) {
  for_each_head(s, threads, [=](int64_t n, int64_t h) {
    float S[N][N], d[N];
    std::memset(S, 0, sizeof S);
    for (int64_t t = 0; t < s.tokens; ++t) {
      const int64_t at = ((n * s.tokens + t) * s.heads + h) * N;
      const float *rt = r + at, *kt = k + at, *vt = v + at, *a_t = a + at, *bt = b + at;
      const float* dt = w + at;
      if (!given) {
        for (int j = 0; j < N; ++j) d[j] = decay(dt[j], false);
        dt = d;
      }
      for (int i = 0; i < N; ++i) {
        const float vi = vt[i];
        float sa = 0, sum = 0;
#pragma omp simd reduction(+ : sa)
        for (int j = 0; j < N; ++j) sa += S[i][j] * a_t[j];
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < N; ++j) {
          S[i][j] = S[i][j] * dt[j] + sa * bt[j] + vi * kt[j];
          sum += S[i][j] * rt[j];
        }
        y[at + i] = sum;
      }
    }
    std::memcpy(state + (n * s.heads + h) * N * N, S, sizeof S);
  });
}

// The same with the loops the other way round: keys outside, contiguous values inside, the state transposed.
extern "C" void wkv7_forward_transposed(Shape s, const float* r, const float* w, const float* k, const float* v,
                                        const float* a, const float* b, float* y, float* state, bool given,
                                        int threads) {
  for_each_head(s, threads, [=](int64_t n, int64_t h) {
    float S[N][N], d[N], sa[N], sum[N];
    std::memset(S, 0, sizeof S);
    for (int64_t t = 0; t < s.tokens; ++t) {
      const int64_t at = ((n * s.tokens + t) * s.heads + h) * N;
      const float *rt = r + at, *kt = k + at, *vt = v + at, *a_t = a + at, *bt = b + at;
      const float* dt = w + at;
      if (!given) {
        for (int j = 0; j < N; ++j) d[j] = decay(dt[j], false);
        dt = d;
      }
      std::memset(sa, 0, sizeof sa);
      std::memset(sum, 0, sizeof sum);
      for (int j = 0; j < N; ++j) {
        const float aj = a_t[j];
        for (int i = 0; i < N; ++i) sa[i] += S[j][i] * aj;
      }
      for (int j = 0; j < N; ++j) {
        const float rj = rt[j], dj = dt[j], kj = kt[j], bj = bt[j];
        for (int i = 0; i < N; ++i) {
          S[j][i] = S[j][i] * dj + sa[i] * bj + vt[i] * kj;
          sum[i] += S[j][i] * rj;
        }
      }
      std::memcpy(y + at, sum, sizeof sum);
    }
    float* out = state + (n * s.heads + h) * N * N;
    for (int i = 0; i < N; ++i)
      for (int j = 0; j < N; ++j) out[i * N + j] = S[j][i];
  });
}
