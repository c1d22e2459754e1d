// Getting a chunk ready: all of it that does not depend on the state.
#pragma once

#include "cuda/wkv7/chunk_backward_tokens.cuh"
#include "cuda/wkv7/chunk_columns.cuh"
#include "cuda/wkv7/chunk_matrices.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

// Columns 16 begin … 16 end - 1, then join(), which is given what the matrices come of and says whether to make them.
// tokens: that have copied the chunk, whose first token is `first`, to where it is prepared.
template <class Chunk, class Tokens, class Join>
__device__ __forceinline__ void prepare_backward(const Chunk& chunk, const Tokens& tokens, Decay decay, int first,
                                                 int length, int begin, int end, const Join& join) {
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
  for (int block = begin; block < end; ++block) {
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
  if (!join(scores, diagonal)) return;
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

// A warp has all of a chunk.
template <class Chunk, class Tokens>
__device__ __forceinline__ void prepare_backward(const Chunk& chunk, const Tokens& tokens, Decay decay, int first,
                                                 int length) {
  prepare_backward(chunk, tokens, decay, first, length, 0, Tokens::kBlocks, [](auto&, auto&) {
    __syncwarp();
    return true;
  });
}

// Two warps of a block share a chunk, each has half of its columns. The second leaves its scores where G will be, the
// first adds them to its own and makes matrices. All warps come here: a chunk past the end has no columns.
template <class Memory, class Tokens>
__device__ __forceinline__ void prepare_in_pairs(const Memory& memory, const Tokens& tokens, Decay decay, int first,
                                                 int length) {
  constexpr int kHalf = Tokens::kBlocks / 2, kDiagonal = sizeof(Sums) / sizeof(float) * kLevels,
                kFloats = kDiagonal + 4;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, chunk = warp % kChunks;
  const bool is_second = warp >= kChunks;
  float* const of_second = reinterpret_cast<float*>(memory.gradient(0).data) + chunk * kFloats * kWarp + lane;
  const int first_token = first + chunk * kTokens;
  const int begin = is_second ? kHalf : 0;
  prepare_backward(memory.chunk(chunk), tokens, decay, first_token, length, begin,
                   first_token < length ? begin + kHalf : begin, [&](Sums(&scores)[kLevels], float (&diagonal)[4]) {
                     const auto for_each = [&](const auto& f) {
#pragma unroll
                       for (int i = 0; i < kDiagonal; ++i) f(scores[i / 8].x[i / 4 % 2][i % 4], of_second[i * kWarp]);
#pragma unroll
                       for (int i = 0; i < 4; ++i) f(diagonal[i], of_second[(kDiagonal + i) * kWarp]);
                     };
                     if (is_second) for_each([](float own, float& left) { left = own; });
                     __syncthreads();
                     if (!is_second) for_each([](float& own, float left) { own += left; });
                     return !is_second && first_token < length;
                   });
}

}  // namespace flash_rwkv::cuda::wkv7_chunk
