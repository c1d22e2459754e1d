// 16 value rows of the state, forward through the chunks of a checkpoint, and of its gradient, back through them.
#pragma once

#include "cuda/chunk/value_rows.cuh"
#include "cuda/wkv7/chunk_backward.cuh"

namespace flash_rwkv::cuda::wkv7_chunk {

// T: of the values' gradients.
template <class T, int kSize, int kStates = kChunks>
class BackwardRows : public ValueRows<T, kSize> {
 public:
  using Memory = BackwardMemory<kSize, kStates>;
  using Chunk = typename Memory::Chunk;
  using ValueRows<T, kSize>::ValueRows;
  using ValueRows<T, kSize>::kBlocks;

  // --- A saved matrix, by way of the tiles of these rows of the last two chunks. What a lane copies it loads itself.

  __device__ __forceinline__ void fetch(const Memory& memory, const float* matrix) const {
#pragma unroll
    for (int i = 0; i < kFours; ++i) ptx::cp_async_cg_shared_global<16>(staged(memory, i), matrix + this->place(i), 16);
  }

  __device__ __forceinline__ void load_fetched(const Memory& memory) {
#pragma unroll
    for (int i = 0; i < kFours; ++i) this->take(i, *reinterpret_cast<const float4*>(staged(memory, i)));
    __syncwarp();
  }

  // --- Chunks

  // Leaves the state before the chunk, and U. Goes on to the next state where `advance`.
  __device__ __forceinline__ void forward(const Memory& memory, int chunk, bool advance) {
    const Chunk prepared = memory.chunk(chunk);
    Fragment s[kBlocks];
    round(s);
    store_rows(memory.state(chunk, first_row_ / 16), s);
    const Fragment v = prepared.rows(Chunk::kV).load_transposed(first_row_ / 16, lane_);
    const Tile<kSize> a = prepared.rows(Chunk::kA);

    Sums w = zero_sums(), u_sums = zero_sums();
    multiply_add<Operand>(w, v, matrix(prepared, Chunk::kAk));
    add_columns(w, s, a);
    multiply_in_parts(u_sums, w, matrix(prepared, Chunk::kInverse));
    const Fragment u = rounded<Operand>(u_sums);
    store_transposed(memory.u(chunk), u);

    if (!advance) return;
    update(prepared, v, Chunk::kK, u, Chunk::kB);
  }

  // The same with G: leaves it, and dW. Returns the gradients of values, values by tokens.
  __device__ __forceinline__ Fragment backward(const Memory& memory, int chunk, bool has_dy) {
    const Chunk prepared = memory.chunk(chunk);
    Fragment gradient[kBlocks];
    round(gradient);
    store_rows(memory.gradient(first_row_ / 16), gradient);
    const Fragment dy = prepared.rows(Chunk::kDy).load_transposed(first_row_ / 16, lane_);
    const Sums dw_sums = gradient_of_w(prepared, gradient, dy);
    const Fragment dw = rounded<Operand>(dw_sums);
    store_transposed(memory.dw(), dw);

    const Tile<kSize> k = prepared.rows(Chunk::kK);
    Sums dv_sums = zero_sums();
    multiply_add<Operand>(dv_sums, dy, matrix(prepared, Chunk::kRkT));
#pragma unroll
    for (int block = 0; block < kBlocks; ++block)
      multiply_add<Operand>(dv_sums, gradient[block], k.load_right(block, lane_));
    multiply_add<Operand>(dv_sums, dw, matrix(prepared, Chunk::kAkT));

    go_back(prepared, has_dy, dy, dw_sums, dw);
    return rounded<T>(dv_sums);
  }

  // The same, for G alone.
  template <class AnyChunk>
  __device__ __forceinline__ void backward(const AnyChunk& prepared, bool has_dy) {
    Fragment gradient[kBlocks];
    round(gradient);
    const Fragment dy = prepared.rows(AnyChunk::kDy).load_transposed(first_row_ / 16, lane_);
    const Sums dw = gradient_of_w(prepared, gradient, dy);
    go_back(prepared, has_dy, dy, dw, rounded<Operand>(dw));
  }

 private:
  using ValueRows<T, kSize>::lane_;
  using ValueRows<T, kSize>::first_row_;
  using ValueRows<T, kSize>::s_;
  using ValueRows<T, kSize>::kFours;

  __device__ __forceinline__ char* staged(const Memory& memory, int i) const {
    constexpr int kEach = kFours / 2;  // in a tile
    return memory.state(kChunks - 1 - i / kEach, first_row_ / 16).data + (i % kEach * kWarp + lane_) * 16;
  }

  __device__ __forceinline__ void round(Fragment (&s)[kBlocks]) const {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) s[block] = rounded<Operand>(s_[block]);
  }

  template <class AnyChunk>
  __device__ __forceinline__ RightFragment matrix(const AnyChunk& prepared, int which) const {
    return load_fragment<RightFragment>(prepared.matrix(which), lane_);
  }

  // sum += rows times the transposed of all columns. Two sums, because each product waits for the one before.
  __device__ __forceinline__ void add_columns(Sums& sum, const Fragment (&rows)[kBlocks],
                                              const Tile<kSize>& columns) const {
    Sums other = zero_sums();
#pragma unroll
    for (int block = 0; block < kBlocks; block += 2) {
      multiply_add<Operand>(other, rows[block], columns.load_right(block, lane_));
      multiply_add<Operand>(sum, rows[block + 1], columns.load_right(block + 1, lane_));
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) sum.x[i / 4][i % 4] += other.x[i / 4][i % 4];
  }

  template <class AnyChunk>
  __device__ __forceinline__ Sums gradient_of_w(const AnyChunk& prepared, const Fragment (&gradient)[kBlocks],
                                                const Fragment& dy) const {
    const Tile<kSize> b = prepared.rows(AnyChunk::kB);
    Sums du = zero_sums(), dw = zero_sums();
    multiply_add<Operand>(du, dy, matrix(prepared, AnyChunk::kRbT));
    add_columns(du, gradient, b);
    multiply_in_parts(dw, du, matrix(prepared, AnyChunk::kInverseT));
    return dw;
  }

  // sum += x times the transposed of y, x in two parts.
  __device__ __forceinline__ static void multiply_in_parts(Sums& sum, const Sums& x, const RightFragment& y) {
    const Fragment most = rounded<Operand>(x);
    multiply_add<Operand>(sum, most, y);
    multiply_add<Operand>(sum, remainder<Operand>(x, most), y);
  }

  // Where only the final state has a gradient, what is left of it by and by is what dW has not taken away: there what
  // rounding dW leaves over has the place of dY.
  template <class AnyChunk>
  __device__ __forceinline__ void go_back(const AnyChunk& prepared, bool has_dy, const Fragment& dy,
                                          const Sums& dw_sums, const Fragment& dw) {
    Fragment first = dy;
    int columns = AnyChunk::kR;
    if (!has_dy) {
      first = remainder<Operand>(dw_sums, dw);
      columns = AnyChunk::kA;
    }
    update(prepared, first, columns, dw, AnyChunk::kA);
  }

  // Decay, then two products with columns.
  template <class AnyChunk>
  __device__ __forceinline__ void update(const AnyChunk& prepared, const Fragment& x, int columns_of_x,
                                         const Fragment& y, int columns_of_y) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      this->scale(block, prepared.decay());
      multiply_add<Operand>(s_[block], x, prepared.rows(columns_of_x).load_transposed_right(block, lane_));
      multiply_add<Operand>(s_[block], y, prepared.rows(columns_of_y).load_transposed_right(block, lane_));
    }
  }

  __device__ __forceinline__ void store_rows(const Tile<kSize>& to, const Fragment (&f)[kBlocks]) const {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) to.store(block, lane_, f[block]);
  }
  // [values, tokens] as tokens by values.
  __device__ __forceinline__ void store_transposed(const Tile<kSize>& to, const Fragment& f) const {
    to.store_transposed(first_row_ / 16, lane_, f);
  }
};

}  // namespace flash_rwkv::cuda::wkv7_chunk
