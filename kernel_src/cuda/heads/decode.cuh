// One token a sequence, in place: what counts is that the states pass through the device once and nothing waits.
//
// A warp owns some value rows of one head. It loads the token's vectors once, into registers, and takes its rows a few
// at a time, several such tiles being on their way while it deals with one. The arithmetic is that of the forward pass,
// row by row, so the results are the same to the last bit.
#pragma once

#include <type_traits>

#include "cuda/heads/device.h"
#include "cuda/heads/in_flight.cuh"
#include "cuda/heads/stage.cuh"
#include "cuda/heads/state.cuh"
#include "cuda/launch.h"

namespace flash_rwkv::cuda {

// Warps have nothing to do with each other: a block is one. Sixteen on a multiprocessor leave a thread 128 registers.
constexpr int kDecodeProcessorWarps = 16;

template <int kWidth>
using DecodeLayout = TileLayout<kWidth / 8, 8, 4>;

struct DecodePlan {
  unsigned warps_a_head;
  int tiles_a_warp;  // of DecodeLayout::kWarpRows rows
};

// This lane's columns of a vector of one token, on their way: all vectors are asked for before any is waited for.
template <class T, class Layout>
struct ColumnLoads {
  Four<T> fours[Layout::kQuads];

  __device__ __forceinline__ void fetch(const View& view, int64_t sequence, int64_t head, int size, const Layout& at) {
    const T* const from = static_cast<const T*>(view.data) + sequence * view.stride[0] + head * view.stride[2];
#pragma unroll
    for (int q = 0; q < Layout::kQuads; ++q) {
      fours[q] = {};
      if (at.column(q) < size) fours[q] = load_constant_four<T>(from + at.column(q));
    }
  }

  __device__ __forceinline__ void unpack(float (&out)[Layout::kColumns]) const {
#pragma unroll
    for (int q = 0; q < Layout::kQuads; ++q) {
      float four[4];
      fours[q].unpack(four);
#pragma unroll
      for (int c = 0; c < 4; ++c) out[4 * q + c] = four[c];
    }
  }
};

// Of w, in fp32 or T.
template <class T, class Layout>
struct RetentionLoads {
  bool is_float;
  ColumnLoads<float, Layout> wide;
  ColumnLoads<T, Layout> narrow;

  __device__ __forceinline__ void fetch(const View& w, int64_t sequence, int64_t head, int size, const Layout& at) {
    is_float = w.dtype == DType::kFloat32;
    if (is_float) wide.fetch(w, sequence, head, size, at);
    else narrow.fetch(w, sequence, head, size, at);
  }

  __device__ __forceinline__ void unpack(Decay form, float (&out)[Layout::kColumns]) const {
    float raw[Layout::kColumns];
    if (is_float) wide.unpack(raw);
    else narrow.unpack(raw);
    retentions(raw, form, out);
  }
};

// A lane's part of a tile, in memory. Head sizes are multiples of eight, so a lane's rows of a tile are all inside the
// matrix or all outside, and so are the columns of a quad.
template <class S, class Layout>
struct LaneTile {
  S* first;  // of its first row and quad
  int64_t row_stride;
  int row, size;

  __device__ __forceinline__ bool has(int column) const { return row < size && column < size; }
  __device__ __forceinline__ S* at(int i, int quad) const { return first + i * row_stride + quad * 4 * Layout::kLanes; }
  __device__ __forceinline__ LaneTile after(int tiles) const {
    const int rows = tiles * Layout::kWarpRows;
    return {first + rows * row_stride, row_stride, row + rows, size};
  }
};

// Tiles on their way, each with the elements of v that go with its rows. They wait in shared memory, where more of them
// take no more registers.
//
// A quad of a 16-bit state has eight bytes, half of what one copy can move. So two neighbouring lanes fetch the quads of
// both: one of them those of even number, the other those of odd number.
template <class T, class S, class Layout>
class TilesInFlight {
 private:
  static constexpr bool kPaired = kCopiesInBackground && sizeof(S) == 2 && Layout::kQuads % 2 == 0;
  static constexpr int kRowWords = kPaired ? Layout::kQuads / 2 : Layout::kQuads;
  static constexpr int kWords = Layout::kRows * kRowWords;  // of a tile
  using FourWord = decltype(Four<S>::raw);
  using StateWord = std::conditional_t<kPaired, uint4, FourWord>;
  using VectorWord = decltype(Four<T>::raw);

 public:
  static constexpr int kTiles = kCopiesInBackground ? 2 : 1;

 private:
  using States = InFlight<StateWord, kTiles * kWords, kTiles * kWords * kWarp>;
  using Vectors = InFlight<VectorWord, kTiles, kTiles * kWarp>;

 public:
  static constexpr int kSharedBytes = States::kSharedBytes + Vectors::kSharedBytes;

  // shared: of kSharedBytes.
  __device__ __forceinline__ explicit TilesInFlight(char* shared)
      : states_(shared), vectors_(shared + States::kSharedBytes) {}

  // Into place 0 … kTiles - 1, as one batch.
  __device__ __forceinline__ void fetch(int place, const LaneTile<S, Layout>& tile, const T* v_head, int size,
                                        const Layout& at) {
    const int odd = kPaired ? at.lane % 2 : 0;
#pragma unroll
    for (int w = 0; w < kRowWords; ++w) {
      const int quad = kPaired ? 2 * w + odd : w;
      const bool wanted = tile.has(at.column(quad));
#pragma unroll
      for (int i = 0; i < Layout::kRows; ++i) {
        const int word = place * kWords + i * kRowWords + w;
        const S* const from = tile.at(i, quad) - 4 * odd;  // where the pair's quads of that number start
        states_.fetch(word, kPaired ? of_pair(word, odd) : mine(word), reinterpret_cast<const StateWord*>(from),
                      wanted);
      }
    }
    const bool wanted = tile.row < size;
    vectors_.fetch(place, mine(place), reinterpret_cast<const VectorWord*>(v_head + tile.row), wanted);
    end_batch();
  }

  // wait_for_batches_before_last() comes before it.
  __device__ __forceinline__ void unpack(int place, float (&x)[Layout::kRows][Layout::kColumns], float (&v)[4]) const {
    if constexpr (kPaired) __syncwarp();  // what the other lane has fetched is there too
#pragma unroll
    for (int i = 0; i < Layout::kRows; ++i)
#pragma unroll
      for (int q = 0; q < Layout::kQuads; ++q) {
        float four[4];
        quad(place * kWords + i * kRowWords, q).unpack(four);
#pragma unroll
        for (int c = 0; c < 4; ++c) x[i][4 * q + c] = four[c];
      }
    Four<T>{vectors_.get(place, mine(place))}.unpack(v);
    if constexpr (kPaired) __syncwarp();  // the place may be filled again
  }

 private:
  __device__ __forceinline__ Four<S> quad(int row_word, int q) const {
    if constexpr (kPaired) {
      const int shared = of_pair(row_word + q / 2, q % 2);
      return {states_.template half<FourWord>(shared, static_cast<int>(threadIdx.x) % 2)};
    } else {
      return {states_.get(row_word + q, mine(row_word + q))};
    }
  }

  // Where a word of this pair of lanes lies in shared memory. Those of odd numbers lie apart, in the order that has eight
  // lanes write to all banks and sixteen read from all of them.
  __device__ static __forceinline__ int of_pair(int word, int odd) {
    const int pair = static_cast<int>(threadIdx.x) / 2;
    return word * kWarp + (odd ? kWarp / 2 + (pair ^ 4) : pair);
  }

  // Where this thread's word lies in shared memory.
  __device__ static __forceinline__ int mine(int word) { return word * kWarp + static_cast<int>(threadIdx.x); }

  States states_;
  Vectors vectors_;
};

// Op::Decode says what a token does to a tile, with the columns of the token in registers. S: dtype of the states.
template <class Op, class T, class S, int kWidth>
__global__ void __launch_bounds__(kWarp, kDecodeProcessorWarps)
    decode_kernel(const __grid_constant__ typename Op::Params p, const __grid_constant__ DecodePlan plan) {
  using Layout = DecodeLayout<kWidth>;
  using Sums = RowSums<Layout>;
  constexpr int R = Layout::kRows;
  __shared__ uint4 shared[TilesInFlight<T, S, Layout>::kSharedBytes / sizeof(uint4)];
  const Layout at;
  // 32 bits hold the number of a warp, and dividing 64 takes as long as half a tile.
  const unsigned unit = blockIdx.x / plan.warps_a_head;
  const unsigned num_heads = static_cast<unsigned>(p.num_heads);
  const int64_t head = unit % num_heads;
  const int64_t sequence = unit / num_heads;
  const int size = static_cast<int>(p.head_size);
  const int64_t slot = p.slots ? p.slots[sequence] : sequence;
  const bool known_slot = p.slots == nullptr || (slot >= 0 && slot < p.num_states);
  const int first_tile = static_cast<int>(blockIdx.x % plan.warps_a_head) * plan.tiles_a_warp;
  const LaneTile<S, Layout> head_start = {static_cast<S*>(p.state.data) + slot * p.state.stride[0] +
                                              head * p.state.stride[1] + at.row_group * R * p.state.stride[2] +
                                              at.column(0),
                                          p.state.stride[2], at.row_group * R, known_slot ? size : 0};
  LaneTile<S, Layout> tile = head_start.after(first_tile);
  const T* const v_head = static_cast<const T*>(p.v.data) + sequence * p.v.stride[0] + head * p.v.stride[2];
  T* const y_head = static_cast<T*>(p.y.data) + sequence * p.y.stride[0] + head * p.y.stride[2];

  using Token = typename Op::template Decode<T, Layout>;
  const typename Token::Loads loads(p, sequence, head, size, at);
  TilesInFlight<T, S, Layout> in_flight(reinterpret_cast<char*>(shared));
  constexpr int kTiles = TilesInFlight<T, S, Layout>::kTiles;
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    if (i < plan.tiles_a_warp) in_flight.fetch(i, tile.after(i), v_head, size, at);
    else end_batch();
  }
  const Token op(p, loads);
  int place = 0;
#pragma unroll 1
  for (int left = plan.tiles_a_warp; left > 0; --left) {
    StateTile<Layout> state;
    float v[R], y[R];
    wait_for_batches_before_last<kTiles - 1>();
    in_flight.unpack(place, state.x, v);
    if (left > kTiles) in_flight.fetch(place, tile.after(kTiles), v_head, size, at);
    else end_batch();
    place = place + 1 == kTiles ? 0 : place + 1;
    op.token(v, state, y);
#pragma unroll
    for (int q = 0; q < Layout::kQuads; ++q) {
      if (!tile.has(at.column(q))) continue;
#pragma unroll
      for (int i = 0; i < R; ++i) {
        const float four[4] = {state.x[i][4 * q], state.x[i][4 * q + 1], state.x[i][4 * q + 2], state.x[i][4 * q + 3]};
        store_four(tile.at(i, q), four);
      }
    }
    const int y_row = tile.row + Sums::owned();
    if (Sums::owns_first()) {
#pragma unroll
      for (int i = 0; i < Sums::kOwned; ++i) {
        if (y_row + i < size) y_head[y_row + i] = from_float<T>(known_slot ? y[i] : __int_as_float(0x7fc00000));
      }
    }
    tile = tile.after(1);
  }
}

template <class Op, class T, class S, int kWidth>
cudaError_t launch_decode(const typename Op::Params& p, cudaStream_t stream) {
  constexpr int kTileRows = DecodeLayout<kWidth>::kWarpRows;
  const int64_t tiles = (p.head_size + kTileRows - 1) / kTileRows;
  const int64_t units = p.sequences.count * p.num_heads;  // heads of sequences
  // A warp for every tile, until each place for a warp on the device is taken.
  constexpr int64_t kWarpsPerProcessor = kDecodeProcessorWarps;
  const int64_t wanted = kWarpsPerProcessor * device_attribute(cudaDevAttrMultiProcessorCount);
  int64_t tiles_a_warp = 1;
  while (2 * tiles_a_warp <= tiles && units * tiles / (2 * tiles_a_warp) >= wanted) tiles_a_warp *= 2;
  const int64_t warps_a_head = (tiles + tiles_a_warp - 1) / tiles_a_warp;
  const int64_t blocks = units * warps_a_head;
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const DecodePlan plan = {static_cast<unsigned>(warps_a_head), static_cast<int>(tiles_a_warp)};
  return launch(decode_kernel<Op, T, S, kWidth>, blocks, kWarp, 0, stream, p, plan);
}

// Of states whose rows can be read four elements at a time.
template <class Op>
cudaError_t decode(const typename Op::Params& p, cudaStream_t stream) {
  return dispatch_dtype(p.r.dtype, [&](auto type) {
    return dispatch_dtype(p.state.dtype, [&](auto state_type) {
      using T = decltype(type);
      using S = decltype(state_type);
      if (p.head_size <= 32) return launch_decode<Op, T, S, 32>(p, stream);
      if (p.head_size <= 64) return launch_decode<Op, T, S, 64>(p, stream);
      if (p.head_size <= 128) return launch_decode<Op, T, S, 128>(p, stream);
      return launch_decode<Op, T, S, 256>(p, stream);
    });
  });
}

}  // namespace flash_rwkv::cuda
