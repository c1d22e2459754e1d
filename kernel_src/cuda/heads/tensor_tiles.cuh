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
  using Tokens = typename Memory::Stage::Tokens;
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
    if (access == StateAccess::kFours && view.dtype == DType::kFloat32) {
      for_each_four([&](int row, int column, float* x) {
        const bool exists = row < size_ && column < size_;
        SharedWords<uint4>(x).fetch(0, reinterpret_cast<const uint4*>(rows.at<float>(row, column)), exists);
      });
      wait_for_loads();
    } else {
#pragma unroll 1
      for (int i = threadIdx.x; i < Shape::kWidth * Shape::kWidth; i += Shape::kThreads) {
        const int row = i / Shape::kWidth, column = i % Shape::kWidth;
        *kept_at(row, column) = element(rows, row, column);
      }
    }
    __syncthreads();
    gradient_.for_each([&](int step, int i, float& x) { x = *kept_at(row_of(i), Tile::column(step, i)); });
    recall(transposed_);
    __syncthreads();
  }

  __device__ __forceinline__ void store_gradient(const View& view, int64_t slot, int64_t head) {
    const StateRows rows = {view, StateAccess::kFours, slot, head, 0, size_};
    __syncthreads();
    gradient_.for_each([&](int step, int i, float x) { *kept_at(row_of(i), Tile::column(step, i)) = x; });
    __syncthreads();
    for_each_four([&](int row, int column, const float* x) {
      if (row >= size_ || column >= size_) return;
      float four[4];
      elements_of(x, four);
      store_four(rows.at<float>(row, column), four);
    });
  }

  // --- The kept state

  __device__ __forceinline__ void fetch_checkpoint(const float* matrix) {  // in the background
    for_each_four([&](int row, int column, float* x) {
      const bool exists = row < size_ && column < size_;
      SharedWords<uint4>(x).fetch(0, reinterpret_cast<const uint4*>(matrix + row * size_ + column), exists);
    });
  }
  __device__ __forceinline__ void keep() {
    for_each_kept([&](int step, int i, float2& kept) { kept = make_float2(state_.x[step][i], state_.x[step][i + 2]); });
  }
  __device__ __forceinline__ void recall() { recall(state_); }

  // As soon as a step back is done with, so that the state takes no registers in the end of that.
  static constexpr bool kRecallsAhead = true;

  // --- A group

  static constexpr bool kScalesForward = true;

  __device__ __forceinline__ void prepare(const Tokens& tokens, bool back) const {
    float* const cells = shared_ + Memory::kScaled;
    if (back) {
      Memory::Preparation::run(tokens, nullptr, cells, shared_ + Memory::kColumnShares);
      share_out<kGroup * kPairs, Shape::kThreads>([&](int i) {
        const int token = i / kPairs;
        put_pair(Cells::kWrittenRows, 0, token, tokens.vector(Op::written_row(0), token));
        put_pair(Cells::kWrittenRows, 1, token, tokens.fp32_vector(Op::written_row(1), token));
        put_pair(Cells::kReadRows, 0, token, tokens.vector(Op::kDy, token));
      });
    } else {
      Memory::Preparation::run_forward(tokens, cells);
      share_out<2 * Shape::kWidth, Shape::kThreads>([&](int i) {
        const int set = i / Shape::kWidth, row = i % Shape::kWidth;
        float x[kGroup];
#pragma unroll
        for (int t = 0; t < kGroup; ++t)
          x[t] = set == 0 ? tokens.element(Op::written_row(0), t, row) : tokens.fp32_vector(Op::written_row(1), t)[row];
        Cells::put_column(cells + Cells::kWrittenRows + Cells::of_column(set, row), x);
      });
    }
  }

  __device__ __forceinline__ void forward() {
    state_.decay_rows_and_add(Tile::left_of(cells(Cells::kWritten), first_), cells(Cells::kWrittenRows), cells(0),
                              first_);
  }

  __device__ __forceinline__ void begin_back() { gradient_.products(cells(Cells::kWritten), rows_); }

  // first: the group's first token in the sequence.
  __device__ __forceinline__ void back(const Tokens& tokens, int first) {
    add_later_rows(tokens);
    write_rows(tokens, first);
    float sums[4];
    transposed_.products(cells(Cells::kWrittenRows), sums);
    leave_sums(sums, Sums::written(0, t()), Sums::written(1, t()));
    leave_overlap();
    __syncthreads();  // for dsa

    state_.products(cells(Cells::kReadRows), sums);
    leave_sums(sums, Sums::read(0, t()), Sums::read(1, t()));
    const float* const row_cells = shared_ + Memory::kRowCells;
    gradient_.decay_columns_and_add(Tile::left_of(row_cells, first_), cells(Cells::kRead), cells(0));
    transposed_.decay_rows_and_add(Tile::left_of(cells(Cells::kRead), first_), row_cells, cells(0), first_);
    leave_row_factors();
  }

 private:
  using Tile = TensorTile<Shape::kWidth>;
  using Cells = typename Memory::Scaled;
  using Sums = typename Memory::Sums;
  static constexpr int kPairs = Shape::kWidth / 2;

  __device__ __forceinline__ static int g() { return lane_row(); }
  __device__ __forceinline__ static int t() { return lane_column(); }
  __device__ __forceinline__ int row_of(int i) const { return first_ + Tile::row(i); }

  // An element of the block's matrix in shared memory. Fours of columns lie so that neither a row's nor those of four rows
  // at two of them meet in a bank.
  __device__ __forceinline__ float* kept_at(int row, int column) const {
    return shared_ + Memory::kKept + row * Shape::kWidth + (column / 4 ^ row % 4 * 2) * 4 + column % 4;
  }
  // f(step, i, elements i and i + 2 of a tile) where it lies transposed.
  template <class F>
  __device__ __forceinline__ void for_each_kept(const F& f) const {
    float* const mine = kept_at(t(), row_of(0));
#pragma unroll
    for (int step = 0; step < Tile::kSteps; ++step)
#pragma unroll
      for (int i = 0; i < 2; ++i) f(step, i, *reinterpret_cast<float2*>(mine + (8 * step + 4 * i) * Shape::kWidth));
  }
  __device__ __forceinline__ void recall(Tile& tile) const {
    for_each_kept([&](int step, int i, const float2& kept) { tile.x[step][i] = kept.x, tile.x[step][i + 2] = kept.y; });
  }

  // f(row, first column, its element) for all fours of the block's matrix in shared memory.
  template <class F>
  __device__ __forceinline__ void for_each_four(const F& f) const {
    constexpr int kFours = Shape::kWidth / 4;
    constexpr int kRows = Shape::kThreads / kFours;
    static_assert(kRows % 4 == 0, "in each of a thread's rows fours lie alike");
    const int row = static_cast<int>(threadIdx.x) / kFours, column = static_cast<int>(threadIdx.x) % kFours * 4;
    float* const mine = kept_at(row, column);
#pragma unroll
    for (int i = 0; i < Shape::kWidth; i += kRows) f(row + i, column, mine + i * Shape::kWidth);
  }

  __device__ __forceinline__ static float element(const StateRows& rows, int row, int column) {
    if (rows.access == StateAccess::kAbsent || row >= rows.size || column >= rows.size) return 0.0f;
    const View& view = rows.view;
    const int64_t at =
        rows.slot * view.stride[0] + rows.head * view.stride[1] + row * view.stride[2] + column * view.stride[3];
    return load_as_float(view.data, at, view.dtype);
  }

  __device__ __forceinline__ const float* cells(int which) const { return shared_ + Memory::kScaled + which; }
  // One of kPairs threads each.
  template <class Element>
  __device__ __forceinline__ void put_pair(int which, int set, int token, const Element* vector) const {
    const int row = static_cast<int>(threadIdx.x) % kPairs * 2;
    float pair[2];
    load_pair(vector + row, pair);
    Cells::put_vector(shared_ + Memory::kScaled + which + Cells::of_vector(set, token, row), pair[0], pair[1]);
  }

  // What later tokens of the group add to the gradients of the row vectors that token t writes.
  __device__ __forceinline__ void add_later_rows(const Tokens& tokens) {
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
      load_pair(tokens.vector(Op::kDy, s) + row_of(0), dy);
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
  __device__ __forceinline__ void write_rows(const Tokens& tokens, int first) const {
    const GradientRows dv = reinterpret_cast<const GradientRows*>(shared_ + Memory::kGradientRows)[Op::kGradients];
    const int row = row_of(0);
    if (first + t() < length_ && row < size_)
      store_pair(reinterpret_cast<T*>(dv.data + (first + t()) * dv.token_bytes) + row, rows_[0], rows_[2]);
    Cells::put_vector(shared_ + Memory::kScaled + Cells::kReadRows + Cells::of_vector(1, t(), row), rows_[1], rows_[3]);
    float dy[2];
    load_pair(tokens.vector(Op::kDy, t()) + row, dy);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float* const column = shared_ + Memory::kRowCells + Cells::of_column(0, row + i) + t();
      Cells::put_column(column, dy[i]);
      Cells::put_column(column + Cells::kColumnSet, rows_[2 * i + 1]);
    }
  }

  // Factors between tokens: what each writes, times the gradients that later ones read with, of this warp's rows.
  __device__ __forceinline__ void leave_row_factors() const {
    float factors[2];
    Tile::template vector_products<kTensorRows>(cells(Cells::kWrittenRows) + first_, cells(Cells::kReadRows) + first_,
                                                factors);
    Memory::Factors::leave(g() % 2, g() / 2, t(), factors[0], factors[1], shared_ + Memory::kRowShares);
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
