// Sixteen columns of a chunk, scaled by decays, and the scores that come of them.
#pragma once

#include "cuda/chunk/dyadic.cuh"
#include "cuda/wkv7/chunk.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

// As they came, and of this lane's two tokens four columns each in fp32.
struct Raw {
  Fragment r, k, a, b;
  float w[2][4];
};
struct Slice {
  float r[2][4], k[2][4], a[2][4], b[2][4];
  float log2_decay[2][4];
};

// T: of the operands; In: of the columns as they came. kAll: not without k, whose columns and scores there are none of
// then.
template <class T, bool kAll = true, class In = T>
class Columns {
 public:
  __device__ __forceinline__ Columns(Decay decay, int length)
      : decay_(decay), g_(threadIdx.x % kWarp / 4), t_(threadIdx.x % 4), length_(length) {}

  // first: token of the chunk.
  __device__ __forceinline__ Slice unpacked(const Raw& raw, int first) const {
    Slice x;
    unpack<In>(raw.r, x.r);
    unpack<In>(raw.k, x.k);
    unpack<In>(raw.a, x.a);
    unpack<In>(raw.b, x.b);
#pragma unroll
    for (int i = 0; i < 8; ++i) x.log2_decay[i / 4][i % 4] = raw.w[i / 4][i % 4];
    log2_decays(decay_, x.log2_decay);
    if (first + kTokens > length_) {
      // Tokens past the end change nothing: their vectors are zeros, and they keep what there is.
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (first + 2 * g_ + i / 4 >= length_) x.log2_decay[i / 4][i % 4] = 0.0f;
    }
    return x;
  }

  // Adds this slice's share to the scores of every level, and leaves A~, R~, B^ and K^ and the sum of all log decays.
  __device__ __forceinline__ void scale(const Raw& raw, Slice& x, Sums (&scores)[kLevels], float (&diagonal)[4]) const {
    float decay[2][4];
#pragma unroll
    for (int token = 0; token < 2; ++token)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        diagonal[token] = fmaf(x.r[token][c], x.b[token][c], diagonal[token]);
        if constexpr (kAll) diagonal[2 + token] = fmaf(x.r[token][c], x.k[token][c], diagonal[2 + token]);
        decay[token][c] = ptx::ex2_approx_ftz_f32(x.log2_decay[token][c]);
        x.r[token][c] *= decay[token][c];
      }
    // Nothing lies between a_t and b_{t-1} or k_{t-1}, nor behind r_t but its own decay.
    const auto word = [](const Fragment& f, int i) { return converted<T, In>(f.x[i]); };
    const Fragment queries = {
        {word(raw.a, 1), Pair<T>::pack(x.r[1][0], x.r[1][1]), word(raw.a, 3), Pair<T>::pack(x.r[1][2], x.r[1][3])}};
    const RightFragment keys = {{word(raw.b, 0), word(raw.b, 2), word(raw.k, 0), word(raw.k, 2)}};
    add_scores(scores[0], queries, keys);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      x.a[1][c] *= decay[0][c];
      x.r[1][c] *= decay[0][c];
      x.b[0][c] *= decay[1][c];
      if constexpr (kAll) x.k[0][c] *= decay[1][c];
      x.log2_decay[0][c] += x.log2_decay[1][c];
    }
    level<1>(x, scores[1]);
    level<2>(x, scores[2]);
    level<3>(x, scores[3]);
  }

  // Two tokens' pairs of columns, as rows of a tile.
  template <int kSize>
  __device__ __forceinline__ void store_rows(const Tile<kSize>& to, const float (&x)[2][4], int block) const {
    to.store(block, threadIdx.x % kWarp, left_of<T>(x[0], x[1]));
  }

  // To one of the eight lanes that have these columns.
  __device__ __forceinline__ void store_decay(float* decay, const Slice& x, int block) const {
    if (g_ == 0) {
      float2* const to = reinterpret_cast<float2*>(decay + 16 * block + 2 * t_);
#pragma unroll
      for (int i = 0; i < 2; ++i)
        to[4 * i] = make_float2(ptx::ex2_approx_ftz_f32(x.log2_decay[0][2 * i]),
                                ptx::ex2_approx_ftz_f32(x.log2_decay[0][2 * i + 1]));
    }
  }

 private:
  __device__ __forceinline__ static Operands operands(const Slice& x, int token) {
    return {left_of<T>(x.a[token], x.r[token]), right_of<T>(x.b[token], x.k[token])};
  }

  // The right half of the sums is that of k.
  __device__ __forceinline__ static void add_scores(Sums& scores, const Fragment& queries, const RightFragment& keys) {
    if constexpr (kAll) multiply_add<T>(scores, queries, keys);
    else mma<T>(scores.x[0], queries.x, keys.x[0], keys.x[1]);
  }

  template <int kLevel>
  __device__ __forceinline__ void level(Slice& x, Sums& scores) const {
    const Operands both = exchanged<kLevel>(g_, operands(x, 0), operands(x, 1));
    add_scores(scores, both.queries, both.keys);
    float for_queries[4], for_keys[4];
    ascend<kLevel>(g_, x.log2_decay[0], for_queries, for_keys);
#pragma unroll
    for (int token = 0; token < 2; ++token)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        x.a[token][c] *= for_queries[c];
        x.r[token][c] *= for_queries[c];
        x.b[token][c] *= for_keys[c];
        if constexpr (kAll) x.k[token][c] *= for_keys[c];
      }
  }

  const Decay decay_;
  const int g_, t_, length_;
};

}  // namespace flash_rwkv::cuda::wkv7_chunk
