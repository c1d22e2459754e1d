// Gradients of a chunk's columns, 16 columns a warp.
//
// Decays go up from level to level as in chunk/dyadic.cuh, from the columns as they came to those scaled by all decays.
// Gradients come down: those of A~, R~, B^ and K^, and on every level, of a product with scores' gradients, P, those of
// the columns scaled for that level. Each counts for the columns as they came, times the same decays, and for the
// logarithms of those decays: x dx of its scaled columns, whatever the level. So what the decays get is a sum of
// products, in which nothing cancels that does not cancel in the gradient itself.
#pragma once

#include "cuda/wkv7/chunk_backward_tokens.cuh"
#include "cuda/wkv7/chunk_columns.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

// P of one of the scores; the diagonals of those of r in fp32.
template <int kSize, int kStates>
__device__ __forceinline__ void score_gradients(const BackwardMemory<kSize, kStates>& memory, int chunk, int which) {
  using Memory = BackwardMemory<kSize, kStates>;
  using Chunk = typename Memory::Chunk;
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const bool of_r = which >= Memory::kScoreRb;
  const Tile<kSize> left = of_r ? memory.chunk(chunk).rows(Chunk::kDy) : memory.dw();
  const Tile<kSize> right = memory.u_or_v(chunk, which % 2 == 0);
  Sums p = zero_sums();
#pragma unroll
  for (int block = 0; block < kSize / 16; ++block)
    multiply_add<Operand>(p, left.load(block, lane), right.load_right(block, lane));
  const Fragment score = rounded<Operand>(p);
  store_fragment(memory.score(which, false), lane, score);
  store_fragment(memory.score(Memory::across(which), true), lane, transposed(score));
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

template <int kSize, int kStates>
__device__ __forceinline__ StateGradients state_gradients(const BackwardMemory<kSize, kStates>& memory, int chunk,
                                                          int block) {
  using Memory = BackwardMemory<kSize, kStates>;
  using Chunk = typename Memory::Chunk;
  const int lane = threadIdx.x % kWarp;
  StateGradients out = {};
  Sums products = zero_sums();  // S' G, keys by keys
#pragma unroll
  for (int values = 0; values < kSize / 16; ++values) {
    const Tile<kSize> states = memory.state(chunk, values);
    const RightFragment s = states.load_transposed_right(block, lane);
    multiply_add<Operand>(out.a, memory.dw().load(values, lane), s);
    multiply_add<Operand>(out.r, memory.chunk(chunk).rows(Chunk::kDy).load(values, lane), s);
    const RightFragment g = memory.gradient(values).load_transposed_right(block, lane);
    multiply_add<Operand>(out.b, memory.u(chunk).load(values, lane), g);
    multiply_add<Operand>(out.k, memory.chunk(chunk).rows(Chunk::kV).load(values, lane), g);
    multiply_add<Operand>(products, states.load_transposed(block, lane), g);
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

// T: of the columns as they came.
template <class T, int kSize, int kStates>
class FinishColumns {
 public:
  using Memory = BackwardMemory<kSize, kStates>;

  __device__ __forceinline__ explicit FinishColumns(const Memory& memory)
      : memory_(memory), lane_(threadIdx.x % kWarp), g_(lane_ / 4), t_(lane_ % 4) {}

  // x: as they came, unpacked.
  __device__ __forceinline__ SliceGradients run(const Raw& words, Slice x, const StateGradients& state) {
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

    // --- Up through the levels: what columns are scaled by, beyond pairs
    float to_queries[4] = {1.0f, 1.0f, 1.0f, 1.0f}, to_keys[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    float factors[kLevels][4];
    ascend_from<1>(x, to_queries, to_keys, factors[1]);
    ascend_from<2>(x, to_queries, to_keys, factors[2]);
    ascend_from<3>(x, to_queries, to_keys, factors[3]);

    // --- And down: what goes through the state, then each level's own
    start(x, state, to_queries, to_keys);
    float of_halves[kLevels][4];
    level<3>(x, factors[3], of_halves[3]);
    level<2>(x, factors[2], of_halves[2]);
    level<1>(x, factors[1], of_halves[1]);

    // --- What the halves of each level have for each other's decays, down to pairs of tokens
    float of_pair[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      // The odd token's queries have passed the even one's decay, and the even one's keys that of the odd one.
      sums_.log_decay[0][c] = fmaf(x.a[1][c], sums_.a[1][c], x.r[1][c] * sums_.r[1][c]);
      sums_.log_decay[1][c] = fmaf(x.b[0][c], sums_.b[0][c], x.k[0][c] * sums_.k[0][c]);
      float sum = ptx::ex2_approx_ftz_f32(x.log2_decay[0][c]) * state.decay[c];
      float half = of_halves[3][c];
      half += __shfl_xor_sync(kAllLanes, half, 4);
      half += __shfl_xor_sync(kAllLanes, half, 8);
      sum += __shfl_xor_sync(kAllLanes, half, 16);
      half = of_halves[2][c];
      half += __shfl_xor_sync(kAllLanes, half, 4);
      sum += __shfl_xor_sync(kAllLanes, half, 8);
      of_pair[c] = sum + __shfl_xor_sync(kAllLanes, of_halves[1][c], 4);
    }

    // --- Level 0: queries are odd tokens, keys even ones, and a row or column of a product is of one or the other.
    const unsigned pairs = level_mask(g_, t_, 0);
    Sums queries = zero_sums(), keys = zero_sums();
    const float odd_r[4] = {raw.r[1][0] * decay[1][0], raw.r[1][1] * decay[1][1], raw.r[1][2] * decay[1][2],
                            raw.r[1][3] * decay[1][3]};
    const auto word = [&](const uint4* matrix, int i) {
      return reinterpret_cast<const unsigned*>(matrix + lane_)[i] & pairs;
    };
    const auto came = [](const Fragment& f, int i) { return converted<Operand, T>(f.x[i]); };
    const auto of_odd = [&](int which) { return word(memory_.score(which, false), 1); };
    const auto of_even = [&](int which) { return word(memory_.score(Memory::across(which), true), 2); };
    multiply_add<Operand>(
        queries,
        {{of_odd(Memory::kScoreRb), of_odd(Memory::kScoreAb), of_odd(Memory::kScoreRk), of_odd(Memory::kScoreAk)}},
        as_right(transposed({{came(words.b, 0), came(words.k, 0), came(words.b, 2), came(words.k, 2)}})));
    multiply_add<Operand>(
        keys,
        {{of_even(Memory::kScoreAb), of_even(Memory::kScoreAk), of_even(Memory::kScoreRb), of_even(Memory::kScoreRk)}},
        as_right(transposed({{came(words.a, 1), Pair<Operand>::pack(odd_r[0], odd_r[1]), came(words.a, 3),
                              Pair<Operand>::pack(odd_r[2], odd_r[3])}})));

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
  __device__ __forceinline__ static RightFragment transposed_right(const float (&x)[2][4]) {
    return as_right(transposed(left_of<Operand>(x[0], x[1])));
  }

  // factors: by which a level scales its queries in the upper half of a block and its keys in the lower one.
  template <int kLevel>
  __device__ __forceinline__ void ascend_from(Slice& x, float (&to_queries)[4], float (&to_keys)[4],
                                              float (&factors)[4]) const {
    const bool upper = is_upper(g_, kLevel);
    float decays[4];
    ascend<kLevel>(x.log2_decay[0], decays);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      factors[c] = upper ? to_queries[c] : to_keys[c];
      if (upper) to_queries[c] *= decays[c];
      else to_keys[c] *= decays[c];
    }
  }

  // With gradients of A~, R~, B^ and K^, which all tokens have.
  __device__ __forceinline__ void start(const Slice& x, const StateGradients& state, const float (&to_queries)[4],
                                        const float (&to_keys)[4]) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      of_queries_[c] = of_keys_[c] = 0.0f;
#pragma unroll
      for (int token = 0; token < 2; ++token) {
        const int i = 2 * token + c % 2;
        sums_.a[token][c] = to_queries[c] * state.a.x[c / 2][i];
        sums_.r[token][c] = to_queries[c] * state.r.x[c / 2][i];
        sums_.b[token][c] = to_keys[c] * state.b.x[c / 2][i];
        sums_.k[token][c] = to_keys[c] * state.k.x[c / 2][i];
        of_queries_[c] = fmaf(x.a[token][c], sums_.a[token][c], of_queries_[c]);
        of_queries_[c] = fmaf(x.r[token][c], sums_.r[token][c], of_queries_[c]);
        of_keys_[c] = fmaf(x.b[token][c], sums_.b[token][c], of_keys_[c]);
        of_keys_[c] = fmaf(x.k[token][c], sums_.k[token][c], of_keys_[c]);
      }
    }
  }

  // On a level a token has either queries or keys: a and r, or b and k. As rows of the same products they are
  //   da = P_ab b + P_ak k, dr = P_rb b + P_rk k;   db = P_ab' a + P_rb' r, dk = P_ak' a + P_rk' r.
  // of_half: what the lane's tokens have of the levels above for decays of the other half of their block.
  template <int kLevel>
  __device__ __forceinline__ void level(const Slice& x, const float (&factors)[4], float (&of_half)[4]) {
    const bool upper = is_upper(g_, kLevel);
    const unsigned mask = level_mask(g_, t_, kLevel);
    const auto score = [&](int of_queries) {
      Fragment f = load_fragment<Fragment>(memory_.score(of_queries, !upper), lane_);
#pragma unroll
      for (unsigned& word : f.x) word &= mask;
      return f;
    };
    float first[2][4], second[2][4];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float factor = kLevel == 1 ? 1.0f : factors[i % 4];  // pairs are all that level 1 scales by
      first[i / 4][i % 4] = (upper ? x.a[i / 4][i % 4] : x.b[i / 4][i % 4]) * factor;
      second[i / 4][i % 4] = (upper ? x.r[i / 4][i % 4] : x.k[i / 4][i % 4]) * factor;
    }
    const RightFragment x1 = transposed_right(first), x2 = transposed_right(second);
    Sums d1 = zero_sums(), d2 = zero_sums();
    multiply_add<Operand>(d1, score(Memory::kScoreAb), x1);
    multiply_add<Operand>(d2, score(Memory::kScoreRb), x1);
    multiply_add<Operand>(d1, score(Memory::kScoreAk), x2);
    multiply_add<Operand>(d2, score(Memory::kScoreRk), x2);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float factor = kLevel == 1 ? 1.0f : factors[c];
      const float to_query = upper ? factor : 0.0f, to_key = upper ? 0.0f : factor;
      of_half[c] = upper ? of_queries_[c] : of_keys_[c];
      float with_level = of_half[c];
#pragma unroll
      for (int token = 0; token < 2; ++token) {
        const float dx = d1.x[c / 2][2 * token + c % 2], dy = d2.x[c / 2][2 * token + c % 2];
        with_level = fmaf(first[token][c], dx, with_level);
        with_level = fmaf(second[token][c], dy, with_level);
        sums_.a[token][c] = fmaf(to_query, dx, sums_.a[token][c]);
        sums_.r[token][c] = fmaf(to_query, dy, sums_.r[token][c]);
        sums_.b[token][c] = fmaf(to_key, dx, sums_.b[token][c]);
        sums_.k[token][c] = fmaf(to_key, dy, sums_.k[token][c]);
      }
      if (upper) of_queries_[c] = with_level;
      else of_keys_[c] = with_level;
    }
  }

  const Memory& memory_;
  const int lane_, g_, t_;
  SliceGradients sums_;               // for columns scaled for level 1
  float of_queries_[4], of_keys_[4];  // x dx of both tokens' columns: the state's, and that of the levels so far
};

}  // namespace flash_rwkv::cuda::wkv7_chunk
