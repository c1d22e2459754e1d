// Gradients of the column vectors of a group of four tokens: what is left to do once the products with S and G are known,
// two columns a thread. See group.cuh.
#pragma once

#include "cuda/heads/group.cuh"

namespace flash_rwkv::cuda {

constexpr int kEach = 2;  // columns a thread

using GroupColumns = float[kGroup][kEach];

// Two columns of a vector of each token.
template <class Element>
__device__ __forceinline__ void load_columns(const Element* vector, int token_stride, GroupColumns& out) {
#pragma unroll
  for (int t = 0; t < kGroup; ++t) load_pair(vector + t * token_stride, out[t]);
}

// The same, added up over the shares of warps.
template <int kShares>
__device__ __forceinline__ void add_columns(const float* shares, int share_stride, int token_stride,
                                            GroupColumns& out) {
  load_columns(shares, token_stride, out);
#pragma unroll
  for (int i = 1; i < kShares; ++i) {
    GroupColumns more;
    load_columns(shares + i * share_stride, token_stride, more);
#pragma unroll
    for (int t = 0; t < kGroup; ++t)
#pragma unroll
      for (int c = 0; c < kEach; ++c) out[t][c] += more[t][c];
  }
}

// Of a vector that the state is read with, kAfter: after the token has written, else before. c, the sum over rows of S and
// a gradient p_t of what was read, goes forward from the group's first token to t: c <- d c + x (y · p_t) for each written
// pair x, y. dd is the share of the decays' gradients that goes through these reads.
template <bool kAfter, int kSets>
__device__ __forceinline__ void read_gradients(const GroupColumns& start, const GroupColumns& d,
                                               const GroupColumns (&written)[kSets], const GroupColumns& read,
                                               const float (&factors)[kSets][kPairs], GroupColumns& out,
                                               GroupColumns& dd) {
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    float c[kGroup][kGroup + 1];  // for token t: before token 0, before token 1, …
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      const int end = kAfter ? t + 1 : t;
      c[t][0] = start[t][i];
#pragma unroll
      for (int s = 0; s < end; ++s) {
        float next = __fmul_rn(d[s][i], c[t][s]);
#pragma unroll
        for (int set = 0; set < kSets; ++set)
          next = fmaf(written[set][s][i], factors[set][kAfter || kSets == 1 ? from_on(s, t) : behind(s, t)], next);
        c[t][s + 1] = next;
      }
      out[t][i] = c[t][end];
    }
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      float g = 0.0f;
#pragma unroll
      for (int s = kGroup - 1; s > t; --s) {
        if constexpr (kAfter) g = __fmul_rn(d[s][i], fmaf(read[s][i], c[s][t], g));
        else g = fmaf(d[s][i], g, __fmul_rn(read[s][i], c[s][t]));
      }
      if constexpr (kAfter) g = fmaf(read[t][i], c[t][t], g);
      dd[t][i] = g;
    }
  }
}

// Of a vector that tokens write: g, the sum over rows of G and y_t, which was written with it, goes back from the group's
// last token to t. start: with the gradient after the group. overlap: the sum over rows of S G, or 0 where another vector
// takes it along. dd is the share of the decays' gradients that does not go through reads of the group.
template <bool kFeedback>
__device__ __forceinline__ void write_gradients(const GroupColumns& start, const GroupColumns& d,
                                                const GroupColumns& written, const GroupColumns& r,
                                                const GroupColumns& a, const float (&overlap)[kEach],
                                                const float (&factors)[kPairs], GroupColumns& out, GroupColumns& dd) {
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    float behind_group[kGroup];  // decays of later tokens
    behind_group[kGroup - 1] = 1.0f;
#pragma unroll
    for (int t = kGroup - 2; t >= 0; --t) behind_group[t] = __fmul_rn(behind_group[t + 1], d[t + 1][i]);
    float along = overlap[i];  // the sum over rows of G and the state before token t
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      float g = start[t][i];
#pragma unroll
      for (int s = kGroup - 1; s > t; --s) {
        if constexpr (kFeedback) {
          g = __fmul_rn(d[s][i], fmaf(factors[from_on(t, s)], r[s][i], g));
          g = fmaf(factors[behind(t, s)], a[s][i], g);
        } else {
          g = fmaf(d[s][i], g, __fmul_rn(factors[from_on(t, s)], r[s][i]));
        }
      }
      out[t][i] = kFeedback ? fmaf(factors[from_on(t, t)], r[t][i], g) : g;
      dd[t][i] = __fmul_rn(along, behind_group[t]);
      along = fmaf(d[t][i], along, __fmul_rn(written[t][i], start[t][i]));
    }
  }
}

}  // namespace flash_rwkv::cuda
