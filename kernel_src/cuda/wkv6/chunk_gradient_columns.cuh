// Gradients of r, k and w in 16 key columns of the tokens between two checkpoints, a warp by itself.
//
// Columns are the rows of its products: lane (g, t) has columns g and g + 8 and tokens 4t … 4t + 3 of a chunk, a quad.
// Pairs of tokens meet as in chunk/dyadic.cuh, at the middle of the smallest block that holds both: within a quad in
// fp32, in blocks of two and of four quads through P. At these a token is a query or a key; so one product, of r of the
// upper half and k of the lower one, with P in both places, makes the gradients of both.
//
// A decay's logarithm gets x dx of every scaled column x that it is a factor of. Such a sum is called a flow, since it
// is what goes from keys, or from S, through this decay to queries, or to G.
#pragma once

#include "cuda/chunk/dyadic.cuh"
#include "cuda/wkv6/chunk_gradients.cuh"

namespace flash_rwkv::cuda::wkv6_chunk {

// Of a lane's two columns and four tokens.
using Quads = float[2][4];

// That element of sums.
__device__ __forceinline__ float element(const Sums& sums, int column, int token) {
  return sums.x[token / 2][2 * column + token % 2];
}

// Products of decays.
struct QuadDecays {
  float inner[2][2];             // of the second and of the third token
  Quads query, key;              // from the begin of the quad up to a token, and from behind it to the end
  float other_quad[2];           // of the quad that makes a block of two with the lane's
  float other_half[2];           // of the chunk's half without the lane's quad
  float to_begin[2], to_end[2];  // from the chunk's begin up to the quad, and from behind it to the end
  float chunk[2];

  // d: of single tokens.
  __device__ __forceinline__ QuadDecays(int t, const Quads& d) {
    const bool upper = t & 1, upper_half = t & 2;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float first_two = d[c][0] * d[c][1], last_two = d[c][2] * d[c][3];
      inner[c][0] = d[c][1], inner[c][1] = d[c][2];
      query[c][0] = 1.0f, query[c][1] = d[c][0], query[c][2] = first_two, query[c][3] = first_two * d[c][2];
      key[c][0] = d[c][1] * last_two, key[c][1] = last_two, key[c][2] = d[c][3], key[c][3] = 1.0f;
      const float quad = first_two * last_two;
      other_quad[c] = __shfl_xor_sync(kAllLanes, quad, 1);
      const float half = quad * other_quad[c];
      other_half[c] = __shfl_xor_sync(kAllLanes, half, 2);
      to_begin[c] = (upper ? other_quad[c] : 1.0f) * (upper_half ? other_half[c] : 1.0f);
      to_end[c] = (upper ? 1.0f : other_quad[c]) * (upper_half ? 1.0f : other_half[c]);
      chunk[c] = half * other_half[c];
    }
  }
};

template <class T, int kSize, bool kDecayOfTokens>
class GradientColumns {
 public:
  using Memory = GradientMemory<kSize, kDecayOfTokens>;

  // S before and G behind the tokens, as fragments.
  __device__ __forceinline__ GradientColumns(const Memory& memory, const Wkv6Params& p, const BlockTokens& tokens,
                                             const void* state, const void* gradient)
      : memory_(memory),
        form_(p.decay),
        wide_decay_(p.w.dtype == DType::kFloat32),
        lane_(threadIdx.x % kWarp),
        g_(lane_ / 4),
        t_(lane_ % 4),
        block_(threadIdx.x / kWarp),
        tokens_(tokens) {
    const auto load = [&](const void* from, Fragment(&to)[kBlocks]) {
#pragma unroll
      for (int rows = 0; rows < kBlocks; ++rows)
        to[rows] = load_fragment<Fragment>(static_cast<const uint4*>(from) + (rows * kBlocks + block_) * kWarp, lane_);
    };
    load(state, state_);
    load(gradient, gradient_);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int64_t column = 16 * block_ + 8 * c + g_;
      bonus_[c] = load_as_float(p.u.data, tokens.head * p.u.stride[2] + column, p.u.dtype);
      if constexpr (!kDecayOfTokens)
        constant_w_[c][0] = load_as_float(p.w.data, tokens.head * p.w.stride[2] + column, p.w.dtype);
    }
  }

  // Once P is there: leaves gradients in shared memory.
  __device__ __forceinline__ void run() {
#pragma unroll
    for (int rows = 0; rows < kBlocks; ++rows) {
      state_[rows] = transposed(state_[rows]);
      gradient_[rows] = transposed(gradient_[rows]);
    }
    if constexpr (!kDecayOfTokens) {
      float log2_decay[2][1] = {{constant_w_[0][0]}, {constant_w_[1][0]}};
      log2_decays(form_, log2_decay);
      for (int c = 0; c < 2; ++c) constant_decay_[c] = ptx::ex2_approx_ftz_f32(log2_decay[c][0]);
    }
    prepare();
#pragma unroll 1
    for (int chunk = 0; chunk < tokens_.chunks(); ++chunk) finish(chunk);
  }

  // sums_at: of those over tokens.
  __device__ __forceinline__ void write(const Wkv6Gradients& gradients, int64_t sums_at) const {
    __syncwarp();
    write_rows(gradients.dr, Memory::kR);
    write_rows(gradients.dk, Memory::kK);
    if constexpr (kDecayOfTokens) {
      if (wide_decay_) write_wide_decays(gradients.dw);
      else write_rows(gradients.dw, Memory::kW);
    }
    write_sums(gradients, sums_at);
  }

 private:
  static constexpr int kBlocks = kSize / 16;

  __device__ __forceinline__ void load(int chunk, int which, Quads& x) const {
    unpack<T>(memory_.rows(chunk, which).load_transposed(block_, lane_), x);
  }

  __device__ __forceinline__ void load_w(int chunk, Quads& w) const {
    if (wide_decay_) {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        w[i / 4][i % 4] = memory_.wide_decays(chunk).at(quad_slot_of(4 * t_ + i % 4), 16 * block_ + i / 4 * 8 + g_);
    } else {
      load(chunk, Memory::kW, w);
    }
  }

  // Tokens that there are not decay nothing.
  __device__ __forceinline__ bool exists(int chunk, int token) const {
    return chunk * kTokens + 4 * t_ + token < tokens_.count;
  }

  __device__ __forceinline__ QuadDecays decays(int chunk) const {
    Quads d;
    if constexpr (kDecayOfTokens) {
      load_w(chunk, d);
      log2_decays(form_, d);
#pragma unroll
      for (int i = 0; i < 8; ++i) d[i / 4][i % 4] = ptx::ex2_approx_ftz_f32(d[i / 4][i % 4]);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) d[i / 4][i % 4] = constant_decay_[i / 4];
    }
    if ((chunk + 1) * kTokens > tokens_.count) {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (!exists(chunk, i % 4)) d[i / 4][i % 4] = 1.0f;
    }
    return {t_, d};
  }

  // rows · transposed(vectors of all tokens of a chunk)
  __device__ __forceinline__ Sums through(const Fragment (&rows)[kBlocks], const Tile<kSize>& vectors) const {
    Sums sums = zero_sums();
#pragma unroll
    for (int block = 0; block < kBlocks; ++block)
      multiply_add<GradientOperand>(sums, rows[block], vectors.load_right(block, lane_));
    return sums;
  }

  __device__ __forceinline__ static void scale(Sums& sums, float2 by) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float (&x)[4] = sums.x[half];
      x[0] *= by.x, x[1] *= by.x, x[2] *= by.y, x[3] *= by.y;
    }
  }

  // Sums over tokens of x dx.
  __device__ __forceinline__ static float2 flow(const Quads& x, const Sums& dx) {
    float sum[2] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i / 4] = fmaf(x[i / 4][i % 4], element(dx, i / 4, i % 4), sum[i / 4]);
    return make_float2(sum[0], sum[1]);
  }

  // R~, K^ and decays of all chunks, and what flows from S through each of them, without the decays of those before.
  // Flows are of a lane's own tokens, to be summed up over the lanes of its columns.
  __device__ __forceinline__ void prepare() {
    float2 flow_of_state = diagonal_of_states();
#pragma unroll 1
    for (int chunk = tokens_.chunks() - 1; chunk >= 0; --chunk) {
      Quads r, k;
      load(chunk, Memory::kR, r);
      load(chunk, Memory::kK, k);
      const QuadDecays decay = decays(chunk);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        r[i / 4][i % 4] *= decay.query[i / 4][i % 4] * decay.to_begin[i / 4];
        k[i / 4][i % 4] *= decay.key[i / 4][i % 4] * decay.to_end[i / 4];
      }
      store_own(memory_.queries(chunk), left_of<GradientOperand>(r[0], r[1]));
      store_own(memory_.keys(chunk), left_of<GradientOperand>(k[0], k[1]));
      memory_.decay(chunk) = make_float2(decay.chunk[0], decay.chunk[1]);
      const float2 through_chunk = make_float2(decay.chunk[0] * flow_of_state.x, decay.chunk[1] * flow_of_state.y);
      memory_.flow(chunk) = through_chunk;
      const float2 here = flow(r, through(state_, memory_.rows(chunk, Memory::kDy)));
      flow_of_state = make_float2(through_chunk.x + here.x, through_chunk.y + here.y);
    }
  }

  __device__ __forceinline__ static void store_own(uint4& to, const Fragment& f) {
    to = make_uint4(f.x[0], f.x[1], f.x[2], f.x[3]);
  }
  __device__ __forceinline__ static Fragment load_own(const uint4& from) { return {{from.x, from.y, from.z, from.w}}; }

  // Sums over values of S G, of each column in one lane.
  __device__ __forceinline__ float2 diagonal_of_states() const {
    Sums products = zero_sums();
#pragma unroll
    for (int rows = 0; rows < kBlocks; ++rows)
      multiply_add<GradientOperand>(products, state_[rows], as_right(gradient_[rows]));
    if (g_ / 2 != t_) return make_float2(0.0f, 0.0f);
    const bool odd = g_ % 2;
    return make_float2(odd ? products.x[0][1] : products.x[0][0], odd ? products.x[1][3] : products.x[1][2]);
  }

  // The gradient of a chunk's R~: from S and the keys of the chunks before.
  __device__ __forceinline__ Sums queries_gradient(int chunk) const {
    Sums sums = through(state_, memory_.rows(chunk, Memory::kDy));
#pragma unroll 1
    for (int earlier = 0; earlier < chunk; ++earlier) {
      scale(sums, memory_.decay(earlier));
      multiply_add<GradientOperand>(sums, load_own(memory_.keys(earlier)),
                                    load_fragment<RightFragment>(memory_.pairs(chunk, earlier), lane_));
    }
    return sums;
  }

  // That of its K^, k: from G and the queries of the chunks behind. What flows through those has now passed this chunk,
  // or begins in it.
  __device__ __forceinline__ Sums keys_gradient(int chunk, const Quads& k) const {
    Sums sums = through(gradient_, memory_.rows(chunk, Memory::kV));
    const float2 decay = memory_.decay(chunk);
#pragma unroll 1
    for (int later = tokens_.chunks() - 1; later > chunk; --later) {
      scale(sums, memory_.decay(later));
      const float2 more = flow(k, sums);
      float2& through_chunk = memory_.flow(later);
      through_chunk = make_float2(fmaf(through_chunk.x, decay.x, more.x), fmaf(through_chunk.y, decay.y, more.y));
      multiply_add<GradientOperand>(sums, load_own(memory_.queries(later)),
                                    load_fragment<RightFragment>(memory_.transposed_pairs(later, chunk), lane_));
    }
    return sums;
  }

  // Gradients of a chunk.
  __device__ __forceinline__ void finish(int chunk) {
    const bool upper = t_ & 1, upper_half = t_ & 2;
    Quads r, k;
    load(chunk, Memory::kR, r);
    load(chunk, Memory::kK, k);
    const QuadDecays decay = decays(chunk);

    // --- To other quads: scaled at the ends of the lane's own
    Quads queries, keys, scaled;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int c = i / 4, token = i % 4;
      queries[c][token] = r[c][token] * decay.query[c][token];
      keys[c][token] = k[c][token] * decay.key[c][token];
      scaled[c][token] = upper ? queries[c][token] : keys[c][token];
    }
    // P of blocks of two quads and of four, of which every lane's words are of one or the other.
    const RightFragment p = load_fragment<RightFragment>(memory_.pairs(chunk, chunk), lane_);
    const int apart = g_ / 2 ^ t_;
    const auto times_p = [&](bool belongs) {
      RightFragment mine;
#pragma unroll
      for (int i = 0; i < 4; ++i) mine.x[i] = belongs ? p.x[i] : 0;
      Sums sums = zero_sums();
      multiply_add<GradientOperand>(sums, left_of<GradientOperand>(scaled[0], scaled[1]), mine);
      return sums;
    };
    const Sums of_two = times_p(apart == 1);
    float to_middle[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) to_middle[c] = upper == upper_half ? decay.other_quad[c] : 1.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      scaled[i / 4][i % 4] = (upper_half ? queries[i / 4][i % 4] : keys[i / 4][i % 4]) * to_middle[i / 4];
    const Sums of_four = times_p(apart > 1);
    const float2 flow_of_four = flow(scaled, of_four);

    // --- Through states and other chunks
    const Sums from_before = queries_gradient(chunk);
    Quads k_end;
#pragma unroll
    for (int i = 0; i < 8; ++i) k_end[i / 4][i % 4] = keys[i / 4][i % 4] * decay.to_end[i / 4];
    const Sums from_behind = keys_gradient(chunk, k_end);
    const float2 flow_of_keys = flow(k_end, from_behind);
    const float2 through_chunk = memory_.flow(chunk);

    Quads dr, dk, log_decay;
    const float of_upper = upper ? 1.0f : 0.0f, of_lower = 1.0f - of_upper;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      // --- Sum of all for the columns scaled at the ends of the quad
      const float four_to_query = upper_half ? to_middle[c] : 0.0f, four_to_key = upper_half ? 0.0f : to_middle[c];
      float flow_of_queries = 0.0f;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float two = element(of_two, c, i), four = element(of_four, c, i);
        const float before = element(from_before, c, i) * decay.to_begin[c];
        flow_of_queries = fmaf(queries[c][i], before, flow_of_queries);
        dr[c][i] = fmaf(of_upper, two, fmaf(four_to_query, four, before));
        dk[c][i] = fmaf(of_lower, two, fmaf(four_to_key, four, element(from_behind, c, i) * decay.to_end[c]));
      }

      // --- What flows through all of the quad: to queries behind it, from keys before it, through all of the chunk
      const float keys_flow = c == 0 ? flow_of_keys.x : flow_of_keys.y;
      const float four_flow = upper == upper_half ? (c == 0 ? flow_of_four.x : flow_of_four.y) : 0.0f;
      const float out_of_quad = upper ? flow_of_queries : keys_flow;
      float through_quad = __shfl_xor_sync(kAllLanes, out_of_quad + four_flow, 1);
      float half_flow = upper_half ? flow_of_queries : keys_flow;
      half_flow += __shfl_xor_sync(kAllLanes, half_flow, 1);
      float chunk_flow = c == 0 ? through_chunk.x : through_chunk.y;
      chunk_flow += __shfl_xor_sync(kAllLanes, chunk_flow, 1);
      // The other half's, which ends in this one, and what goes through both.
      through_quad += chunk_flow + __shfl_xor_sync(kAllLanes, chunk_flow + half_flow, 2);

      // --- And through some of its tokens
      const float to_last = queries[c][3] * dr[c][3], to_last_two = fmaf(queries[c][2], dr[c][2], to_last);
      const float from_first = keys[c][0] * dk[c][0], from_first_two = fmaf(keys[c][1], dk[c][1], from_first);
      log_decay[c][0] = through_quad + fmaf(queries[c][1], dr[c][1], to_last_two);
      log_decay[c][1] = through_quad + to_last_two + from_first;
      log_decay[c][2] = through_quad + to_last + from_first_two;
      log_decay[c][3] = through_quad + fmaf(keys[c][2], dk[c][2], from_first_two);
#pragma unroll
      for (int i = 0; i < 4; ++i) dr[c][i] *= decay.query[c][i], dk[c][i] *= decay.key[c][i];
    }

    // --- Pairs of the quad, and the diagonal
    const float4* const quad = memory_.quad(chunk, t_);
    const float4 p0 = quad[0], p1 = quad[1], p2 = quad[2], p3 = quad[3];
    const float diagonal[4] = {p0.x, p1.y, p2.z, p3.w};
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float k0 = k[c][0] * decay.inner[c][0], r3 = r[c][3] * decay.inner[c][1];
      const float dk0 = fmaf(p2.x, r[c][2], p3.x * r3), dr3 = fmaf(p3.x, k0, p3.y * k[c][1]);
      log_decay[c][1] = fmaf(k0, dk0, log_decay[c][1]);
      log_decay[c][2] = fmaf(r3, dr3, log_decay[c][2]);
      dk[c][0] = fmaf(decay.inner[c][0], dk0, fmaf(p1.x, r[c][1], dk[c][0]));
      dk[c][1] = fmaf(p2.y, r[c][2], fmaf(p3.y, r3, dk[c][1]));
      dk[c][2] = fmaf(p3.z, r[c][3], dk[c][2]);
      dr[c][1] = fmaf(p1.x, k[c][0], dr[c][1]);
      dr[c][2] = fmaf(p2.x, k0, fmaf(p2.y, k[c][1], dr[c][2]));
      dr[c][3] = fmaf(decay.inner[c][1], dr3, fmaf(p3.z, k[c][2], dr[c][3]));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float of_r = diagonal[i] * k[c][i], of_k = diagonal[i] * r[c][i];
        dr[c][i] = fmaf(of_r, bonus_[c], dr[c][i]);
        dk[c][i] = fmaf(of_k, bonus_[c], dk[c][i]);
        du_[c] = fmaf(of_r, r[c][i], du_[c]);
      }
    }

    // --- In the places of r, k and w
    if constexpr (kDecayOfTokens) {
      Quads w;
      load_w(chunk, w);
      to_gradients_of_w(form_, w, log_decay);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (exists(chunk, i % 4)) dw_[i / 4] += log_decay[i / 4][i % 4];
    }
    stage(chunk, Memory::kR, dr);
    stage(chunk, Memory::kK, dk);
    if (kDecayOfTokens && wide_decay_) {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        memory_.wide_decays(chunk).at(quad_slot_of(4 * t_ + i % 4), 16 * block_ + i / 4 * 8 + g_) =
            log_decay[i / 4][i % 4];
    } else if (kDecayOfTokens) {
      stage(chunk, Memory::kW, log_decay);
    }
  }

  __device__ __forceinline__ void stage(int chunk, int which, const Quads& x) const {
    memory_.rows(chunk, which).store(block_, lane_, transposed(left_of<T>(x[0], x[1])));
  }

  // A piece of 16 bytes of a row for each lane.
  __device__ __forceinline__ void write_rows(const View& view, int which) const {
    const int row = lane_ / 2, piece = lane_ % 2, token = token_of_quad_slot(row);
    write_pieces(tokens_.at(view, token) + 32 * block_ + 16 * piece, kTokens * 2 * view.stride[1], token,
                 [&](int chunk) { return memory_.rows(chunk, which).data + Tile<kSize>::offset(row, piece, block_); });
  }
  __device__ __forceinline__ void write_wide_decays(const View& view) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane_ / 4 + 8 * half, piece = lane_ % 4, token = token_of_quad_slot(row);
      write_pieces(tokens_.at(view, token) + 64 * block_ + 16 * piece, kTokens * 4 * view.stride[1], token,
                   [&](int chunk) { return &memory_.wide_decays(chunk).at(row, 16 * block_ + 4 * piece); });
    }
  }
  // Of each chunk the piece at staged(chunk). All are loaded first: nothing is loaded past a store.
  template <class Staged>
  __device__ __forceinline__ void write_pieces(char* to, int64_t chunk_bytes, int token, const Staged& staged) const {
    uint4 pieces[kChunks];
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) pieces[chunk] = *reinterpret_cast<const uint4*>(staged(chunk));
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk)
      if (chunk * kTokens + token < tokens_.count) ptx::st_global_b32(to + chunk * chunk_bytes, pieces[chunk]);
  }

  // The gradients of u and of a decay of all tokens.
  __device__ __forceinline__ void write_sums(const Wkv6Gradients& gradients, int64_t at) const {
    const auto write = [&](void* to, int c, float sum) {
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      if (t_ == 0) static_cast<float*>(to)[at + 16 * block_ + 8 * c + g_] = sum;
    };
    float dw[2][1] = {{dw_[0]}, {dw_[1]}};
    if constexpr (!kDecayOfTokens) to_gradients_of_w(form_, constant_w_, dw);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      write(gradients.du_sum, c, du_[c]);
      if constexpr (!kDecayOfTokens) write(gradients.dw_sum, c, dw[c][0]);
    }
  }

  const Memory& memory_;
  const Decay form_;
  const bool wide_decay_;
  const int lane_, g_, t_, block_;
  const BlockTokens& tokens_;
  Fragment state_[kBlocks], gradient_[kBlocks];  // in run(): S' and G'
  float bonus_[2], du_[2] = {};
  // Of a decay of all tokens.
  float constant_w_[2][1], constant_decay_[2], dw_[2] = {};
};

}  // namespace flash_rwkv::cuda::wkv6_chunk
