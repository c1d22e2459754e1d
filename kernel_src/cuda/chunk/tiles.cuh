// The tokens of a chunk in shared memory: where each lies, and how they come there.
#pragma once

#include "cuda/chunk/fragments.cuh"
#include "cuda/heads/layout.cuh"
#include "cuda/heads/stage.cuh"

namespace flash_rwkv::cuda::chunk {

constexpr int kTokens = 16;  // of a chunk

// Tokens in a chunk stand in an order of their own, as rows and columns of all its matrices: first the even ones, then
// the odd. So a lane has both tokens of a pair, in rows g and g + 8 of a fragment.
__device__ __forceinline__ int slot_of(int token) { return token % 2 * 8 + token / 2; }
__device__ __forceinline__ int token_of(int slot) { return slot % 8 * 2 + slot / 8; }

// One vector of kColumns elements of 16 bits for each token, rows in the order of slots. Pieces of eight elements are
// swapped within a row so that neither eight rows of one column of pieces nor those of a copy share banks.
template <int kColumns>
struct Tile {
  static constexpr int kRowBytes = 2 * kColumns;
  static constexpr int kBytes = kTokens * kRowBytes;
  char* data;

  __device__ __forceinline__ static int offset(int row, int piece) { return row * kRowBytes + (piece ^ row % 8) * 16; }
  // The same, `block` blocks of two pieces further: what comes before ^ is the same for all blocks.
  __device__ __forceinline__ static int offset(int row, int piece, int block) {
    return offset(row, piece) ^ 32 * block;
  }

  // Columns 16 block … 16 block + 15 of all tokens: tokens by columns.
  __device__ __forceinline__ Fragment load(int block, int lane) const {
    Fragment f;
    ptx::ldmatrix_x4(f.x, data + offset(lane % 16, lane / 16, block));
    return f;
  }

  // As a right operand.
  __device__ __forceinline__ RightFragment load_right(int block, int lane) const {
    RightFragment f;
    ptx::ldmatrix_x4(f.x, data + offset(lane / 16 * 8 + lane % 8, lane / 8 % 2, block));
    return f;
  }

  // The same, columns by tokens.
  __device__ __forceinline__ Fragment load_transposed(int block, int lane) const {
    Fragment f;
    ptx::ldmatrix_x4_trans(f.x, data + offset(lane / 16 * 8 + lane % 8, lane / 8 % 2, block));
    return f;
  }
  __device__ __forceinline__ RightFragment load_transposed_right(int block, int lane) const {
    RightFragment f;
    ptx::ldmatrix_x4_trans(f.x, data + offset(lane % 16, lane / 16, block));
    return f;
  }

  // A fragment, as load() gives it.
  __device__ __forceinline__ void store(int block, int lane, const Fragment& f) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    ptx::stmatrix_x4(data + offset(lane % 16, lane / 16, block), f.x);
#else
#pragma unroll
    for (int i = 0; i < 4; ++i)
      *reinterpret_cast<unsigned*>(data + offset(lane / 4 + i % 2 * 8, i / 2, block) + lane % 4 * 4) = f.x[i];
#endif
  }

  // As load_transposed() gives it.
  __device__ __forceinline__ void store_transposed(int block, int lane, const Fragment& f) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    ptx::stmatrix_x4_trans(data + offset(lane / 16 * 8 + lane % 8, lane / 8 % 2, block), f.x);
#else
    store(block, lane, transposed(f));
#endif
  }
};

// The same for vectors of fp32, which no fragment is made of as they lie.
template <int kColumns>
struct WideTile {
  static constexpr int kRowBytes = 4 * kColumns + 32;  // so that four rows do not share banks
  static constexpr int kBytes = kTokens * kRowBytes;
  char* data;

  __device__ __forceinline__ static int offset(int row, int piece) { return row * kRowBytes + piece * 16; }

  // Columns 2t and 2t + 1 of the `eight`-th eight.
  __device__ __forceinline__ float2 load(int row, int eight, int t) const {
    return *reinterpret_cast<const float2*>(data + offset(row, 2 * eight) + 8 * t);
  }
};

// Who copies what: each of a warp's copies takes kRows tokens, kPieces pieces of 16 bytes of each.
template <int kPieces_>
struct TileCopies {
  static constexpr int kPieces = kPieces_;
  static constexpr int kRows = kWarp / kPieces;
  static constexpr int kCount = kTokens / kRows;

  __device__ __forceinline__ static int token(int copy, int lane) { return copy * kRows + lane / kPieces; }
  __device__ __forceinline__ static int piece(int lane) { return lane % kPieces; }
};

// The same for 16 columns, which are one copy: eight lanes have eight rows, as they lie in shared memory.
struct BlockCopy {
  static constexpr int kCount = 1;

  __device__ __forceinline__ static int slot(int lane) { return lane % kTokens; }
  __device__ __forceinline__ static int token(int, int lane) { return token_of(slot(lane)); }
  __device__ __forceinline__ static int piece(int lane) { return lane / kTokens; }
};

}  // namespace flash_rwkv::cuda::chunk
