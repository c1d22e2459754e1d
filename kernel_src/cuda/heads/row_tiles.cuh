// State and gradient in the backward pass in registers as value rows: lanes share a row. Products with vectors over columns
// are summed over lanes, those over rows by each warp, and those of warps by whoever takes them (column_roles.cuh).
#pragma once

#include "cuda/heads/backward_memory.cuh"
#include "cuda/heads/kept_tile.cuh"
#include "cuda/heads/state.cuh"

namespace flash_rwkv::cuda {

// --- Columns -----------------------------------------------------------------------------------------------------------

// grad <- grad D + sum over tokens of rows · columns, for all that the state is read with. rows(set) points to this thread's
// first row of the first token's vector, stride(set) floats before that of the next; scaled is as GroupVectors has it.
template <class Op, class Layout, class Rows, class Stride>
__device__ __forceinline__ void gradient_through_group(StateTile<Layout>& grad, const Layout& at, const float* scaled,
                                                       const Rows& rows, const Stride& stride) {
  constexpr int R = Layout::kRows, C = Layout::kColumns;
  using Vectors = GroupVectors<Layout::kWidth, Op::kSets>;
  float d[C];
  at.columns_of(scaled + Vectors::kWhole, d);
  const auto decay = [&](auto near) {
#pragma unroll
    for (int i = 0; i < R; ++i)
#pragma unroll
      for (int c = 0; c < C; ++c)
        grad.x[i][c] = fmaf(d[c], grad.x[i][c], kept<decltype(near)::value>(d[c], grad.x[i][c]));
  };
  if (all_near_one(d)) decay(Constant<true>());
  else decay(Constant<false>());
#pragma unroll 1
  for (int t = 0; t < kGroup; ++t) {
#pragma unroll
    for (int set = 0; set < Op::kSets; ++set) {
      float x[C], p[R];
      at.columns_of(scaled + Vectors::read(set, t), x);
      elements_of(rows(set) + t * stride(set), p);
#pragma unroll
      for (int i = 0; i < R; ++i)
#pragma unroll
        for (int c = 0; c < C; ++c) grad.x[i][c] = fmaf(p[i], x[c], grad.x[i][c]);
    }
  }
}

// Sums over this warp's rows of tile · a row vector, for the four tokens, into `to`, a vector [kWidth] a token. Lanes of
// different row groups take the tokens in different orders, so that what one gives away is what the other keeps.
template <class Layout>
__device__ __forceinline__ void column_sums(const StateTile<Layout>& tile, const Layout& at, const float* rows,
                                            int token_stride, float* to) {
  constexpr int R = Layout::kRows, C = Layout::kColumns, kRowGroups = Layout::kRowGroups;
  static_assert(kRowGroups <= kGroup);
  float sums[kGroup][C];
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    float p[R];
    elements_of(rows + (i ^ at.row_group) * token_stride, p);
#pragma unroll
    for (int row = 0; row < R; ++row)
#pragma unroll
      for (int c = 0; c < C; ++c) add(sums[i][c], tile.x[row][c], p[row], row == 0);
  }
#pragma unroll
  for (int apart = 1; apart < kRowGroups; apart *= 2)
#pragma unroll
    for (int i = 0; i < kGroup; i += 2 * apart)
#pragma unroll
      for (int c = 0; c < C; ++c) sums[i][c] += __shfl_xor_sync(kAllLanes, sums[i + apart][c], apart * Layout::kLanes);
#pragma unroll
  for (int i = 0; i < kGroup; i += kRowGroups)
#pragma unroll
    for (int q = 0; q < Layout::kQuads; ++q)
      *reinterpret_cast<float4*>(to + (i ^ at.row_group) * kVectorStride<Layout::kWidth> + at.column(q)) =
          make_float4(sums[i][4 * q], sums[i][4 * q + 1], sums[i][4 * q + 2], sums[i][4 * q + 3]);
}

// Sums over this warp's rows of S · G: a share of the lane's columns, over its row group only until finish.
template <class Layout>
struct OverlapSums {
  float x[Layout::kColumns];

  __device__ __forceinline__ OverlapSums(const StateTile<Layout>& state, const StateTile<Layout>& grad) {
#pragma unroll
    for (int i = 0; i < Layout::kRows; ++i)
#pragma unroll
      for (int c = 0; c < Layout::kColumns; ++c) add(x[c], state.x[i][c], grad.x[i][c], i == 0);
#pragma unroll
    for (int offset = Layout::kLanes; offset < kWarp; offset *= 2)
#pragma unroll
      for (int c = 0; c < Layout::kColumns; ++c) x[c] += __shfl_xor_sync(kAllLanes, x[c], offset);
  }

  __device__ __forceinline__ void store(const Layout& at, float* to) const {
    if (at.row_group != 0) return;
#pragma unroll
    for (int q = 0; q < Layout::kQuads; ++q)
      *reinterpret_cast<float4*>(to + at.column(q)) = make_float4(x[4 * q], x[4 * q + 1], x[4 * q + 2], x[4 * q + 3]);
  }
};

// --- Rows --------------------------------------------------------------------------------------------------------------

// The gradients of the row vectors that tokens write: of v, and of sa where the Op has it. Sums over the columns of G,
// eight (four) of them for every row: lanes take tokens and vectors in different orders, so that what one lane gives away
// is what the other keeps, and each ends with one token of one vector, for kOwned rows.
template <class Op, class Layout>
struct RowGradients {
  static constexpr int R = Layout::kRows, C = Layout::kColumns;
  static constexpr int kKinds = kGroup * Op::kSets;
  using Rest = ScatteredSums<Layout::kLanes / 2, kKinds, R>;
  static constexpr int kOwned = Rest::kOwned;
  using Vectors = GroupVectors<Layout::kWidth, Op::kSets>;

  int token, set;  // what this lane ends with
  int first;       // its first row, of the thread's
  float x[R];

  __device__ __forceinline__ RowGradients()
      : token(threadIdx.x % kGroup), set(threadIdx.x / kGroup % Op::kSets), first(Rest::owned()) {}

  __device__ __forceinline__ void products(const StateTile<Layout>& grad, const Layout& at, const float* scaled) {
    if constexpr (Op::kSets == 2) {
#pragma unroll 1
      for (int other = 1; other >= 0; --other) {
        float sums[R];
        one_vector(grad, at, scaled + Vectors::written(set ^ other, 0), sums);
#pragma unroll
        for (int i = 0; i < R; ++i) x[i] = other ? sums[i] : sums[i] + __shfl_xor_sync(kAllLanes, x[i], kGroup);
      }
    } else {
      one_vector(grad, at, scaled + Vectors::written(set, 0), x);
    }
    Rest::reduce(x);
  }

  // Adds what later tokens of the group do. factors: of this warp. dy: the row of the first token. The factor of a token
  // that is not later is another pair's, and not used.
  __device__ __forceinline__ void add_later(const float* factors, const float* dy, int token_stride) {
    const float* const with = factors + set * kPairs;
#pragma unroll
    for (int s = 0; s < kGroup; ++s) {
      float p[kOwned];
      elements_of(dy + s * token_stride + first, p);
      const float factor = with[from_on(token, s)];
#pragma unroll
      for (int i = 0; i < kOwned; ++i) {
        if (s >= token) x[i] = fmaf(p[i], factor, x[i]);
      }
    }
    if constexpr (Op::kFeedback) {
#pragma unroll
      for (int s = kGroup - 1; s > 0; --s) {
        const float factor = with[behind(token, s)];
        const int owner = (threadIdx.x % kWarp & ~(kKinds - 1)) + kGroup + s;
#pragma unroll
        for (int i = 0; i < kOwned; ++i) {
          const float dsa = __shfl_sync(kAllLanes, x[i], owner);
          if (s > token) x[i] = fmaf(dsa, factor, x[i]);
        }
      }
    }
  }

 private:
  __device__ __forceinline__ void one_vector(const StateTile<Layout>& grad, const Layout& at, const float* vectors,
                                             float (&out)[R]) const {
    float sums[kGroup][R];
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      float columns[C];
      at.columns_of(vectors + (k ^ token) * kVectorStride<Layout::kWidth>, columns);
#pragma unroll
      for (int i = 0; i < R; ++i)
#pragma unroll
        for (int c = 0; c < C; ++c) add(sums[k][i], grad.x[i][c], columns[c], c == 0);
    }
#pragma unroll
    for (int i = 0; i < R; ++i) {
      sums[0][i] += __shfl_xor_sync(kAllLanes, sums[1][i], 1);
      sums[2][i] += __shfl_xor_sync(kAllLanes, sums[3][i], 1);
      out[i] = sums[0][i] + __shfl_xor_sync(kAllLanes, sums[2][i], 2);
    }
  }
};

// --- Both tiles of a thread ----------------------------------------------------------------------------------------------

template <class Op, class T, class Shape>
class RowTiles {
 public:
  using Memory = BackwardMemory<Op, T, Shape>;
  using Layout = typename Shape::Layout;
  using Tokens = typename Memory::Stage::Tokens;

  // part: which of the blocks that share a head. size: of the head. length: of the sequence.
  __device__ __forceinline__ RowTiles(float* shared, int part, int size, int length)
      : shared_(shared),
        size_(size),
        length_(length),
        warp_(static_cast<int>(threadIdx.x) / kWarp),
        warp_row_((part * Shape::kWarps + warp_) * Layout::kWarpRows),
        first_row_(warp_row_ + at_.row_group * Layout::kRows),
        kept_(reinterpret_cast<float4*>(shared + Memory::kKept)) {}

  __device__ __forceinline__ void load_gradient(const View& view, StateAccess access, int64_t slot, int64_t head) {
    gradient_.load({view, access, slot, head, first_row_, size_}, at_);
  }
  __device__ __forceinline__ void store_gradient(const View& view, int64_t slot, int64_t head) const {
    gradient_.store({view, StateAccess::kFours, slot, head, first_row_, size_}, at_);
  }

  // The state that is kept in shared memory.
  __device__ __forceinline__ void fetch_checkpoint(const float* matrix) {  // in the background
    kept_.fetch(matrix, first_row_, size_, at_);
  }
  __device__ __forceinline__ void keep() { kept_.store(state_); }
  __device__ __forceinline__ void recall() { kept_.load(state_); }

  static constexpr bool kRecallsAhead = false;

  // Going forward takes tokens as they are.
  static constexpr bool kScalesForward = false;

  __device__ __forceinline__ void prepare(const Tokens& tokens, bool) const {
    Memory::Preparation::run(tokens, shared_ + Memory::kBonus, shared_ + Memory::kScaled,
                             shared_ + Memory::kColumnShares);
  }

  __device__ __forceinline__ void forward() {
#pragma unroll 1
    for (int t = 0; t < kGroup; ++t) Op::update(shared_ + t * Memory::kToken, first_row_, at_, state_);
  }

  // What does not take the state.
  __device__ __forceinline__ void begin_back() { rows_.products(gradient_, at_, shared_ + Memory::kScaled); }

  // first: the group's first token in the sequence.
  __device__ __forceinline__ void back(const Tokens&, int first) {
    float* const scaled = shared_ + Memory::kScaled;
    float* const sums = shared_ + Memory::kSums + warp_ * Scaled::kFloats;
    float* const factors = shared_ + Memory::kWholeFactors + warp_ * Memory::kOwnFactors;
    Memory::Factors::add_up(shared_ + Memory::kColumnShares, factors);
    rows_.add_later(factors, row_of(0, Op::kDy), Memory::kToken);
    write_rows(first);
    const OverlapSums<Layout> overlap(state_, gradient_);
    if constexpr (Shape::kWarps == 1) __syncwarp();  // sums take the place of vectors
#pragma unroll 1
    for (int set = 0; set < Op::kSets; ++set)
      column_sums(gradient_, at_, row_of(0, Op::written_row(set)), Memory::kToken, sums + Scaled::written(set, 0));
    __syncwarp();  // for dsa
    const auto gradients_of_reads = [&](int set) {
      return set == 0 ? row_of(0, Op::kDy) : dsa() + at_.row_group * Layout::kRows;
    };
    const auto stride = [](int set) { return set == 0 ? int{Memory::kToken} : int{kDsaStride<Shape>}; };
    gradient_through_group<Op>(gradient_, at_, scaled, gradients_of_reads, stride);
    if constexpr (Shape::kWarps == 1) __syncwarp();
#pragma unroll 1
    for (int set = 0; set < Op::kSets; ++set)
      column_sums(state_, at_, gradients_of_reads(set), stride(set), sums + Scaled::read(set, 0));
    overlap.store(at_, sums + Scaled::kWhole);
    row_factors<Op, Shape>(shared_, dsa(), warp_row_, shared_ + Memory::kRowShares);
  }

 private:
  using Scaled = typename Memory::Scaled;
  using Rows = RowGradients<Op, Layout>;

  __device__ __forceinline__ const float* row_of(int token, int vector) const {
    return shared_ + token * Memory::kToken + vector * Shape::kWidth + first_row_;
  }
  // Of this warp's rows.
  __device__ __forceinline__ float* dsa() const { return shared_ + Memory::kDsa + warp_ * Layout::kWarpRows; }

  __device__ __forceinline__ void write_rows(int first) const {
    if (!Rows::Rest::owns_first()) return;
    if (rows_.set == 0) {
      const GradientRows dv = reinterpret_cast<const GradientRows*>(shared_ + Memory::kGradientRows)[Op::kGradients];
      T* const to = reinterpret_cast<T*>(dv.data + (first + rows_.token) * dv.token_bytes) + first_row_ + rows_.first;
#pragma unroll
      for (int i = 0; i < Rows::kOwned; ++i) {
        if (first + rows_.token < length_ && first_row_ + rows_.first + i < size_) to[i] = from_float<T>(rows_.x[i]);
      }
    } else {
      float* const to = dsa() + rows_.token * kDsaStride<Shape> + at_.row_group * Layout::kRows + rows_.first;
#pragma unroll
      for (int i = 0; i < Rows::kOwned; ++i) to[i] = rows_.x[i];
    }
  }

  const Layout at_;
  float* const shared_;
  const int size_, length_;
  const int warp_, warp_row_, first_row_;
  KeptTile<Layout, Shape::kThreads> kept_;
  StateTile<Layout> state_, gradient_;
  Rows rows_;
};

}  // namespace flash_rwkv::cuda
