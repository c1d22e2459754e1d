// A warp's part of getting a checkpoint's chunks ready: all of one chunk that does not depend on the state.
#pragma once

#include "cuda/wkv7/chunk_backward.cuh"
#include "cuda/wkv7/chunk_columns.cuh"
#include "cuda/wkv7/chunk_matrices.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

// Copies values and gradients of y; absent ones are zeros. To be waited for.
template <class T, int kSize>
class BackwardValues {
 public:
  using Memory = BackwardMemory<kSize>;

  __device__ __forceinline__ BackwardValues(const Wkv7Params& p, const Wkv7Gradients& g, const HeadOffsets& offsets,
                                            int length)
      : p_(p), g_(g), offsets_(offsets), lane_(threadIdx.x % kWarp), length_(length) {}

  __device__ __forceinline__ void fetch(const Memory& memory, int chunk, int first) const {
    for_each_piece([&](int token, int offset) {
      const auto copy = [&](int which, const View& view, int64_t at) {
        const char* const from = static_cast<const char*>(view.data) + at + (first + token) * (2 * view.stride[1]) +
                                 Copies::piece(lane_) * 16;
        ptx::cp_async_cg_shared_global<16>(memory.rows(chunk, which).data + offset, from,
                                           first + token < length_ ? 16 : 0);
      };
      copy(Memory::kV, p_.v, offsets_.v);
      if (g_.grad_y.data != nullptr) copy(Memory::kDy, g_.grad_y, offsets_.dy);
      else *reinterpret_cast<uint4*>(memory.rows(chunk, Memory::kDy).data + offset) = make_uint4(0, 0, 0, 0);
    });
    ptx::cp_async_commit_group();
  }

  // Each thread makes operands of what it has copied itself.
  __device__ __forceinline__ void wait(const Memory& memory, int chunk) const {
    ptx::cp_async_wait_all();
    if constexpr (!std::is_same_v<T, Operand>) {
      for_each_piece([&](int, int offset) {
        for (const int which : {Memory::kV, Memory::kDy}) {
          uint4& x = *reinterpret_cast<uint4*>(memory.rows(chunk, which).data + offset);
          x = make_uint4(as_operands<T>(x.x), as_operands<T>(x.y), as_operands<T>(x.z), as_operands<T>(x.w));
        }
      });
    }
  }

 private:
  using Copies = TileCopies<kSize / 8>;

  template <class F>
  __device__ __forceinline__ void for_each_piece(const F& f) const {
#pragma unroll
    for (int i = 0; i < Copies::kCount; ++i) {
      const int token = Copies::token(i, lane_);
      f(token, Tile<kSize>::offset(slot_of(token), Copies::piece(lane_)));
    }
  }

  const Wkv7Params& p_;
  const Wkv7Gradients& g_;
  const HeadOffsets& offsets_;
  const int lane_, length_;
};

template <class T, int kSize>
__device__ __forceinline__ void prepare_backward(const BackwardMemory<kSize>& memory, const ChunkSource<T>& source,
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
  matrices.clear();

  Sums scores[kLevels] = {};
  float diagonal[4] = {};
  const auto rows = source.rows(first);
  Raw raw = source.load(rows, 0);
#pragma unroll 2
  for (int block = 0; block < kSize / 16; ++block) {
    const Raw current = raw;
    if (block + 1 < kSize / 16) raw = source.load(rows, block + 1);
    Slice x = columns.unpacked(current, first);
    columns.scale(current, x, scores, diagonal);
    columns.store_rows(memory.rows(chunk, Memory::kA), x.a, block);
    columns.store_rows(memory.rows(chunk, Memory::kR), x.r, block);
    columns.store_rows(memory.rows(chunk, Memory::kB), x.b, block);
    columns.store_rows(memory.rows(chunk, Memory::kK), x.k, block);
    columns.store_decay(memory.decay(chunk), x, block);
  }
  matrices.store_scores(scores);
  matrices.store_diagonal(diagonal);
  __syncwarp();

  // A right operand's words 1 and 2 are a left one's 2 and 1.
  const auto transpose = [&](int from, int to) {
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
