// Tokens on their way from global to shared memory, in the background, and their gradients on the way back.
#pragma once

#include "cuda/wkv7/chunk_backward.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

// kOwn: a warp of a block copies the 16 columns of its number. Else it copies all, and has chunks for itself.
template <class T, int kSize, bool kOwn>
class BackwardTokens {
 public:
  using Type = T;
  static constexpr int kBlocks = kSize / 16;  // of columns

  __device__ __forceinline__ BackwardTokens(const HeadVectors& vectors, bool wide_decay, int length)
      : vectors_(vectors),
        block_(kOwn ? threadIdx.x / kWarp : 0),
        lane_(threadIdx.x % kWarp),
        wide_decay_(wide_decay),
        length_(length) {}

  // Has the vectors of 16 tokens brought to the L2 cache.
  __device__ __forceinline__ void prefetch(int first) const {
    constexpr int kLine = 64, kLines = kSize / kLine;  // elements of 16 bits
    for (int i = lane_; i < HeadVectors::kVectors * kTokens * kLines; i += kWarp) {
      const HeadVectors::Rows rows = vectors_.rows[i / (kTokens * kLines)];
      const int token = first + i / kLines % kTokens;
      if (token >= 0 && token < rows.length) ptx::prefetch_global_l2(rows.at(token) + i % kLines * (2 * kLine));
    }
  }

  // --- Copies to be waited for, of the chunk whose first token is `first`. Tokens past the end are zeros.

  // r, w, k, a and b. A w in fp32 is not copied.
  template <class Chunk>
  __device__ __forceinline__ void fetch_columns(const Chunk& chunk, int first) const {
    copy<HeadVectors::kR, HeadVectors::kA, HeadVectors::kB, HeadVectors::kW, HeadVectors::kK>(chunk, first);
  }

  // And v, and gradients of y; absent ones are zeros.
  template <class Chunk>
  __device__ __forceinline__ void fetch(const Chunk& chunk, int first) const {
    if constexpr (Chunk::kAll)
      copy<HeadVectors::kR, HeadVectors::kA, HeadVectors::kB, HeadVectors::kW, HeadVectors::kDy, HeadVectors::kK,
           HeadVectors::kV>(chunk, first);
    else copy<HeadVectors::kR, HeadVectors::kA, HeadVectors::kB, HeadVectors::kW, HeadVectors::kDy>(chunk, first);
  }

  // Each thread makes operands of the values that it has copied itself.
  template <class Chunk>
  __device__ __forceinline__ void convert_values(const Chunk& chunk) const {
    if constexpr (!std::is_same_v<T, Operand>) {
      for_each_piece([&](int token, int piece) {
        const auto convert = [&](int which) {
          uint4& x = *reinterpret_cast<uint4*>(chunk.rows(which).data + Tile<kSize>::offset(slot_of(token), piece));
          x = make_uint4(converted<Operand, T>(x.x), converted<Operand, T>(x.y), converted<Operand, T>(x.z),
                         converted<Operand, T>(x.w));
        };
        convert(Chunk::kDy);
        if constexpr (Chunk::kAll) convert(Chunk::kV);
      });
    }
  }

  // --- Columns 16 block … 16 block + 15 of a chunk

  template <class Chunk>
  __device__ __forceinline__ Raw load(const Chunk& chunk, int first, int block) const {
    const auto load_columns = [&](HeadVectors::Which which) { return tile(chunk, which).load(block, lane_); };
    Raw x = {};
    x.r = load_columns(HeadVectors::kR);
    if constexpr (Chunk::kAll) x.k = load_columns(HeadVectors::kK);
    x.a = load_columns(HeadVectors::kA);
    x.b = load_columns(HeadVectors::kB);
    if (wide_decay_) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = first + lane_ / 4 * 2 + i % 2, column = 16 * block + i / 2 * 8 + lane_ % 4 * 2;
        const char* const from = vectors_.rows[HeadVectors::kW].at(token) + column * 4;
        const float2 pair = token < length_ ? *reinterpret_cast<const float2*>(from) : float2{};
        x.w[i % 2][i / 2 * 2] = pair.x, x.w[i % 2][i / 2 * 2 + 1] = pair.y;
      }
    } else {
      unpack<T>(load_columns(HeadVectors::kW), x.w);
    }
    return x;
  }

 private:
  using Copies = std::conditional_t<kOwn, BlockCopy, TileCopies<kSize / 8>>;

  // Where vectors are copied to.
  template <class Chunk>
  __device__ __forceinline__ static Tile<kSize> tile(const Chunk& chunk, HeadVectors::Which which) {
    switch (which) {
      case HeadVectors::kR: return chunk.rows(Chunk::kR);
      case HeadVectors::kK: return chunk.rows(Chunk::kK);
      case HeadVectors::kA: return chunk.rows(Chunk::kA);
      case HeadVectors::kB: return chunk.rows(Chunk::kB);
      case HeadVectors::kV: return chunk.rows(Chunk::kV);
      case HeadVectors::kDy: return chunk.rows(Chunk::kDy);
      default: return chunk.decays();
    }
  }

  // f(token, piece) for this thread's share.
  template <class F>
  __device__ __forceinline__ void for_each_piece(const F& f) const {
#pragma unroll
    for (int copy = 0; copy < Copies::kCount; ++copy) f(Copies::token(copy, lane_), 2 * block_ + Copies::piece(lane_));
  }

  // Where they come from is read for all first: no read goes past a copy.
  template <HeadVectors::Which... kWhich, class Chunk>
  __device__ __forceinline__ void copy(const Chunk& chunk, int first) const {
    const HeadVectors::Rows all[] = {vectors_.rows[kWhich]...};
    for_each_piece([&](int token, int piece) {
      const int offset = Tile<kSize>::offset(slot_of(token), piece);
      int i = 0;
      (copy_piece(tile(chunk, kWhich).data + offset, all[i++], first + token, piece), ...);
    });
  }

  __device__ __forceinline__ static void copy_piece(char* to, const HeadVectors::Rows& rows, int token, int piece) {
    ptx::cp_async_cg_shared_global<16>(to, rows.at(token) + piece * 16, token < rows.length ? 16 : 0);
  }

  const HeadVectors& vectors_;
  const int block_, lane_;
  const bool wide_decay_;
  const int length_;
};

}  // namespace flash_rwkv::cuda::wkv7_chunk
