// A warp's part of getting a checkpoint's chunks ready: all of one chunk that does not depend on the state.
#pragma once

#include "cuda/wkv7/chunk_backward_tokens.cuh"
#include "cuda/wkv7/chunk_columns.cuh"
#include "cuda/wkv7/chunk_matrices.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

// tokens: where this warp's chunk, whose first token is `first`, has been copied to.
template <class Tokens, int kSize>
__device__ __forceinline__ void prepare_backward(const BackwardMemory<kSize>& memory, const Tokens& tokens,
                                                 const Columns<Operand>& columns, int chunk, int first) {
  using Memory = BackwardMemory<kSize>;
  const int lane = threadIdx.x % kWarp;
  uint4* const ab = memory.matrix(chunk, Memory::kInverseT);
  const TokenMatrices<Operand, false> matrices = {ab,
                                                  memory.matrix(chunk, Memory::kAk),
                                                  memory.matrix(chunk, Memory::kRbT),
                                                  memory.matrix(chunk, Memory::kRkT),
                                                  nullptr,
                                                  nullptr};
  Sums scores[kLevels] = {};
  float diagonal[4] = {};
  Raw raw = tokens.load(chunk, first, 0);
#pragma unroll 2
  for (int block = 0; block < kSize / 16; ++block) {
    const Raw current = raw;
    if (block + 1 < kSize / 16) raw = tokens.load(chunk, first, block + 1);
    __syncwarp();  // what is prepared goes where this has come from
    Slice x = columns.unpacked(current, first);
    columns.scale(current, x, scores, diagonal);
    columns.store_rows(memory.rows(chunk, Memory::kA), x.a, block);
    columns.store_rows(memory.rows(chunk, Memory::kR), x.r, block);
    columns.store_rows(memory.rows(chunk, Memory::kB), x.b, block);
    columns.store_rows(memory.rows(chunk, Memory::kK), x.k, block);
    columns.store_decay(memory.decay(chunk), x, block);
  }
  __syncwarp();
  matrices.clear();
  matrices.store_scores(scores);
  matrices.store_diagonal(diagonal);
  __syncwarp();

  // A right operand's words 1 and 2 are a left one's 2 and 1.
  const auto transpose = [&](auto from, auto to) {
    const RightFragment f = load_fragment<RightFragment>(memory.matrix(chunk, from), lane);
    store_fragment(memory.matrix(chunk, to), lane, as_right(transposed({{f.x[0], f.x[2], f.x[1], f.x[3]}})));
  };
  transpose(Memory::kAk, Memory::kAkT);
  transpose(Memory::kRbT, Memory::kRbT);
  transpose(Memory::kRkT, Memory::kRkT);
  const Fragment inverse = matrices.inverse();
  __syncwarp();
  store_fragment(memory.matrix(chunk, Memory::kInverse), lane, as_right(inverse));
  store_fragment(memory.matrix(chunk, Memory::kInverseT), lane, as_right(transposed(inverse)));
}

}  // namespace flash_rwkv::cuda::wkv7_chunk
