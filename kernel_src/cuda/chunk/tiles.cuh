// The tokens of a chunk in shared memory: where each lies, and how they come there.
#pragma once

#include "cuda/chunk/fragments.cuh"
#include "cuda/heads/stage.cuh"

namespace flash_rwkv::cuda::chunk {

constexpr int kTokens = 16;  // of a chunk

// Tokens in a chunk stand in an order of their own, as rows and columns of all its matrices: first the even ones, then
// the odd. So a lane has both tokens of a pair, in rows g and g + 8 of a fragment.
__device__ __forceinline__ int slot_of(int token) { return token % 2 * 8 + token / 2; }

// One vector of kColumns elements of 16 bits for each token, rows in the order of slots. Pieces of eight elements are
// swapped within a row so that neither eight rows of one column of pieces nor those of a copy share banks.
template <int kColumns>
struct Tile {
  static constexpr int kRowBytes = 2 * kColumns;
  static constexpr int kBytes = kTokens * kRowBytes;
  char* data;

  __device__ __forceinline__ char* piece(int row, int piece) const {
    return data + row * kRowBytes + (piece ^ row % 8) * 16;
  }

  // Columns 16 block … 16 block + 15: of all tokens, tokens by columns.
  __device__ __forceinline__ Fragment load(int block, int lane) const {
    Fragment f;
    ptx::ldmatrix_x4(f.x, piece(lane % 16, 2 * block + lane / 16));
    return f;
  }

  // The same, columns by tokens.
  __device__ __forceinline__ Fragment load_transposed(int block, int lane) const {
    Fragment f;
    ptx::ldmatrix_x4_trans(f.x, piece(lane / 16 * 8 + lane % 8, 2 * block + lane / 8 % 2));
    return f;
  }

  // Elements 2t and 2t + 1 of a piece.
  __device__ __forceinline__ void store(int row, int at_piece, int t, unsigned word) const {
    *reinterpret_cast<unsigned*>(piece(row, at_piece) + 4 * t) = word;
  }

  // Starts copies of kPieces pieces of each row, from `first_piece` on; zeros for tokens from `length` on. `from`: the
  // sequence's first token.
  template <int kPieces>
  __device__ __forceinline__ void fetch(const TokenRows& from, int first, int length, int first_piece, int lane) const {
#pragma unroll
    for (int i = 0; i < kTokens * kPieces / kWarp; ++i) {
      const int index = i * kWarp + lane;
      const int token = index / kPieces, at = first_piece + index % kPieces;
      const bool wanted = first + token < length;
      const char* const source = from.data + (wanted ? (first + token) * from.token_bytes : 0) + at * 16;
      ptx::cp_async_cg_shared_global<16>(piece(slot_of(token), at), source, wanted ? 16 : 0);
    }
  }
};

// The same for vectors of fp32, which no fragment is made of as they lie.
template <int kColumns>
struct WideTile {
  static constexpr int kRowBytes = 4 * kColumns + 32;  // so that four rows do not share banks
  static constexpr int kBytes = kTokens * kRowBytes;
  char* data;

  // Columns 2t and 2t + 1 of the eight that piece `eight` has.
  __device__ __forceinline__ float2 load(int row, int eight, int t) const {
    return *reinterpret_cast<const float2*>(data + row * kRowBytes + eight * 32 + 8 * t);
  }

  // As Tile::fetch; a piece is four elements here.
  template <int kPieces>
  __device__ __forceinline__ void fetch(const TokenRows& from, int first, int length, int first_piece, int lane) const {
#pragma unroll
    for (int i = 0; i < kTokens * kPieces / kWarp; ++i) {
      const int index = i * kWarp + lane;
      const int token = index / kPieces, at = first_piece + index % kPieces;
      const bool wanted = first + token < length;
      const char* const source = from.data + (wanted ? (first + token) * from.token_bytes : 0) + at * 16;
      ptx::cp_async_cg_shared_global<16>(data + slot_of(token) * kRowBytes + at * 16, source, wanted ? 16 : 0);
    }
  }
};

}  // namespace flash_rwkv::cuda::chunk
