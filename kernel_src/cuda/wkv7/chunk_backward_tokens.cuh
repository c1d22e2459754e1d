// Tokens on their way from global to shared memory, in the background, and their gradients on the way back.
#pragma once

#include "cuda/wkv7/chunk_backward.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

// kWarps: of the block, which share the copies.
template <class T, int kSize, int kWarps>
class BackwardTokens {
 public:
  using Memory = BackwardMemory<kSize>;

  __device__ __forceinline__ BackwardTokens(const Memory& memory, bool wide_decay, int length)
      : memory_(memory),
        warp_(threadIdx.x / kWarp),
        lane_(threadIdx.x % kWarp),
        wide_decay_(wide_decay),
        length_(length) {}

  // Has the vectors of 16 tokens brought to the L2 cache.
  __device__ __forceinline__ void prefetch(int first) const {
    constexpr int kLineBytes = 128, kLines = 2 * kSize / kLineBytes;
    for (int i = threadIdx.x; i < HeadVectors::kVectors * kTokens * kLines; i += kWarps * kWarp) {
      const TokenRows rows = memory_.vectors().rows[i / (kTokens * kLines)];
      const int token = first + i / kLines % kTokens;
      if (rows.data != nullptr && token < length_) ptx::prefetch_global_l2(rows.at(token) + i % kLines * kLineBytes);
    }
  }

  // --- Copies to be waited for. Tokens past the end are zeros.

  // r, w, k, a and b of the chunk whose first token is `first`.
  __device__ __forceinline__ void fetch_columns(int chunk, int first) const {
    for (const auto which : {HeadVectors::kR, HeadVectors::kK, HeadVectors::kA, HeadVectors::kB})
      copy(memory_.raw(chunk, which), which, first);
    if (!wide_decay_) return copy(memory_.raw(chunk, HeadVectors::kW), HeadVectors::kW, first);
    for_each_piece<WideCopies>([&](int token, int piece) {
      copy_piece(memory_.wide_decay(chunk).data + WideTile<kSize>::offset(slot_of(token), piece), HeadVectors::kW,
                 first + token, piece);
    });
  }

  // Values, and gradients of y; absent ones are zeros.
  __device__ __forceinline__ void fetch_values(int chunk, int first) const {
    copy(memory_.rows(chunk, Memory::kV), HeadVectors::kV, first);
    copy(memory_.rows(chunk, Memory::kDy), HeadVectors::kDy, first);
  }

  // Each thread makes operands of the values that it has copied itself.
  __device__ __forceinline__ void convert_values(int chunk) const {
    if constexpr (!std::is_same_v<T, Operand>) {
      for_each_piece<Copies>([&](int token, int piece) {
        for (const int which : {Memory::kV, Memory::kDy}) {
          uint4& x =
              *reinterpret_cast<uint4*>(memory_.rows(chunk, which).data + Tile<kSize>::offset(slot_of(token), piece));
          x = make_uint4(as_operands<T>(x.x), as_operands<T>(x.y), as_operands<T>(x.z), as_operands<T>(x.w));
        }
      });
    }
  }

  // --- Columns 16 block … 16 block + 15 of a chunk

  __device__ __forceinline__ Raw load(int chunk, int block) const {
    const auto load_operands = [&](HeadVectors::Which which) {
      Fragment f = memory_.raw(chunk, which).load(block, lane_);
#pragma unroll
      for (unsigned& x : f.x) x = as_operands<T>(x);
      return f;
    };
    Raw x = {load_operands(HeadVectors::kR), load_operands(HeadVectors::kK), load_operands(HeadVectors::kA),
             load_operands(HeadVectors::kB)};
    if (wide_decay_) {
      const WideTile<kSize> tile = memory_.wide_decay(chunk);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = tile.load(lane_ / 4 + i % 2 * 8, 2 * block + i / 2, lane_ % 4);
        x.w[i % 2][i / 2 * 2] = pair.x, x.w[i % 2][i / 2 * 2 + 1] = pair.y;
      }
    } else {
      unpack<T>(memory_.raw(chunk, HeadVectors::kW).load(block, lane_), x.w);
    }
    return x;
  }

  // Writes gradients of these columns to `to`, that of the chunk's first token, by way of where the columns have been:
  // a lane has pairs of columns, and writes 16 bytes.
  __device__ __forceinline__ void write(int chunk, int block, HeadVectors::Which which, const float (&x)[2][4], T* to,
                                        int64_t stride, int tokens) const {
    const Tile<kSize> tile = memory_.raw(chunk, which);
    Fragment f;
#pragma unroll
    for (int i = 0; i < 4; ++i) f.x[i] = Pair<T>::pack(x[i % 2][i / 2 * 2], x[i % 2][i / 2 * 2 + 1]);
    tile.store(block, lane_, f);
    __syncwarp();
    const int slot = lane_ % kTokens, piece = 2 * block + lane_ / kTokens;
    const int token = slot % 8 * 2 + slot / 8;
    if (token < tokens)
      *reinterpret_cast<uint4*>(to + token * stride + piece * 8) =
          *reinterpret_cast<const uint4*>(tile.data + Tile<kSize>::offset(slot, piece));
  }

 private:
  using Copies = TileCopies<kSize / 8>;
  using WideCopies = TileCopies<kSize / 4>;

  // f(token, piece) for this thread's share.
  template <class AnyCopies, class F>
  __device__ __forceinline__ void for_each_piece(const F& f) const {
#pragma unroll
    for (int i = 0; i < (AnyCopies::kCount + kWarps - 1) / kWarps; ++i) {
      const int copy = i * kWarps + warp_;
      if (AnyCopies::kCount % kWarps == 0 || copy < AnyCopies::kCount)
        f(AnyCopies::token(copy, lane_), AnyCopies::piece(lane_));
    }
  }

  __device__ __forceinline__ void copy(const Tile<kSize>& to, HeadVectors::Which which, int first) const {
    for_each_piece<Copies>([&](int token, int piece) {
      copy_piece(to.data + Tile<kSize>::offset(slot_of(token), piece), which, first + token, piece);
    });
  }

  __device__ __forceinline__ void copy_piece(char* to, HeadVectors::Which which, int token, int piece) const {
    const TokenRows rows = memory_.vectors().rows[which];
    ptx::cp_async_cg_shared_global<16>(to, rows.at(token) + piece * 16,
                                       token < length_ && rows.data != nullptr ? 16 : 0);
  }

  const Memory memory_;
  const int warp_, lane_;
  const bool wide_decay_;
  const int length_;
};

}  // namespace flash_rwkv::cuda::wkv7_chunk
