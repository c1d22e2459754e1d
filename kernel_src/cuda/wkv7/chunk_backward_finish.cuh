// Gradients of a chunk's columns, 16 columns a warp.
//
// Decays go up from level to level as in chunk/dyadic.cuh, from the columns as they came to those scaled by all decays.
// On every level gradients of the columns scaled for that level come of a product with scores' gradients, P, and on top
// those of A~, R~, B^ and K^. Each counts for the columns as they came, times the same decays, and for the logarithms
// of those decays: x dx of its scaled columns, whatever the level. So what the decays get is a sum of products, in
// which nothing cancels that does not cancel in the gradient itself.
#pragma once

#include "cuda/wkv7/chunk_backward_tokens.cuh"
#include "cuda/wkv7/chunk_columns.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

// P of one of the scores; the diagonals of those of r in fp32.
template <int kSize>
__device__ __forceinline__ void score_gradients(const BackwardMemory<kSize>& memory, int chunk, int which) {
  using Memory = BackwardMemory<kSize>;
  using Chunk = typename Memory::Chunk;
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const bool of_r = which >= Memory::kScoreRb;
  const Tile<kSize> left = of_r ? memory.chunk(chunk).rows(Chunk::kDy) : memory.dw();
  const Tile<kSize> right = memory.chunk(chunk).rows(which % 2 == 0 ? Chunk::kU : Chunk::kV);
  Sums p = zero_sums();
#pragma unroll
  for (int block = 0; block < kSize / 16; ++block)
    multiply_add<Operand>(p, left.load(block, lane), load_right(right, block, lane));
  const Fragment score = rounded<Operand>(p);
  store_fragment(memory.score(which), lane, score);
  store_fragment(memory.score_transposed(which), lane, transposed(score));
  if (of_r && g / 2 == t) {
    float* const diagonal = memory.diagonal(which);
    diagonal[g] = g % 2 == 0 ? p.x[0][0] : p.x[0][1];
    diagonal[g + 8] = g % 2 == 0 ? p.x[1][2] : p.x[1][3];
  }
}

// What of the gradients goes through the states: of A~, R~, B^, K^ and of log D_last.
struct StateGradients {
  Sums a, r, b, k;
  float decay[4];  // without its factor D_last
};

template <int kSize>
__device__ __forceinline__ StateGradients state_gradients(const BackwardMemory<kSize>& memory, int chunk, int block) {
  using Memory = BackwardMemory<kSize>;
  using Chunk = typename Memory::Chunk;
  const int lane = threadIdx.x % kWarp;
  StateGradients out = {};
  Sums products = zero_sums();  // S' G, keys by keys
#pragma unroll
  for (int values = 0; values < kSize / 16; ++values) {
    const RightFragment s = memory.state(chunk, values).load_transposed_right(block, lane);
    multiply_add<Operand>(out.a, memory.dw().load(values, lane), s);
    multiply_add<Operand>(out.r, memory.chunk(chunk).rows(Chunk::kDy).load(values, lane), s);
    const RightFragment g = memory.gradient(values).load_transposed_right(block, lane);
    multiply_add<Operand>(out.b, memory.chunk(chunk).rows(Chunk::kU).load(values, lane), g);
    multiply_add<Operand>(out.k, memory.chunk(chunk).rows(Chunk::kV).load(values, lane), g);
    multiply_add<Operand>(products, {{s.x[0], s.x[2], s.x[1], s.x[3]}}, g);
  }
  // Columns 2t and 2t + 1 of the diagonal are with lanes (2t, t) and (2t + 1, t).
  const int even = 9 * (lane % 4), odd = even + 4;
  out.decay[0] = __shfl_sync(kAllLanes, products.x[0][0], even);
  out.decay[1] = __shfl_sync(kAllLanes, products.x[0][1], odd);
  out.decay[2] = __shfl_sync(kAllLanes, products.x[1][2], even);
  out.decay[3] = __shfl_sync(kAllLanes, products.x[1][3], odd);
  return out;
}

// Gradients of a lane's two tokens in its four columns.
struct SliceGradients {
  float r[2][4], k[2][4], a[2][4], b[2][4];
  float log_decay[2][4];
};

template <int kSize>
class FinishColumns {
 public:
  using Memory = BackwardMemory<kSize>;

  __device__ __forceinline__ explicit FinishColumns(const Memory& memory)
      : memory_(memory), lane_(threadIdx.x % kWarp), g_(lane_ / 4), t_(lane_ % 4) {}

  // x: as they came.
  __device__ __forceinline__ SliceGradients run(Slice x, const StateGradients& state) {
    const Slice raw = x;
    float decay[2][4];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      decay[i / 4][i % 4] = ptx::ex2_approx_ftz_f32(x.log2_decay[i / 4][i % 4]);
      x.r[i / 4][i % 4] *= decay[i / 4][i % 4];
    }

#pragma unroll
    for (int c = 0; c < 4; ++c) {
      x.a[1][c] *= decay[0][c];
      x.r[1][c] *= decay[0][c];
      x.b[0][c] *= decay[1][c];
      x.k[0][c] *= decay[1][c];
      x.log2_decay[0][c] += x.log2_decay[1][c];
    }

    // --- The levels above
    sums_ = {};
#pragma unroll
    for (int c = 0; c < 4; ++c) to_queries_[c] = to_keys_[c] = 1.0f;
#pragma unroll
    for (int i = 0; i < kLevels * 4; ++i) of_halves_[i / 4][i % 4] = 0.0f;
    level<1>(x);
    level<2>(x);
    level<3>(x);
    add(x, state);

    // --- What the halves of each level have for each other's decays, down to pairs of tokens
    float of_pair[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      float sum = ptx::ex2_approx_ftz_f32(x.log2_decay[0][c]) * state.decay[c];
      float half = of_halves_[3][c];
      half += __shfl_xor_sync(kAllLanes, half, 4);
      half += __shfl_xor_sync(kAllLanes, half, 8);
      sum += __shfl_xor_sync(kAllLanes, half, 16);
      half = of_halves_[2][c];
      half += __shfl_xor_sync(kAllLanes, half, 4);
      sum += __shfl_xor_sync(kAllLanes, half, 8);
      of_pair[c] = sum + __shfl_xor_sync(kAllLanes, of_halves_[1][c], 4);
    }

    // --- Level 0: queries are odd tokens, keys even ones, and a row or column of a product is of one or the other.
    const unsigned pairs = level_mask(g_, t_, 0);
    Sums queries = zero_sums(), keys = zero_sums();
    const float odd_r[4] = {raw.r[1][0] * decay[1][0], raw.r[1][1] * decay[1][1], raw.r[1][2] * decay[1][2],
                            raw.r[1][3] * decay[1][3]};
    const auto word = [&](const uint4* matrix, int i) {
      return reinterpret_cast<const unsigned*>(matrix + lane_)[i] & pairs;
    };
    const auto of_odd = [&](int which) { return word(memory_.score(which), 1); };
    const auto of_even = [&](int which) { return word(memory_.score_transposed(which), 2); };
    multiply_add<Operand>(
        queries,
        {{of_odd(Memory::kScoreRb), of_odd(Memory::kScoreAb), of_odd(Memory::kScoreRk), of_odd(Memory::kScoreAk)}},
        transposed_right(raw.b[0], raw.k[0]));
    multiply_add<Operand>(
        keys,
        {{of_even(Memory::kScoreAb), of_even(Memory::kScoreAk), of_even(Memory::kScoreRb), of_even(Memory::kScoreRk)}},
        transposed_right(raw.a[1], odd_r));

    // --- Back to the columns as they came, and the diagonals
    SliceGradients out = sums_;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int half = c / 2, i = c % 2;
      out.a[1][c] = fmaf(out.a[1][c], decay[0][c], queries.x[half][2 + i]);
      out.r[1][c] = fmaf(out.r[1][c], decay[0][c], queries.x[half][i]);
      out.b[0][c] = fmaf(out.b[0][c], decay[1][c], keys.x[half][i]);
      out.k[0][c] = fmaf(out.k[0][c], decay[1][c], keys.x[half][2 + i]);
#pragma unroll
      for (int token = 0; token < 2; ++token) {
        out.r[token][c] *= decay[token][c];
        out.log_decay[token][c] += fmaf(out.r[token][c], raw.r[token][c], of_pair[c]);
        const float rb = memory_.diagonal(Memory::kScoreRb)[g_ + 8 * token];
        const float rk = memory_.diagonal(Memory::kScoreRk)[g_ + 8 * token];
        out.r[token][c] = fmaf(rb, raw.b[token][c], fmaf(rk, raw.k[token][c], out.r[token][c]));
        out.b[token][c] = fmaf(rb, raw.r[token][c], out.b[token][c]);
        out.k[token][c] = fmaf(rk, raw.r[token][c], out.k[token][c]);
      }
    }
    return out;
  }

 private:
  // Two rows of columns as a right operand, columns by rows.
  __device__ __forceinline__ static RightFragment transposed_right(const float (&top)[4], const float (&bottom)[4]) {
    return as_right(transposed(left_of<Operand>(top, bottom)));
  }
  __device__ __forceinline__ static RightFragment transposed_right(const float (&x)[2][4]) {
    return transposed_right(x[0], x[1]);
  }
  // On a level a token has either queries or keys: a and r, or b and k. As rows of the same products they are
  //   da = P_ab b + P_ak k, dr = P_rb b + P_rk k;   db = P_ab' a + P_rb' r, dk = P_ak' a + P_rk' r.
  template <int kLevel>
  __device__ __forceinline__ void level(Slice& x) {
    const bool upper = is_upper(g_, kLevel);
    const unsigned mask = level_mask(g_, t_, kLevel);
    const auto score = [&](int of_queries, int of_keys) {
      Fragment f =
          load_fragment<Fragment>(upper ? memory_.score(of_queries) : memory_.score_transposed(of_keys), lane_);
#pragma unroll
      for (unsigned& word : f.x) word &= mask;
      return f;
    };
    float first[2][4], second[2][4];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      first[i / 4][i % 4] = upper ? x.a[i / 4][i % 4] : x.b[i / 4][i % 4];
      second[i / 4][i % 4] = upper ? x.r[i / 4][i % 4] : x.k[i / 4][i % 4];
    }
    const RightFragment x1 = transposed_right(first), x2 = transposed_right(second);
    Sums d1 = zero_sums(), d2 = zero_sums();
    multiply_add<Operand>(d1, score(Memory::kScoreAb, Memory::kScoreAb), x1);
    multiply_add<Operand>(d2, score(Memory::kScoreRb, Memory::kScoreAk), x1);
    multiply_add<Operand>(d1, score(Memory::kScoreAk, Memory::kScoreRb), x2);
    multiply_add<Operand>(d2, score(Memory::kScoreRk, Memory::kScoreRk), x2);

    float for_queries[4], for_keys[4];
    ascend<kLevel>(g_, x.log2_decay[0], for_queries, for_keys);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float to_query = upper ? to_queries_[c] : 0.0f, to_key = upper ? 0.0f : to_keys_[c];
      float of_decays[2];
#pragma unroll
      for (int token = 0; token < 2; ++token) {
        const float dx = d1.x[c / 2][2 * token + c % 2], dy = d2.x[c / 2][2 * token + c % 2];
        of_decays[token] = fmaf(first[token][c], dx, second[token][c] * dy);
        sums_.a[token][c] = fmaf(to_query, dx, sums_.a[token][c]);
        sums_.r[token][c] = fmaf(to_query, dy, sums_.r[token][c]);
        sums_.b[token][c] = fmaf(to_key, dx, sums_.b[token][c]);
        sums_.k[token][c] = fmaf(to_key, dy, sums_.k[token][c]);
        x.a[token][c] *= for_queries[c];
        x.r[token][c] *= for_queries[c];
        x.b[token][c] *= for_keys[c];
        x.k[token][c] *= for_keys[c];
      }
      // The odd token's queries have passed the even one's decay, and the even one's keys that of the odd one.
      sums_.log_decay[0][c] = fmaf(of_decays[1], upper ? 1.0f : 0.0f, sums_.log_decay[0][c]);
      sums_.log_decay[1][c] = fmaf(of_decays[0], upper ? 0.0f : 1.0f, sums_.log_decay[1][c]);
#pragma unroll
      for (int below = 1; below < kLevel; ++below)
        of_halves_[below][c] =
            fmaf(of_decays[0] + of_decays[1], is_upper(g_, below) == upper ? 1.0f : 0.0f, of_halves_[below][c]);
      to_queries_[c] *= for_queries[c];
      to_keys_[c] *= for_keys[c];
    }
  }

  // Of A~, R~, B^ and K^, which all tokens have.
  __device__ __forceinline__ void add(const Slice& x, const StateGradients& state) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      float queries[2], keys[2];
#pragma unroll
      for (int token = 0; token < 2; ++token) {
        const int i = 2 * token + c % 2;
        const float da = state.a.x[c / 2][i], dr = state.r.x[c / 2][i];
        const float db = state.b.x[c / 2][i], dk = state.k.x[c / 2][i];
        queries[token] = fmaf(x.a[token][c], da, x.r[token][c] * dr);
        keys[token] = fmaf(x.b[token][c], db, x.k[token][c] * dk);
        sums_.a[token][c] = fmaf(to_queries_[c], da, sums_.a[token][c]);
        sums_.r[token][c] = fmaf(to_queries_[c], dr, sums_.r[token][c]);
        sums_.b[token][c] = fmaf(to_keys_[c], db, sums_.b[token][c]);
        sums_.k[token][c] = fmaf(to_keys_[c], dk, sums_.k[token][c]);
      }
      sums_.log_decay[0][c] += queries[1];
      sums_.log_decay[1][c] += keys[0];
      const float of_queries = queries[0] + queries[1], of_keys = keys[0] + keys[1];
#pragma unroll
      for (int below = 1; below < kLevels; ++below) of_halves_[below][c] += is_upper(g_, below) ? of_queries : of_keys;
    }
  }

  const Memory& memory_;
  const int lane_, g_, t_;
  SliceGradients sums_;
  float to_queries_[4], to_keys_[4];  // decays from the tokens, beyond pairs, up to the level
  float of_halves_[kLevels][4];       // for the decays of the other half of the lane's block of each level
};

// From gradients of log d to those of w.
__device__ __forceinline__ void multiply_by_log_derivatives(Decay form, const float (&w)[2][4], float (&x)[2][4]) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kSigmoidScale = 0.60653065971263342360f;
  if (form == Decay::kExp) {
    // Past 1e30 a decay is 0; the bound keeps 0 times infinity out of the gradient.
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i / 4][i % 4] *= -fminf(ptx::ex2_approx_ftz_f32(kLog2E * w[i / 4][i % 4]), 1e30f);
  } else if (form == Decay::kSigmoid) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float away = ptx::ex2_approx_ftz_f32(-kLog2E * fabsf(w[i / 4][i % 4]));
      const float part = ptx::rcp_approx_ftz_f32(1.0f + away);
      x[i / 4][i % 4] *= -kSigmoidScale * away * part * part;
    }
  }
}

// Writes the gradients of a chunk's columns 16 block … 16 block + 15; first: its first token.
template <class T, class Tokens, class Chunk>
__device__ __forceinline__ void write_gradients(const Wkv7Gradients& g, const Tokens& tokens, int64_t offset,
                                                const SliceGradients& x, const Chunk& chunk, int block, int left) {
  const int64_t stride = g.dr.stride[1];
  const auto write = [&](HeadVectors::Which which, const View& to, const float (&of)[2][4]) {
    tokens.write(chunk, block, which, of, static_cast<T*>(to.data) + offset, stride, left);
  };
  write(HeadVectors::kR, g.dr, x.r);
  write(HeadVectors::kK, g.dk, x.k);
  write(HeadVectors::kA, g.da, x.a);
  write(HeadVectors::kB, g.db, x.b);
  if (g.dw.dtype != DType::kFloat32) return write(HeadVectors::kW, g.dw, x.log_decay);
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = lane / 4 * 2 + i % 2;
    const float* const pair = &x.log_decay[i % 2][i / 2 * 2];
    if (token < left)
      *reinterpret_cast<float2*>(static_cast<float*>(g.dw.data) + offset + token * stride + 16 * block + lane % 4 * 2 +
                                 i / 2 * 8) = make_float2(pair[0], pair[1]);
  }
}

}  // namespace flash_rwkv::cuda::wkv7_chunk
