// Gradients of r, k, w and u for the tokens between two checkpoints, from S before and G behind them: what the warps of
// a block share. The letters are those of chunk.cuh, with dX for the gradient of X:
//   dR~ = dY S;   dK^ = V G;   P = dY V', of which the part below the diagonal is the gradient of A.
// These are four chunks, and instead of an S and a G for each, there is a P for each pair of them. P is made by all
// warps; then each has 16 key columns to itself.
//
// Operands are bfloat16 whatever the inputs are: gradients have its range.
#pragma once

#include "cuda/wkv6/chunk.cuh"

namespace flash_rwkv::cuda::wkv6_chunk {

using GradientOperand = __nv_bfloat16;

constexpr int kChunks = static_cast<int>(kCheckpointTokens) / kTokens;

// Here tokens of a chunk stand in such an order, as rows and columns, that the columns of lane t of a matrix, 2t, 2t + 1,
// 2t + 8 and 2t + 9, are tokens 4t … 4t + 3.
__device__ __forceinline__ int quad_slot_of(int token) { return token % 4 / 2 * 8 + token / 4 * 2 + token % 2; }
__device__ __forceinline__ int token_of_quad_slot(int slot) { return slot % 8 / 2 * 4 + slot / 8 * 2 + slot % 2; }

// Vectors of fp32, which are read by columns.
template <int kColumns>
struct WideRows {
  static constexpr int kRowBytes = 4 * kColumns + 16;  // so that rows of even numbers do not share banks
  static constexpr int kBytes = kTokens * kRowBytes;
  char* data;

  __device__ __forceinline__ float& at(int row, int column) const {
    return reinterpret_cast<float*>(data + row * kRowBytes)[column];
  }
};

// Shared memory of a block.
template <int kSize, bool kDecayOfTokens>
struct GradientMemory {
  static constexpr int kThreads = kSize / 16 * kWarp;
  // Of a chunk; w if it is of tokens and not fp32. Where r, k and w were come their gradients.
  enum Rows { kDy, kV, kR, kK, kRows, kW = kRows };

  char* data;

  __device__ Tile<kSize> rows(int chunk, int which) const {
    if (which == kW) return {data + kDecays + chunk * kTile};
    return {data + (chunk * kRows + which) * kTile};
  }
  __device__ WideRows<kSize> wide_decays(int chunk) const { return {data + kDecays + chunk * WideRows<kSize>::kBytes}; }

  // P as right operands. Of one chunk: that of a token and an earlier one, in both places.
  __device__ uint4* pairs(int later, int earlier) const {
    return reinterpret_cast<uint4*>(data + kPairs) + (later * (later + 1) / 2 + earlier) * kWarp;
  }
  __device__ uint4* transposed_pairs(int later, int earlier) const {
    return pairs(kChunks, 0) + (later * (later - 1) / 2 + earlier) * kWarp;
  }
  // And P of the four tokens of lane t in fp32, a row for each.
  __device__ float4* quad(int chunk, int t) const {
    return reinterpret_cast<float4*>(data + kQuads) + (chunk * 4 + t) * 4;
  }

  // What a thread keeps of a chunk for itself: R~ and K^ as left operands, of its columns the chunk's decays, and what
  // goes through all of it.
  __device__ uint4& queries(int chunk) const { return of_thread<uint4>(kQueries, chunk); }
  __device__ uint4& keys(int chunk) const { return of_thread<uint4>(kKeys, chunk); }
  __device__ float2& decay(int chunk) const { return of_thread<float2>(kDecay, chunk); }
  __device__ float2& flow(int chunk) const { return of_thread<float2>(kFlow, chunk); }

 private:
  template <class X>
  __device__ X& of_thread(int at, int chunk) const {
    return reinterpret_cast<X*>(data + at)[chunk * kThreads + threadIdx.x];
  }

  static constexpr int kTile = Tile<kSize>::kBytes;
  static constexpr int kOfThreads = kChunks * kThreads;
  static constexpr int kPairs = kChunks * kRows * kTile;
  static constexpr int kQuads = kPairs + kChunks * kChunks * kWarp * static_cast<int>(sizeof(uint4));
  static constexpr int kQueries = kQuads + kChunks * 16 * static_cast<int>(sizeof(float4));
  static constexpr int kKeys = kQueries + kOfThreads * static_cast<int>(sizeof(uint4));
  static constexpr int kDecay = kKeys + kOfThreads * static_cast<int>(sizeof(uint4));
  static constexpr int kFlow = kDecay + kOfThreads * static_cast<int>(sizeof(float2));
  static constexpr int kDecays = kFlow + kOfThreads * static_cast<int>(sizeof(float2));

 public:
  static __host__ __device__ constexpr int bytes(bool wide_decay) {
    return kDecays + (kDecayOfTokens ? kChunks * (wide_decay ? WideRows<kSize>::kBytes : kTile) : 0);
  }
};

// The tokens of a block in global memory; where there are none zeros are read.
struct BlockTokens {
  int64_t batch, first, head;
  int count;  // from the first one on

  __device__ __forceinline__ char* at(const View& view, int token) const {
    const int64_t block = batch * view.stride[0] + first * view.stride[1] + head * view.stride[2];
    return static_cast<char*>(view.data) + (block + token * view.stride[1]) * bytes_of(view.dtype);
  }
  __device__ __forceinline__ int chunks() const { return (count + kTokens - 1) / kTokens; }
};

// Copies vectors of all chunks. A thread has one piece of 16 bytes of each chunk, or two of fp32.
template <class T, int kSize, bool kDecayOfTokens>
class GradientCopies {
 public:
  using Memory = GradientMemory<kSize, kDecayOfTokens>;

  __device__ __forceinline__ GradientCopies(const Memory& memory, const BlockTokens& tokens)
      : memory_(memory), tokens_(tokens) {}

  __device__ __forceinline__ void fetch(const View& view, int which) const {
    const int token = threadIdx.x / kPieces, piece = threadIdx.x % kPieces;
    const int to = Tile<kSize>::offset(quad_slot_of(token), piece);
    const char* from = tokens_.at(view, token) + piece * 16;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      ptx::cp_async_cg_shared_global<16>(memory_.rows(chunk, which).data + to, from,
                                         chunk * kTokens + token < tokens_.count ? 16 : 0);
      from += kTokens * 2 * view.stride[1];
    }
  }

  __device__ __forceinline__ void fetch_wide_decays(const View& view) const {
    const int piece = threadIdx.x % (2 * kPieces);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = threadIdx.x / (2 * kPieces) + half * kTokens / 2, token = token_of_quad_slot(row);
      const char* from = tokens_.at(view, token) + piece * 16;
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        ptx::cp_async_cg_shared_global<16>(&memory_.wide_decays(chunk).at(row, 4 * piece), from,
                                           chunk * kTokens + token < tokens_.count ? 16 : 0);
        from += kTokens * 4 * view.stride[1];
      }
    }
  }

  // Each thread makes operands of what it has copied itself.
  __device__ __forceinline__ void convert(int which) const {
    if constexpr (!std::is_same_v<T, GradientOperand>) {
      const int at = Tile<kSize>::offset(quad_slot_of(threadIdx.x / kPieces), threadIdx.x % kPieces);
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        uint4& x = *reinterpret_cast<uint4*>(memory_.rows(chunk, which).data + at);
        const auto as_operands = converted<GradientOperand, T>(Fragment{{x.x, x.y, x.z, x.w}});
        x = make_uint4(as_operands.x[0], as_operands.x[1], as_operands.x[2], as_operands.x[3]);
      }
    }
  }

 private:
  static constexpr int kPieces = kSize / 8;
  static_assert(Memory::kThreads == kTokens * kPieces);

  const Memory& memory_;
  const BlockTokens& tokens_;
};

// P, a pair of chunks a warp at a time.
template <int kSize, bool kDecayOfTokens>
__device__ __forceinline__ void pair_gradients(const GradientMemory<kSize, kDecayOfTokens>& memory, int chunks) {
  using Memory = GradientMemory<kSize, kDecayOfTokens>;
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  for (int pair = threadIdx.x / kWarp; pair < chunks * (chunks + 1) / 2; pair += kSize / 16) {
    const int later = pair < 1 ? 0 : pair < 3 ? 1 : pair < 6 ? 2 : 3;
    const int earlier = pair - later * (later + 1) / 2;
    const Tile<kSize> dy = memory.rows(later, Memory::kDy), v = memory.rows(earlier, Memory::kV);
    Sums p = zero_sums();
#pragma unroll
    for (int block = 0; block < kSize / 16; ++block)
      multiply_add<GradientOperand>(p, dy.load(block, lane), v.load_right(block, lane));
    const Fragment f = rounded<GradientOperand>(p), transposed_f = transposed(f);
    if (later != earlier) {
      store_fragment(memory.pairs(later, earlier), lane, as_right(f));
      store_fragment(memory.transposed_pairs(later, earlier), lane, as_right(transposed_f));
      continue;
    }
    // The rows of a lane are of tokens 4 (g / 2) …, its columns of tokens 4t …; equal ones are taken from the quad.
    const bool row_is_later = g / 2 > t;
    Fragment both;
#pragma unroll
    for (int i = 0; i < 4; ++i) both.x[i] = row_is_later ? f.x[i] : transposed_f.x[i];
    store_fragment(memory.pairs(later, later), lane, as_right(both));
    if (g / 2 == t) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        memory.quad(later, t)[2 * half + g % 2] =
            make_float4(p.x[0][2 * half], p.x[0][2 * half + 1], p.x[1][2 * half], p.x[1][2 * half + 1]);
    }
  }
}

}  // namespace flash_rwkv::cuda::wkv6_chunk
