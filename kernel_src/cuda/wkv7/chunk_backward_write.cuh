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
      // All are loaded first: a load into registers that a store is yet to read waits for the store.
      const uint4 r = staged(rows, 0), k = staged(rows, 1), a = staged(rows, 2), b = staged(rows, 3);
      const uint4 v = staged(u_, block_), w = wide ? uint4{} : staged(memory_.dw(), block_);
      write(g.dr, at, r);
      write(g.dk, at, k);
      write(g.da, at, a);
      write(g.db, at, b);
      write(g.dv, at, v);
      if (!wide) write(g.dw, at, w);
    }
    if (wide) write_wide(static_cast<float*>(g.dw.data), x.log_decay);
    __syncwarp();  // what is next there is not staged by the lane that has read it
  }

 private:
  __device__ __forceinline__ void stage(const Tile<kSize>& to, int block, const float (&x)[2][4]) const {
    to.store(block, lane_, left_of<T>(x[0], x[1]));
  }

  // The 16 bytes that this lane writes.
  __device__ __forceinline__ uint4 staged(const Tile<kSize>& in, int block) const {
    const int offset = Tile<kSize>::offset(BlockCopy::slot(lane_), BlockCopy::piece(lane_), block);
    return *reinterpret_cast<const uint4*>(in.data + offset);
  }

  __device__ __forceinline__ void write(const View& to, int64_t at, const uint4& x) const {
    ptx::st_global_b32(static_cast<T*>(to.data) + at, x);
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
