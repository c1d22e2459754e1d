// Backward pass of the recurrences with a matrix state, four tokens at a time.
//
// A block of threads owns some value rows of one head. Forward has saved the state before every 16th token. Blocks of
// 16 tokens are taken from the last to the first, each in *steps* of a group of four tokens: forward, to find the state
// before a later group, and back. G, the gradient of the state, stays in registers throughout.
// group.cuh says what happens within a group. Nothing is divided by a decay. Sums over rows are formed by each warp and
// added up in the order of the warps, and of the blocks where several share a head: no atomics.
//
// Op says what the state is read and written with: see wkv6/backward.cu and wkv7/backward.cu.
#pragma once

#include "cuda/heads/column_gradients.cuh"
#include "cuda/heads/device.h"
#include "cuda/heads/group.cuh"
#include "cuda/heads/parts.cuh"
#include "cuda/heads/stage.cuh"
#include "cuda/heads/state.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace flash_rwkv::cuda {

// What is done with a group of a block of 16 tokens. One state is kept in shared memory: that before the block, or that
// before group 2 while groups 3 and 2 are dealt with.
struct Step {
  int group;
  bool back;
  bool recall;       // the state before the group is the kept one; else it is at hand
  bool keep_middle;  // it is to be kept
  bool keep_start;   // the state before the block of the next step is to be kept
};

// Forward 0, 1, 2; back 3, 2; forward 0; back 1, 0.
constexpr int kSteps = 8;
__device__ __forceinline__ Step step_of(int i) {
  constexpr unsigned kGroups = 0 | 1 << 4 | 2 << 8 | 3 << 12 | 2 << 16 | 0 << 20 | 1 << 24 | 0 << 28;
  const auto is_in = [i](unsigned steps) { return (steps >> i & 1) != 0; };
  return {static_cast<int>(kGroups >> 4 * i & 15), is_in(0b11011000), is_in(0b10110001), is_in(0b00000100),
          is_in(0b10010000)};
}

// Rows of the state by the warps of a block; lanes share a row, four columns each (eight at the largest size). kElements of
// the state a thread: 32 make good use of what is loaded from shared memory, 8 give more warps where heads are few.
template <int kWidth_, int kWarps_, int kElements_ = 32>
struct BackwardShape {
  static constexpr int kWidth = kWidth_;
  static constexpr int kWarps = kWarps_;
  static constexpr int kElements = kElements_;
  static constexpr int kColumns = kWidth == 256 ? 8 : 4;
  using Layout = TileLayout<kWidth / kColumns, kColumns, kElements / kColumns>;
  static constexpr int kThreads = kWarp * kWarps;
  static constexpr int kBlockRows = kWarps * Layout::kWarpRows;
  // Sixteen warps leave a thread 128 registers, eight 255.
  static constexpr int kBlocksPerProcessor = (kWidth == 256 ? 8 : 16) / kWarps;
};

// A tile of the state that its own thread puts aside in shared memory: four floats of all threads side by side.
template <class Layout, int kThreads>
class KeptTile {
 public:
  __device__ __forceinline__ explicit KeptTile(float4* shared) : words_(shared) {}

  __device__ __forceinline__ void store(const StateTile<Layout>& tile) {
    for_all([&](int i, int q) {
      const float four[4] = {tile.x[i][4 * q], tile.x[i][4 * q + 1], tile.x[i][4 * q + 2], tile.x[i][4 * q + 3]};
      words_.put(word(i, q), Four<float>::pack(four).raw);
    });
  }

  __device__ __forceinline__ void load(StateTile<Layout>& tile) const {
    for_all([&](int i, int q) {
      float four[4];
      Four<float>{words_.get(word(i, q))}.unpack(four);
#pragma unroll
      for (int c = 0; c < 4; ++c) tile.x[i][4 * q + c] = four[c];
    });
  }

  // Of a matrix in global memory, in the background; zeros beyond its size. wait_for_loads() comes before load().
  __device__ __forceinline__ void fetch(const float* matrix, int first_row, int size, const Layout& at) {
    const float* const first = matrix + first_row * size;
    for_all([&](int i, int q) {
      const bool exists = first_row + i < size && at.column(q) < size;
      words_.fetch(word(i, q), reinterpret_cast<const uint4*>(first + i * size + at.column(q)), exists);
    });
  }

 private:
  template <class F>
  __device__ static __forceinline__ void for_all(const F& f) {
#pragma unroll
    for (int i = 0; i < Layout::kRows; ++i)
#pragma unroll
      for (int q = 0; q < Layout::kQuads; ++q) f(i, q);
  }

  __device__ static __forceinline__ int word(int i, int q) {
    return (i * Layout::kQuads + q) * kThreads + static_cast<int>(threadIdx.x);
  }

  SharedWords<uint4> words_;
};

// Shared memory of a block, in floats. A token is its plain vectors, those that forward saved, the decay, and the
// derivative of the decay by w.
template <class Op, class T, class Shape>
struct BackwardMemory {
  using Vectors = VectorLoads<T, Op::kVectors, Shape::kWidth, Shape::kThreads>;
  using Saved = VectorLoads<float, 1, Shape::kWidth, Shape::kThreads, true>;
  using Decays = DecayLoads<T, Shape::kWidth, Shape::kThreads>;
  using Scaled = GroupVectors<Shape::kWidth, Op::kSets>;
  using Factors = PairFactors<Op::kSets, Shape::kWarps>;
  using Preparation = ColumnPreparation<Op, Shape>;
  static constexpr int kToken = kTokenStride<Op, Shape>;
  static constexpr int kStage = kGroup * kToken;
  static constexpr int kTile = Shape::kThreads * Shape::kElements;
  static constexpr int kRoles = 2 * Op::kSets;  // a vector that is read or written with, each

  static constexpr int kKept = kStage;
  static constexpr int kScaled = kKept + kTile;  // column vectors of a group
  // Sums over rows, by warps. A single warp has them take the place of the vectors that they are formed with.
  static constexpr int kSums = Shape::kWarps == 1 ? kScaled : kScaled + Scaled::kFloats;
  static constexpr int kDsa = kScaled + Scaled::kFloats + (Shape::kWarps == 1 ? 0 : Shape::kWarps * Scaled::kFloats);
  static constexpr int kBonus = kDsa + (Op::kFeedback ? kGroup * kDsaStride<Shape> : 0);
  // Factors between columns and between rows: shares of warps, and for each warp its own copy of the whole.
  static constexpr int kColumnShares = kBonus + (Op::kFeedback ? 0 : Shape::kWidth);
  static constexpr int kFactorFloats = Shape::kWarps * Factors::kFloats;
  static constexpr int kRowShares = kColumnShares + kFactorFloats;
  static constexpr int kWholeFactors = kRowShares + kFactorFloats;
  // Pointers to the rows of all that is read, then of all that is written.
  static constexpr int kTokenRows = kWholeFactors + kFactorFloats;
  static constexpr int kReadRows = Op::kVectors + 2;  // those that forward saved, and w, besides
  static constexpr int kGradientRows = kTokenRows + kReadRows * int{sizeof(TokenRows) / sizeof(float)};
  // For the preparation of columns, in the place of sums where these do not take that of its results.
  static constexpr int kEnd = kGradientRows + (Op::kGradients + 1) * int{sizeof(GradientRows) / sizeof(float)};
  static constexpr int kScratch = Shape::kWarps == 1 ? kEnd : kSums;
  static constexpr int kFloats = kEnd + (Shape::kWarps == 1 ? Preparation::kFloats : 0);
  static constexpr int kBytes = kFloats * static_cast<int>(sizeof(float));
  static constexpr int kSavedBytes = Op::kSavedVectors > 0 ? Saved::kSharedBytes : 0;
  static constexpr int kBytesInFlight = Vectors::kSharedBytes + kSavedBytes + Decays::kSharedBytes;

  // Devices without background copies do without the memory for them.
  static int bytes() {
    return kBytes + (device_attribute(cudaDevAttrComputeCapabilityMajor) >= 8 ? kBytesInFlight : 0);
  }
};

// Gradients of the column vectors of a group, from what the warps of the block have left in shared memory. A thread has one
// *role*, a vector that is read or written with, for two columns.
template <class Op, class T, class Shape>
class ColumnGradients {
 public:
  using Memory = BackwardMemory<Op, T, Shape>;
  using Scaled = typename Memory::Scaled;
  using Writer = GradientWriter<Op, T>;
  static constexpr int kWidth = Shape::kWidth;
  static constexpr int kPairsOfColumns = kWidth / kEach;
  static constexpr int kUnits = Memory::kRoles * kPairsOfColumns;
  static constexpr int kRounds = (kUnits + Shape::kThreads - 1) / Shape::kThreads;

  __device__ __forceinline__ ColumnGradients(float* shared, const Writer& writer) : shared_(shared), writer_(writer) {}

  // tokens: of the group, in shared memory. first: the group's first token in the sequence.
  __device__ __forceinline__ void group(const float* tokens, int first) {
    float* const whole = shared_ + Memory::kWholeFactors + threadIdx.x / kWarp * Memory::Factors::kFloats;
    Memory::Factors::add_up(shared_ + Memory::kRowShares, whole);
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int unit = static_cast<int>(threadIdx.x) + round * Shape::kThreads;
      if (unit >= kUnits) break;
      const int role = unit / kPairsOfColumns;
      const int column = unit % kPairsOfColumns * kEach;
      if (role == 0) read<Op::kFeedback>(tokens, first, role, column, whole, round);
      else if (Op::kFeedback && role == 1) read<false>(tokens, first, role, column, whole, round);
      else write(tokens, first, role, column, whole, round);
    }
  }

  // Gradients of the decays of a group, of all roles together.
  __device__ __forceinline__ void decays(int first) const {
    constexpr int kEachRole = kGroup * kPairsOfColumns;
#pragma unroll
    for (int unit = threadIdx.x; unit < kEachRole; unit += Shape::kThreads) {
      const int token = unit / kPairsOfColumns, column = unit % kPairsOfColumns * kEach;
      float sum[1][kEach] = {};
#pragma unroll
      for (int role = 0; role < Memory::kRoles; ++role) {
        const float2 x = *reinterpret_cast<const float2*>(decay_sums(role, token) + column);
        sum[0][0] += x.x, sum[0][1] += x.y;
      }
      writer_.write(Op::kDd, first + token, column, sum);
    }
  }

  typename Op::template TokenSums<kRounds> token_sums;

 private:
  // In the place of what only this role has read.
  __device__ __forceinline__ float* decay_sums(int role, int token) const {
    return shared_ + Memory::kSums + Scaled::of_role(role, token);
  }

  __device__ __forceinline__ void load(const float* tokens, int vector, int column, GroupColumns& out) const {
    load_columns(tokens + vector * kWidth + column, Memory::kToken, out);
  }

  __device__ __forceinline__ void load_decays(const float* tokens, int column, GroupColumns& d) const {
    load(tokens, Op::kDecay, column, d);
#pragma unroll
    for (int t = 0; t < kGroup; ++t)
#pragma unroll
      for (int i = 0; i < kEach; ++i) d[t][i] = decay_of(d[t][i]);
  }

  __device__ __forceinline__ void add_sums(int vector, int column, GroupColumns& out) const {
    add_columns<Shape::kWarps>(shared_ + Memory::kSums + vector + column, Scaled::kFloats, kWidth, out);
  }

  __device__ __forceinline__ void leave(const float* tokens, int first, int role, int column, int gradient,
                                        const GroupColumns& out, GroupColumns& dd, int round) {
    GroupColumns slope;
    load(tokens, Op::kDerivative, column, slope);
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) dd[t][i] *= slope[t][i];
      *reinterpret_cast<float2*>(decay_sums(role, t) + column) = make_float2(dd[t][0], dd[t][1]);
    }
    writer_.write(gradient, first, column, out);
    token_sums.add_decays(dd, round);
  }

  template <bool kAfter>
  __device__ __forceinline__ void read(const float* tokens, int first, int role, int column, const float* whole,
                                       int round) {
    float factors[Op::kSets][kPairs];
    GroupColumns start, d, written[Op::kSets], with, out, dd;
    add_sums(Scaled::read(role, 0), column, start);
    load_decays(tokens, column, d);
#pragma unroll
    for (int set = 0; set < Op::kSets; ++set) {
      elements_of(whole + set * kPairs, factors[set]);
      load(tokens, Op::written_column(set), column, written[set]);
    }
    load(tokens, Op::read_column(role), column, with);
    read_gradients<kAfter>(start, d, written, with, factors, out, dd);
    if constexpr (!Op::kFeedback) {
      const float* const bonus = shared_ + Memory::kBonus + column;
#pragma unroll
      for (int t = 0; t < kGroup; ++t)
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
          const float of_bonus = __fmul_rn(factors[0][from_on(t, t)], written[0][t][i]);
          out[t][i] = fmaf(of_bonus, bonus[i], out[t][i]);
          token_sums.add_bonus(__fmul_rn(of_bonus, with[t][i]), i, round);
        }
    }
    leave(tokens, first, role, column, Op::read_gradient(role), out, dd, round);
  }

  __device__ __forceinline__ void write(const float* tokens, int first, int role, int column, const float* whole,
                                        int round) {
    const int set = role - Op::kSets;
    float factors[kPairs];
    float overlap[kEach] = {0.0f, 0.0f};
    GroupColumns start, d, written, r, a = {}, out, dd;
    add_sums(Scaled::written(set, 0), column, start);
    if (set == Op::kSets - 1) {
#pragma unroll
      for (int warp = 0; warp < Shape::kWarps; ++warp) {
        const float* const shares = shared_ + Memory::kSums + warp * Scaled::kFloats + Scaled::kWhole + column;
#pragma unroll
        for (int i = 0; i < kEach; ++i) overlap[i] += shares[i];
      }
    }
    elements_of(whole + set * kPairs, factors);
    load_decays(tokens, column, d);
    load(tokens, Op::written_column(set), column, written);
    load(tokens, Op::kR, column, r);
    if constexpr (Op::kFeedback) load(tokens, Op::kA, column, a);
    write_gradients<Op::kFeedback>(start, d, written, r, a, overlap, factors, out, dd);
    if constexpr (!Op::kFeedback) {
      const float* const bonus = shared_ + Memory::kBonus + column;
#pragma unroll
      for (int t = 0; t < kGroup; ++t)
#pragma unroll
        for (int i = 0; i < kEach; ++i)
          out[t][i] = fmaf(__fmul_rn(factors[from_on(t, t)], r[t][i]), bonus[i], out[t][i]);
    }
    leave(tokens, first, role, column, Op::written_gradient(set), out, dd, round);
  }

  float* const shared_;
  const Writer& writer_;
};

template <class Op, class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocksPerProcessor)
    backward_kernel(const __grid_constant__ typename Op::Params p, const __grid_constant__ typename Op::Gradients g,
                    const __grid_constant__ PartsPlan plan) {
  using Layout = typename Shape::Layout;
  using Memory = BackwardMemory<Op, T, Shape>;
  using Scaled = typename Memory::Scaled;
  constexpr int kThreads = Shape::kThreads;
  constexpr int kWidth = Shape::kWidth;
  constexpr int kToken = Memory::kToken;
  extern __shared__ float4 shared_fours[];
  float* const shared = reinterpret_cast<float*>(shared_fours);

  // --- Which rows of which head of which sequence
  const Layout at;
  const int part = static_cast<int>(blockIdx.x % plan.parts);
  const int64_t unit = blockIdx.x / plan.parts;
  const int64_t head = plan.first_head + unit % plan.num_heads;
  const int64_t sequence = unit / plan.num_heads;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warp_row = (part * Shape::kWarps + warp) * Layout::kWarpRows;
  const int first_row = warp_row + at.row_group * Layout::kRows;
  const int size = static_cast<int>(p.head_size);
  const int64_t batch = p.sequences.batch(sequence);
  const int64_t begin = p.sequences.begin(sequence);
  const int length = static_cast<int>(p.sequences.length(sequence));
  const int window_end = length < plan.first_token + plan.tokens ? length : plan.first_token + plan.tokens;
  const int first_block = plan.first_token / kCudaCheckpointTokens;
  const int end_block = (window_end + kCudaCheckpointTokens - 1) / kCudaCheckpointTokens;

  // --- Checkpoints: the state, and behind it a row of each saved vector for every token of the block
  const int64_t checkpoint_size = int64_t{size} * (size + Op::kSavedVectors * kCudaCheckpointTokens);
  const int64_t checkpoint_stride = p.num_heads * checkpoint_size;
  float* const checkpoints = static_cast<float*>(p.checkpoints) +
                             (p.sequences.first_checkpoint(sequence) * p.num_heads + head) * checkpoint_size;
  const uint32_t saved_row_bytes = size * static_cast<uint32_t>(sizeof(float));
  const int64_t skip_of_block = checkpoint_stride * sizeof(float) - kCudaCheckpointTokens * int64_t{saved_row_bytes};

  // --- Tokens
  auto* const read_rows = reinterpret_cast<TokenRows*>(shared + Memory::kTokenRows);
  auto* const gradient_rows_at = reinterpret_cast<GradientRows*>(shared + Memory::kGradientRows);
  if (threadIdx.x == 0) {
    Op::token_rows_of(p, g, batch, begin, head, read_rows);
    read_rows[Op::kVectors] = {reinterpret_cast<const char*>(checkpoints + size * size), saved_row_bytes};
    read_rows[Op::kVectors + 1] = token_rows(p.w, batch, begin, head);
    for (int i = 0; i < Op::kGradients; ++i)
      gradient_rows_at[i] = gradient_rows<Op, T>(p, g, plan, batch, begin, head, part, i);
    const int64_t first = batch * g.dv.stride[0] + begin * g.dv.stride[1] + head * g.dv.stride[2];
    gradient_rows_at[Op::kGradients] = {static_cast<char*>(g.dv.data) + first * int64_t{sizeof(T)},
                                        g.dv.stride[1] * int64_t{sizeof(T)}};
  }
  char* const in_flight = reinterpret_cast<char*>(shared) + Memory::kBytes;
  typename Memory::Vectors vectors(read_rows, size, in_flight);
  typename Memory::Saved saved(read_rows + Op::kVectors, size, in_flight + Memory::Vectors::kSharedBytes);
  typename Memory::Decays decay(read_rows + Op::kVectors + 1, p.w.dtype == DType::kFloat32, p.decay, size,
                                in_flight + Memory::Vectors::kSharedBytes + Memory::kSavedBytes);
  const auto fetch = [&](int block, int group, int count) {
    const int first = block * kCudaCheckpointTokens + group * kGroup;
    vectors.fetch(first, length, count);
    if constexpr (Op::kSavedVectors > 0) saved.fetch(first, length, 1, block * skip_of_block);
    decay.fetch(first, length);
  };
  const auto commit = [&](int count) {
    wait_for_loads();
    vectors.template commit<kToken>(shared, count);
    if constexpr (Op::kSavedVectors > 0) saved.template commit<kToken>(shared + Op::kVectors * kWidth, 1);
    decay.template commit<kToken, true>(shared + Op::kDecay * kWidth);
  };
  if constexpr (!Op::kFeedback) {
    for (int column = threadIdx.x; column < kWidth; column += kThreads)
      shared[Memory::kBonus + column] = Op::bonus(p, head, column);
  }

  // --- What happens to a group
  float* const scaled = shared + Memory::kScaled;
  float* const sums = shared + Memory::kSums + warp * Scaled::kFloats;
  float* const dsa = shared + Memory::kDsa + warp * Layout::kWarpRows;
  float* const whole_factors = shared + Memory::kWholeFactors + warp * Memory::Factors::kFloats;
  StateTile<Layout> state, grad;
  if (plan.goes_on) grad.load({g.dstate, StateAccess::kFours, sequence, head, first_row, size}, at);
  else grad.load({g.grad_final_state, plan.grad_final_state, sequence, head, first_row, size}, at);

  const auto row_of = [&](int token, int vector) { return shared + token * kToken + vector * kWidth + first_row; };
  const auto forward_through = [&] {
#pragma unroll 1
    for (int t = 0; t < kGroup; ++t) Op::update(shared + t * kToken, first_row, at, state);
  };
  RowGradients<Op, Layout> of_rows;
  const auto write_rows = [&](int first) {
    constexpr int kOwned = RowGradients<Op, Layout>::kOwned;
    if (!RowGradients<Op, Layout>::Rest::owns_first()) return;
    if (of_rows.set == 0) {
      const GradientRows dv = gradient_rows_at[Op::kGradients];
      T* const to =
          reinterpret_cast<T*>(dv.data + (first + of_rows.token) * dv.token_bytes) + first_row + of_rows.first;
#pragma unroll
      for (int i = 0; i < kOwned; ++i) {
        if (first + of_rows.token < length && first_row + of_rows.first + i < size) to[i] = from_float<T>(of_rows.x[i]);
      }
    } else {
      float* const to = dsa + of_rows.token * kDsaStride<Shape> + at.row_group * Layout::kRows + of_rows.first;
#pragma unroll
      for (int i = 0; i < kOwned; ++i) to[i] = of_rows.x[i];
    }
  };
  // After of_rows.products.
  const auto back_through = [&](int first) {
    Memory::Factors::add_up(shared + Memory::kColumnShares, whole_factors);
    of_rows.add_later(whole_factors, row_of(0, Op::kDy), kToken);
    write_rows(first);
    const OverlapSums<Layout> overlap(state, grad);
    if constexpr (Shape::kWarps == 1) __syncwarp();  // sums take the place of vectors
#pragma unroll 1
    for (int set = 0; set < Op::kSets; ++set)
      column_sums(grad, at, row_of(0, Op::written_row(set)), kToken, sums + Scaled::written(set, 0));
    __syncwarp();  // for dsa
    const auto gradients_of_reads = [&](int set) {
      return set == 0 ? row_of(0, Op::kDy) : dsa + at.row_group * Layout::kRows;
    };
    const auto stride = [](int set) { return set == 0 ? int{Memory::kToken} : int{kDsaStride<Shape>}; };
    gradient_through_group<Op>(grad, at, scaled, gradients_of_reads, stride);
    if constexpr (Shape::kWarps == 1) __syncwarp();
#pragma unroll 1
    for (int set = 0; set < Op::kSets; ++set)
      column_sums(state, at, gradients_of_reads(set), stride(set), sums + Scaled::read(set, 0));
    overlap.store(at, sums + Scaled::kWhole);
    row_factors<Op, Shape>(shared, dsa, warp_row, shared + Memory::kRowShares);
  };

  const GradientWriter<Op, T> writer = {p, g, plan, gradient_rows_at, length};
  ColumnGradients<Op, T, Shape> of_columns(shared, writer);

  // --- Steps. The next step's tokens load meanwhile.
  const auto vectors_of = [](Step step) { return step.back ? int{Op::kVectors} : int{Op::kRecompute}; };
  KeptTile<Layout, kThreads> kept(shared_fours + Memory::kKept / 4);
  const auto keep_checkpoint = [&](int block) {
    kept.fetch(checkpoints + block * checkpoint_stride, first_row, size, at);
  };
  __syncthreads();  // for rows
  if (end_block > first_block) {
    keep_checkpoint(end_block - 1);
    fetch(end_block - 1, step_of(0).group, vectors_of(step_of(0)));
    commit(vectors_of(step_of(0)));
  }
  __syncthreads();
  for (int block = end_block - 1; block >= first_block; --block) {
#pragma unroll 1
    for (int index = 0; index < kSteps; ++index) {
      const Step step = step_of(index);
      const int first = block * kCudaCheckpointTokens + step.group * kGroup;
      const bool last = index + 1 == kSteps;
      const bool more = !last || block > first_block;
      const Step next = step_of(last ? 0 : index + 1);
      if (more) fetch(block - last, next.group, vectors_of(next));

      if (step.back) of_rows.products(grad, at, scaled);
      if (step.recall) kept.load(state);
      if (step.keep_middle) kept.store(state);
      if (step.keep_start && more) keep_checkpoint(block - last);
      if (step.back) back_through(first);
      else forward_through();

      __syncthreads();
      if (step.back) {
        of_columns.group(shared, first);
        __syncthreads();
        of_columns.decays(first);
      }
      if (more) commit(vectors_of(next));
      __syncthreads();
      if (next.back) {
        Memory::Preparation::run(shared, shared + Memory::kBonus, scaled,
                                 shared + Memory::kScratch + warp * Memory::Preparation::kFloats,
                                 shared + Memory::kColumnShares);
        __syncthreads();
      }
    }
    of_columns.token_sums.end_of_block();
  }

  grad.store({g.dstate, StateAccess::kFours, sequence, head, first_row, size}, at);
  of_columns.token_sums.template finish<Shape>(p, g, shared, plan.goes_on, part, sequence, head);
}

// --- Launch ----------------------------------------------------------------------------------------------------------

// Most scratch memory that a call asks for. Where it does not hold the sums of all tokens, these are dealt with in windows,
// which keeps all heads at work; where sequences are packed and windows of theirs would lie anywhere, heads take turns.
constexpr int64_t kMostScratchBytes = int64_t{256} << 20;
constexpr int64_t kLeastWindow = 256;

struct Split {
  int64_t parts;   // blocks of rows of a head
  int64_t heads;   // at a time
  int64_t tokens;  // at a time, a multiple of those between checkpoints if not all
  int64_t scratch_bytes;
};

inline int64_t batch_of(const Sequences& sequences) { return sequences.cu_seqlens ? 1 : sequences.count; }

inline int64_t between(int64_t least, int64_t x, int64_t most) { return x > most ? most : x < least ? least : x; }

template <class Op, class Shape>
Split split_of(const typename Op::Params& p) {
  const int64_t parts = (p.head_size + Shape::kBlockRows - 1) / Shape::kBlockRows;
  const int64_t all = p.sequences.tokens;
  const int64_t each =  // a head and token
      parts * Op::kGradients * batch_of(p.sequences) * p.head_size * static_cast<int64_t>(sizeof(float));
  if (parts == 1 || each * all == 0) return {parts, p.num_heads, all, 0};
  const int64_t least = p.sequences.cu_seqlens || all < kLeastWindow ? all : kLeastWindow;
  const int64_t heads = between(1, kMostScratchBytes / (each * least), p.num_heads);
  int64_t tokens = between(least, kMostScratchBytes / (each * heads), all);
  if (tokens < all) tokens -= tokens % kCudaCheckpointTokens;
  return {parts, heads, tokens, each * heads * tokens};
}

template <class Op, class T, class Shape>
cudaError_t launch_backward(const typename Op::Params& p, const typename Op::Gradients& g, cudaStream_t stream) {
  const int bytes = BackwardMemory<Op, T, Shape>::bytes();
  const auto kernel = backward_kernel<Op, T, Shape>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  if (p.sequences.tokens > INT32_MAX / 2) return cudaErrorInvalidConfiguration;
  const Split split = split_of<Op, Shape>(p);
  const int64_t windows = split.tokens == 0 ? 1 : (p.sequences.tokens + split.tokens - 1) / split.tokens;
  for (int64_t first_head = 0; first_head < p.num_heads; first_head += split.heads) {
    for (int64_t window = windows - 1; window >= 0; --window) {
      const int64_t first_token = window * split.tokens;
      PartsPlan plan;
      plan.parts = static_cast<int>(split.parts);
      plan.first_head = first_head;
      plan.num_heads = between(0, split.heads, p.num_heads - first_head);
      plan.batch = batch_of(p.sequences);
      plan.first_token = static_cast<int>(first_token);
      plan.tokens = static_cast<int>(between(0, split.tokens, p.sequences.tokens - first_token));
      plan.goes_on = window + 1 < windows;
      plan.grad_final_state = access_of(g.grad_final_state);
      plan.sums = split.parts > 1 ? static_cast<float*>(g.scratch) : nullptr;
      const int64_t blocks = p.sequences.count * plan.num_heads * split.parts;
      if (blocks == 0) return cudaSuccess;
      if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
      error = launch(kernel, blocks, Shape::kThreads, bytes, stream, p, g, plan);
      if (error != cudaSuccess) return error;
      if (split.parts > 1 && (error = add_parts<Op, T>(p, g, plan, stream)) != cudaSuccess) return error;
    }
  }
  return cudaSuccess;
}

// f(Shape) for the head size and the device: blocks of four warps where shared memory holds what they need, with few rows
// each where there are few heads; else one warp. Several blocks share a head then.
template <class Op, class F>
auto with_backward_shape(const typename Op::Params& p, const F& f) {
  const int memory = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const int64_t heads = p.sequences.count * p.num_heads;
  const bool many = 2 * heads >= device_attribute(cudaDevAttrMultiProcessorCount);
  const auto sized = [&](auto large, auto small) {
    if (many && BackwardMemory<Op, float, decltype(large)>::bytes() <= memory) return f(large);
    return f(small);
  };
  if (p.head_size <= 32) return f(BackwardShape<32, 1>());
  if (p.head_size <= 64) return many ? f(BackwardShape<64, 4>()) : f(BackwardShape<64, 4, 8>());
  if (p.head_size <= 128) return sized(BackwardShape<128, 4>(), BackwardShape<128, 1>());
  return sized(BackwardShape<256, 4>(), BackwardShape<256, 1>());
}

template <class Op>
RowSplit backward_split(const typename Op::Params& p) {
  return with_backward_shape<Op>(p, [&](auto shape) {
    const Split split = split_of<Op, decltype(shape)>(p);
    return RowSplit{split.parts, split.scratch_bytes};
  });
}

template <class Op>
cudaError_t backward(const typename Op::Params& p, const typename Op::Gradients& g, cudaStream_t stream) {
  return dispatch_dtype(p.r.dtype, [&](auto type) {
    return with_backward_shape<Op>(
        p, [&](auto shape) { return launch_backward<Op, decltype(type), decltype(shape)>(p, g, stream); });
  });
}

}  // namespace flash_rwkv::cuda
