// A warp's part of getting a checkpoint's chunks ready: all of one chunk that does not depend on the state.
#pragma once

#include "cuda/wkv7/chunk_backward_tokens.cuh"
#include "cuda/wkv7/chunk_columns.cuh"
#include "cuda/wkv7/chunk_matrices.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

// tokens: that have copied this warp's chunk, whose first token is `first`, to where it is prepared.
template <class Chunk, class Tokens>
__device__ __forceinline__ void prepare_backward(const Chunk& chunk, const Tokens& tokens, Decay decay, int first,
                                                 int length) {
  constexpr int kBlocks = Tokens::kBlocks;
  const int lane = threadIdx.x % kWarp;
  const Columns<Operand, Chunk::kAll, typename Tokens::Type> columns(decay, length);
  using Matrices = TokenMatrices<Operand, false, Chunk::kAll>;
  const Matrices matrices = {chunk.matrix(Chunk::kInverseT),
                             chunk.matrix(Chunk::kAk),
                             chunk.matrix(Chunk::kRbT),
                             chunk.matrix(Chunk::kRkT),
                             nullptr,
                             nullptr};

  Sums scores[kLevels] = {};
  float diagonal[4] = {};
#pragma unroll 1
  for (int block = 0; block < kBlocks; ++block) {
    const Raw raw = tokens.load(chunk, first, block);
    __syncwarp();  // what is prepared goes where this has come from
    Slice x = columns.unpacked(raw, first);
    columns.scale(raw, x, scores, diagonal);
    columns.store_rows(chunk.rows(Chunk::kA), x.a, block);
    columns.store_rows(chunk.rows(Chunk::kR), x.r, block);
    columns.store_rows(chunk.rows(Chunk::kB), x.b, block);
    if constexpr (Chunk::kAll) columns.store_rows(chunk.rows(Chunk::kK), x.k, block);
    columns.store_decay(chunk.decay(), x, block);
  }
  __syncwarp();
  matrices.clear();
  matrices.store_scores(scores);
  matrices.store_diagonal(diagonal);
  __syncwarp();

  // A right operand's words 1 and 2 are a left one's 2 and 1.
  const auto transpose = [&](int from, int to) {
    const RightFragment f = load_fragment<RightFragment>(chunk.matrix(from), lane);
    store_fragment(chunk.matrix(to), lane, as_right(transposed({{f.x[0], f.x[2], f.x[1], f.x[3]}})));
  };
  transpose(Chunk::kRbT, Chunk::kRbT);
  if constexpr (Chunk::kAll) {
    transpose(Chunk::kAk, Chunk::kAkT);
    transpose(Chunk::kRkT, Chunk::kRkT);
  }
  const Fragment inverse = matrices.inverse();
  __syncwarp();
  if constexpr (Chunk::kAll) store_fragment(chunk.matrix(Chunk::kInverse), lane, as_right(inverse));
  store_fragment(chunk.matrix(Chunk::kInverseT), lane, as_right(transposed(inverse)));
}

}  // namespace flash_rwkv::cuda::wkv7_chunk
