// Tokens on their way from global to shared memory, in the background, and their gradients on the way back.
#pragma once

#include "cuda/wkv7/chunk_backward.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

// kWarps: that share the copies, all of a block or one.
template <class T, int kSize, int kWarps>
class BackwardTokens {
 public:
  using Type = T;
  static constexpr int kBlocks = kSize / 16;  // of columns

  __device__ __forceinline__ BackwardTokens(const HeadVectors& vectors, bool wide_decay, int length)
      : vectors_(vectors),
        warp_(threadIdx.x / kWarp % kWarps),
        lane_(threadIdx.x % kWarp),
        wide_decay_(wide_decay),
        length_(length) {}

  // Has the vectors of 16 tokens brought to the L2 cache.
  __device__ __forceinline__ void prefetch(int first) const {
    constexpr int kLine = 64, kLines = kSize / kLine;  // elements of 16 bits
    for (int i = warp_ * kWarp + lane_; i < HeadVectors::kVectors * kTokens * kLines; i += kWarps * kWarp) {
      const TokenRows rows = vectors_.rows[i / (kTokens * kLines)];
      const int token = first + i / kLines % kTokens;
      if (rows.data != nullptr && token >= 0 && token < length_)
        ptx::prefetch_global_l2(rows.at(token) + i % kLines * (2 * kLine));
    }
  }

  // --- Copies to be waited for. Tokens past the end are zeros.

  // r, w, k, a and b of the chunk whose first token is `first`. A w in fp32 is not copied.
  template <class Chunk>
  __device__ __forceinline__ void fetch_columns(const Chunk& chunk, int first) const {
    copy(tile(chunk, HeadVectors::kR), HeadVectors::kR, first);
    if constexpr (Chunk::kAll) copy(tile(chunk, HeadVectors::kK), HeadVectors::kK, first);
    copy(tile(chunk, HeadVectors::kA), HeadVectors::kA, first);
    copy(tile(chunk, HeadVectors::kB), HeadVectors::kB, first);
    if (!wide_decay_) copy(tile(chunk, HeadVectors::kW), HeadVectors::kW, first);
  }

  // Values, and gradients of y; absent ones are zeros.
  template <class Chunk>
  __device__ __forceinline__ void fetch_values(const Chunk& chunk, int first) const {
    copy(chunk.rows(Chunk::kDy), HeadVectors::kDy, first);
    if constexpr (Chunk::kAll) copy(chunk.rows(Chunk::kV), HeadVectors::kV, first);
  }

  // Each thread makes operands of the values that it has copied itself.
  template <class Chunk>
  __device__ __forceinline__ void convert_values(const Chunk& chunk) const {
    if constexpr (!std::is_same_v<T, Operand>) {
      for_each_piece([&](int token, int piece) {
        const auto convert = [&](int which) {
          uint4& x = *reinterpret_cast<uint4*>(chunk.rows(which).data + Tile<kSize>::offset(slot_of(token), piece));
          x = make_uint4(as_operands<Operand, T>(x.x), as_operands<Operand, T>(x.y), as_operands<Operand, T>(x.z),
                         as_operands<Operand, T>(x.w));
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

  // Writes gradients of these columns to `to`, that of the chunk's first token, by way of where the columns have been:
  // a lane has pairs of columns, and writes 16 bytes.
  template <class Chunk>
  __device__ __forceinline__ void write(const Chunk& chunk, int block, HeadVectors::Which which, const float (&x)[2][4],
                                        T* to, int64_t stride, int tokens) const {
    const Tile<kSize> staged = tile(chunk, which);
    Fragment f;
#pragma unroll
    for (int i = 0; i < 4; ++i) f.x[i] = Pair<T>::pack(x[i % 2][i / 2 * 2], x[i % 2][i / 2 * 2 + 1]);
    staged.store(block, lane_, f);
    __syncwarp();
    const int slot = lane_ % kTokens, piece = 2 * block + lane_ / kTokens;
    const int token = slot % 8 * 2 + slot / 8;
    if (token < tokens)
      *reinterpret_cast<uint4*>(to + token * stride + piece * 8) =
          *reinterpret_cast<const uint4*>(staged.data + Tile<kSize>::offset(slot, piece));
  }

 private:
  using Copies = TileCopies<kSize / 8>;
  static_assert(Copies::kCount % kWarps == 0);

  // Where columns are copied to.
  template <class Chunk>
  __device__ __forceinline__ static Tile<kSize> tile(const Chunk& chunk, HeadVectors::Which which) {
    switch (which) {
      case HeadVectors::kR: return chunk.rows(Chunk::kR);
      case HeadVectors::kK: return chunk.rows(Chunk::kK);
      case HeadVectors::kA: return chunk.rows(Chunk::kA);
      case HeadVectors::kB: return chunk.rows(Chunk::kB);
      default: return chunk.decays();
    }
  }

  // f(token, piece) for this thread's share.
  template <class F>
  __device__ __forceinline__ void for_each_piece(const F& f) const {
#pragma unroll
    for (int i = 0; i < Copies::kCount / kWarps; ++i) {
      const int copy = i * kWarps + warp_;
      f(Copies::token(copy, lane_), Copies::piece(lane_));
    }
  }

  __device__ __forceinline__ void copy(const Tile<kSize>& to, HeadVectors::Which which, int first) const {
    for_each_piece([&](int token, int piece) {
      copy_piece(to.data + Tile<kSize>::offset(slot_of(token), piece), which, first + token, piece);
    });
  }

  __device__ __forceinline__ void copy_piece(char* to, HeadVectors::Which which, int token, int piece) const {
    const TokenRows rows = vectors_.rows[which];
    ptx::cp_async_cg_shared_global<16>(to, rows.at(token) + piece * 16,
                                       token < length_ && rows.data != nullptr ? 16 : 0);
  }

  const HeadVectors& vectors_;
  const int warp_, lane_;
  const bool wide_decay_;
  const int length_;
};

}  // namespace flash_rwkv::cuda::wkv7_chunk
