// State and gradient in the backward pass on tensor cores.
//
// Products sum over the columns of a tile, and what goes to columns is summed over value rows: so a warp has 16 value rows
// of the gradient, 16 columns of it transposed, and those of the state. That takes the products of an update twice, and
// leaves no sums over warps or lanes to be formed. Arithmetic is in fp32 (split.cuh).
#pragma once

#include "cuda/heads/backward_memory.cuh"
#include "cuda/heads/in_flight.cuh"
#include "cuda/heads/state.cuh"
#include "cuda/heads/tensor_tile.cuh"

namespace flash_rwkv::cuda {

template <class Op, class T, class Shape>
class TensorTiles {
 public:
  using Memory = BackwardMemory<Op, T, Shape>;
  static_assert(Op::kSets == 2 && Op::kFeedback && kGroup == 4, "eight vectors, of which a lane has one token's two");
  static_assert(Shape::kWarpRows == kTensorRows && Shape::kBlockRows == Shape::kWidth, "a block has a head");

  __device__ __forceinline__ TensorTiles(float* shared, int, int size, int length)
      : shared_(shared),
        size_(size),
        length_(length),
        warp_(static_cast<int>(threadIdx.x) / kWarp),
        first_(kTensorRows * warp_) {}

  // --- The gradient from and to global memory, by way of that for the kept state

  __device__ __forceinline__ void load_gradient(const View& view, StateAccess access, int64_t slot, int64_t head) {
    const StateRows rows = {view, access, slot, head, 0, size_};
    float* const matrix = shared_ + Memory::kKept;
    if (access == StateAccess::kFours && view.dtype == DType::kFloat32) {
      for_each_four([&](int row, int column, float* x) {
        const bool exists = row < size_ && column < size_;
        SharedWords<uint4>(x).fetch(0, reinterpret_cast<const uint4*>(rows.at<float>(row, column)), exists);
      });
      wait_for_loads();
    } else {
#pragma unroll 1
      for (int i = threadIdx.x; i < Shape::kWidth * Shape::kWidth; i += Shape::kThreads)
        matrix[i] = element(rows, i / Shape::kWidth, i % Shape::kWidth);
    }
    __syncthreads();
    gradient_.for_each(
        [&](int step, int i, float& x) { x = matrix[row_of(i) * Shape::kWidth + Tile::column(step, i)]; });
    transposed_.for_each(
        [&](int step, int i, float& x) { x = matrix[Tile::column(step, i) * Shape::kWidth + row_of(i)]; });
    __syncthreads();
  }

  __device__ __forceinline__ void store_gradient(const View& view, int64_t slot, int64_t head) {
    const StateRows rows = {view, StateAccess::kFours, slot, head, 0, size_};
    float* const matrix = shared_ + Memory::kKept;
    __syncthreads();
    gradient_.for_each(
        [&](int step, int i, float x) { matrix[row_of(i) * Shape::kWidth + Tile::column(step, i)] = x; });
    __syncthreads();
    for_each_four([&](int row, int column, const float* x) {
      if (row >= size_ || column >= size_) return;
      float four[4];
      elements_of(x, four);
      store_four(rows.at<float>(row, column), four);
    });
  }

  // --- The kept state: every thread its own elements

  __device__ __forceinline__ void fetch_checkpoint(const float* matrix) {  // in the background
    SharedWords<uint2> words(kept());
    const bool exists = row_of(0) < size_;
    const float* from = matrix + Tile::column(0, 0) * size_ + row_of(0);
#pragma unroll
    for (int step = 0; step < Tile::kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        words.fetch(step * kKeptStep / 2 + i, reinterpret_cast<const uint2*>(from + i * size_),
                    exists && 8 * step < size_);
      from += 8 * size_;
    }
  }
  __device__ __forceinline__ void keep() {
#pragma unroll
    for (int step = 0; step < Tile::kSteps; ++step) {
      const float (&x)[4] = state_.x[step];
      *reinterpret_cast<float4*>(kept() + step * kKeptStep) = make_float4(x[0], x[2], x[1], x[3]);
    }
  }
  __device__ __forceinline__ void recall() {
#pragma unroll
    for (int step = 0; step < Tile::kSteps; ++step) {
      float (&x)[4] = state_.x[step];
      const float4 four = *reinterpret_cast<const float4*>(kept() + step * kKeptStep);
      x[0] = four.x, x[2] = four.y, x[1] = four.z, x[3] = four.w;
    }
  }

  // As soon as a step back is done with, so that the state takes no registers in the end of that.
  static constexpr bool kRecallsAhead = true;

  // --- A group

  static constexpr bool kScalesForward = true;

  __device__ __forceinline__ void prepare(bool back) const {
    float* const cells = shared_ + Memory::kScaled;
    if (back) {
      Memory::Preparation::run(shared_, nullptr, cells,
                               shared_ + Memory::kScratch + warp_ * Memory::Preparation::kFloats,
                               shared_ + Memory::kColumnShares);
      share_out<kGroup * kPairs, Shape::kThreads>([&](int i) {
        const int token = i / kPairs;
        put_pair(Cells::kWrittenRows, 0, token, token_vector(token, Op::written_row(0)));
        put_pair(Cells::kWrittenRows, 1, token, token_vector(token, Op::written_row(1)));
        put_pair(Cells::kReadRows, 0, token, token_vector(token, Op::kDy));
      });
    } else {
      Memory::Preparation::run_forward(shared_, cells);
      share_out<kGroup * Shape::kWidth, Shape::kThreads>([&](int i) {
        const int token = i / Shape::kWidth, row = i % Shape::kWidth;
        Cells::put(cells + Cells::kWrittenRows + Cells::of_token(0, token, row),
                   token_vector(token, Op::written_row(0))[row], token_vector(token, Op::written_row(1))[row]);
      });
    }
  }

  __device__ __forceinline__ void forward() {
    state_.decay_rows_and_add(Tile::left_of_pairs(cells(Cells::kWritten), first_, size_ >> 16),
                              cells(Cells::kWrittenRows), cells(Cells::kWhole), first_);
  }

  __device__ __forceinline__ void begin_back() { gradient_.products(cells(Cells::kWritten), rows_); }

  // first: the group's first token in the sequence.
  __device__ __forceinline__ void back(int first) {
    add_later_rows();
    write_rows(first);
    float sums[4];
    transposed_.products(cells(Cells::kWrittenRows), sums);
    leave_sums(sums, Sums::written(0, t()), Sums::written(1, t()));
    leave_overlap();
    __syncthreads();  // for dsa

    state_.products(cells(Cells::kReadRows), sums);
    leave_sums(sums, Sums::read(0, t()), Sums::read(1, t()));
    const auto left = Tile::left_of_elements(token_vector(t(), Op::kDy) + row_of(0), own_dsa(), size_ >> 16);
    gradient_.decay_columns_and_add(left, cells(Cells::kRead), cells(Cells::kWhole));
    transposed_.decay_rows_and_add(Tile::left_of_tokens(cells(Cells::kRead), first_, size_ >> 16),
                                   shared_ + Memory::kRowCells, cells(Cells::kWhole), first_);
    row_factors<Op, Shape>(shared_, shared_ + Memory::kDsa + first_, first_, shared_ + Memory::kRowShares);
  }

 private:
  using Tile = TensorTile<Shape::kWidth>;
  using Cells = typename Memory::Scaled;
  using Sums = typename Memory::Sums;
  static constexpr int kPairs = Shape::kWidth / 2;
  static constexpr int kKeptStep = 4 * Shape::kThreads;

  __device__ __forceinline__ static int g() { return lane_row(); }
  __device__ __forceinline__ static int t() { return lane_column(); }
  __device__ __forceinline__ int row_of(int i) const { return first_ + Tile::row(i); }

  __device__ __forceinline__ float* kept() const { return shared_ + Memory::kKept + 4 * threadIdx.x; }
  // Of token t, at this lane's rows.
  __device__ __forceinline__ float* own_dsa() const {
    return shared_ + Memory::kDsa + t() * kDsaStride<Shape> + row_of(0);
  }

  // f(row, first column, its element) for all fours of the block's matrix in shared memory.
  template <class F>
  __device__ __forceinline__ void for_each_four(const F& f) const {
    constexpr int kFours = Shape::kWidth / 4;
    share_out<Shape::kWidth * kFours, Shape::kThreads>(
        [&](int i) { f(i / kFours, i % kFours * 4, shared_ + Memory::kKept + 4 * i); });
  }

  __device__ __forceinline__ static float element(const StateRows& rows, int row, int column) {
    if (rows.access == StateAccess::kAbsent || row >= rows.size || column >= rows.size) return 0.0f;
    const View& view = rows.view;
    const int64_t at =
        rows.slot * view.stride[0] + rows.head * view.stride[1] + row * view.stride[2] + column * view.stride[3];
    return load_as_float(view.data, at, view.dtype);
  }

  __device__ __forceinline__ const float* cells(int which) const { return shared_ + Memory::kScaled + which; }
  __device__ __forceinline__ const float* token_vector(int token, int vector) const {
    return shared_ + token * Memory::kToken + vector * Shape::kWidth;
  }
  // One of kPairs threads each.
  __device__ __forceinline__ void put_pair(int which, int set, int token, const float* vector) const {
    const int row = static_cast<int>(threadIdx.x) % kPairs * 2;
    const float2 pair = *reinterpret_cast<const float2*>(vector + row);
    Cells::put(shared_ + Memory::kScaled + which + Cells::of_pair(set, token, row), pair.x, pair.y);
  }

  // What later tokens of the group add to the gradients of the row vectors that token t writes.
  __device__ __forceinline__ void add_later_rows() {
    using Factors = typename Memory::Factors;
    float* const table = shared_ + Memory::kWholeFactors + warp_ * Memory::kOwnFactors;
    Factors::tabulate(shared_ + Memory::kColumnShares, table);
    float factors[2][kGroup];
    const auto load_factors = [&](bool is_behind) {
#pragma unroll
      for (int set = 0; set < 2; ++set) elements_of(table + Factors::row_of_table(is_behind, set, t()), factors[set]);
    };
    load_factors(false);
#pragma unroll
    for (int s = 0; s < kGroup; ++s) {
      float dy[2];
      elements_of(token_vector(s, Op::kDy) + row_of(0), dy);
#pragma unroll
      for (int i = 0; i < 4; ++i) rows_[i] = fmaf(dy[i / 2], factors[i % 2][s], rows_[i]);
    }
    load_factors(true);
#pragma unroll
    for (int s = kGroup - 1; s > 0; --s) {
      const int owner = static_cast<int>(threadIdx.x) % kWarp / 4 * 4 + s;
      const float dsa[2] = {__shfl_sync(kAllLanes, rows_[1], owner), __shfl_sync(kAllLanes, rows_[3], owner)};
#pragma unroll
      for (int i = 0; i < 4; ++i) rows_[i] = fmaf(dsa[i / 2], factors[i % 2][s], rows_[i]);
    }
  }

  // dv to global memory; dsa, together with dy, to all warps.
  __device__ __forceinline__ void write_rows(int first) const {
    const GradientRows dv = reinterpret_cast<const GradientRows*>(shared_ + Memory::kGradientRows)[Op::kGradients];
    const int row = row_of(0);
    if (first + t() < length_ && row < size_)
      store_pair(reinterpret_cast<T*>(dv.data + (first + t()) * dv.token_bytes) + row, rows_[0], rows_[2]);
    store_pair(own_dsa(), rows_[1], rows_[3]);
    Cells::put(shared_ + Memory::kScaled + Cells::kReadRows + Cells::of_pair(1, t(), row), rows_[1], rows_[3]);
    float dy[2];
    elements_of(token_vector(t(), Op::kDy) + row, dy);
#pragma unroll
    for (int i = 0; i < 2; ++i)
      Cells::put(shared_ + Memory::kRowCells + Cells::of_token(0, t(), row + i), dy[i], rows_[2 * i + 1]);
  }

  // Sums over value rows, for this lane's columns.
  __device__ __forceinline__ void leave_sums(const float (&sums)[4], int first, int second) const {
    float* const to = shared_ + Memory::kSums + row_of(0);
    store_pair(to + first, sums[0], sums[2]);
    store_pair(to + second, sums[1], sums[3]);
  }

  __device__ __forceinline__ void leave_overlap() {
    float overlap[2] = {};
    state_.for_each(
        [&](int step, int i, float x) { overlap[i / 2] = fmaf(x, transposed_.x[step][i], overlap[i / 2]); });
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      overlap[h] += __shfl_xor_sync(kAllLanes, overlap[h], 1);
      overlap[h] += __shfl_xor_sync(kAllLanes, overlap[h], 2);
      if (t() == 0) shared_[Memory::kSums + Sums::kWhole + row_of(2 * h)] = overlap[h];
    }
  }

  float* const shared_;
  const int size_, length_;
  const int warp_;
  const int first_;  // of this warp's value rows, and of its columns
  Tile gradient_, transposed_, state_;
  float rows_[4];  // gradients of what token t writes, both vectors at row 2 g, then at row 2 g + 1
};

}  // namespace flash_rwkv::cuda
