// Gradients of a chunk on their way to global memory, 16 columns a warp.
#pragma once

#include "cuda/wkv7/chunk_backward_finish.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

// By way of shared memory: a lane has pairs of columns, and writes 16 bytes. There is room where a warp alone comes to
// before the next barrier, once the products with G, dW and U are done: its rows of G, and its columns of the others.
template <class T, int kSize, int kStates>
class GradientWrites {
 public:
  using Memory = BackwardMemory<kSize, kStates>;

  // offset: of the chunk's first token, of `left` up to the end of the sequence.
  __device__ __forceinline__ GradientWrites(const Memory& memory, int chunk, int64_t offset, int64_t stride, int left)
      : memory_(memory),
        u_(memory.u(chunk)),
        block_(threadIdx.x / kWarp),
        lane_(threadIdx.x % kWarp),
        left_(left),
        stride_(stride),
        offset_(offset + 16 * block_) {}

  // f: values by tokens.
  __device__ __forceinline__ void stage_values(const Fragment& f) const { u_.store_transposed(block_, lane_, f); }

  __device__ __forceinline__ void write(const Wkv7Gradients& g, const SliceGradients& x) const {
    const bool wide = g.dw.dtype == DType::kFloat32;
    const Tile<kSize> rows = memory_.gradient(block_);
    stage(rows, 0, x.r);
    stage(rows, 1, x.k);
    stage(rows, 2, x.a);
    stage(rows, 3, x.b);
    if (!wide) stage(memory_.dw(), block_, x.log_decay);
    __syncwarp();
    const int token = BlockCopy::token(0, lane_);
    if (token < left_) {
      const int64_t at = offset_ + token * stride_ + 8 * BlockCopy::piece(lane_);
      write(g.dr, at, rows, 0);
      write(g.dk, at, rows, 1);
      write(g.da, at, rows, 2);
      write(g.db, at, rows, 3);
      write(g.dv, at, u_, block_);
      if (!wide) write(g.dw, at, memory_.dw(), block_);
    }
    if (wide) write_wide(static_cast<float*>(g.dw.data), x.log_decay);
    __syncwarp();  // what is next there is not staged by the lane that has read it
  }

 private:
  __device__ __forceinline__ void stage(const Tile<kSize>& to, int block, const float (&x)[2][4]) const {
    to.store(block, lane_, left_of<T>(x[0], x[1]));
  }

  __device__ __forceinline__ void write(const View& to, int64_t at, const Tile<kSize>& staged, int block) const {
    const char* const from = staged.data + Tile<kSize>::offset(BlockCopy::slot(lane_), BlockCopy::piece(lane_), block);
    *reinterpret_cast<uint4*>(static_cast<T*>(to.data) + at) = *reinterpret_cast<const uint4*>(from);
  }

  // Gradients in fp32, as they are.
  __device__ __forceinline__ void write_wide(float* to, const float (&x)[2][4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = lane_ / 4 * 2 + i % 2;
      const float* const pair = &x[i % 2][i / 2 * 2];
      if (token < left_)
        *reinterpret_cast<float2*>(to + offset_ + token * stride_ + lane_ % 4 * 2 + i / 2 * 8) =
            make_float2(pair[0], pair[1]);
    }
  }

  const Memory& memory_;
  const Tile<kSize> u_;
  const int block_, lane_, left_;
  const int64_t stride_, offset_;
};

}  // namespace flash_rwkv::cuda::wkv7_chunk
