// What one thread reads and writes: a channel of a sequence, in tensors of any layout.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/wkv4/recurrence.cuh"

namespace flash_rwkv::cuda {

// From memory that no thread writes to during the launch: such loads may be moved ahead of stores.
template <class T>
FLASH_RWKV_ALWAYS_INLINE T load_unchanging(const T* at) {
#ifdef __CUDA_ARCH__
  return __ldg(at);
#else
  return *at;
#endif
}

// One channel of one sequence of a tensor [B, T, 1, C].
template <class T>
struct Column {
  T* first;
  int64_t stride;  // in elements, from token to token

  FLASH_RWKV_ALWAYS_INLINE Column(const View& view, int64_t sequence, int64_t channel)
      : first(static_cast<T*>(view.data)), stride(view.stride[1]) {
    if (first != nullptr) first += sequence * view.stride[0] + channel * view.stride[3];
  }

  FLASH_RWKV_ALWAYS_INLINE T load(int64_t token) const { return first[token * stride]; }
  FLASH_RWKV_ALWAYS_INLINE std::remove_const_t<T> load_or_zero(int64_t token) const {
    return first != nullptr ? load(token) : from_float<std::remove_const_t<T>>(0.0f);
  }
  FLASH_RWKV_ALWAYS_INLINE void store(int64_t token, float x) const { first[token * stride] = from_float<T>(x); }

  // Consecutive tokens, by a pointer that moves on, which takes fewer instructions than a product each.
  template <class U, int kCount>
  FLASH_RWKV_ALWAYS_INLINE void load(int64_t token, U (&x)[kCount]) const {
    T* at = first + token * stride;
#pragma unroll
    for (int i = 0; i < kCount; ++i, at += stride) x[i] = load_unchanging(at);
  }
  template <class U, int kCount>
  FLASH_RWKV_ALWAYS_INLINE void load_or_zero(int64_t token, U (&x)[kCount]) const {
    T* at = first + token * stride;
#pragma unroll
    for (int i = 0; i < kCount; ++i, at += stride) x[i] = first != nullptr ? load_unchanging(at) : from_float<U>(0.0f);
  }
  template <int kCount>
  FLASH_RWKV_ALWAYS_INLINE void store(int64_t token, const float (&x)[kCount]) const {
    T* at = first + token * stride;
#pragma unroll
    for (int i = 0; i < kCount; ++i, at += stride) *at = from_float<T>(x[i]);
  }
};

// An element of the decay w or the bonus u [C].
FLASH_RWKV_ALWAYS_INLINE uint32_t load_channel(const View& row, int64_t channel) {
  return load_bits(row.data, channel * row.stride[3], row.dtype);
}

// Three numbers of one channel in a tensor [rows, 1, 3, C]: a state or the gradient of one.
FLASH_RWKV_ALWAYS_INLINE void load_three(const View& view, int64_t row, int64_t channel, float (&x)[3]) {
  const int64_t first = row * view.stride[0] + channel * view.stride[3];
  uint32_t bits[3];
#pragma unroll
  for (int i = 0; i < 3; ++i) bits[i] = load_bits(view.data, first + i * view.stride[2], view.dtype);
#pragma unroll
  for (int i = 0; i < 3; ++i) x[i] = float_of_bits(bits[i], view.dtype);
}

FLASH_RWKV_ALWAYS_INLINE void store_three(const View& view, int64_t row, int64_t channel, const float (&x)[3]) {
  const int64_t first = row * view.stride[0] + channel * view.stride[3];
#pragma unroll
  for (int i = 0; i < 3; ++i) store_from_float(view.data, first + i * view.stride[2], view.dtype, x[i]);
}

// Checkpoints [blocks, 3, C]: the state before every block of tokens.
FLASH_RWKV_ALWAYS_INLINE void save_checkpoint(const Wkv4Params& p, int64_t block, int64_t channel, const Wkv4State& s) {
  float* row = static_cast<float*>(p.checkpoints) + block * 3 * p.num_channels + channel;
  row[0] = s.p;
  row[p.num_channels] = s.q;
  row[2 * p.num_channels] = s.o;
}

FLASH_RWKV_ALWAYS_INLINE Wkv4State load_checkpoint(const Wkv4Params& p, int64_t block, int64_t channel) {
  const float* row = static_cast<const float*>(p.checkpoints) + block * 3 * p.num_channels + channel;
  return {row[0], row[p.num_channels], row[2 * p.num_channels]};
}

// --- Threads -------------------------------------------------------------------------------------------------------

constexpr int kMaxChannelThreads = 128;

// Blocks of one warp spread few channels evenly over the multiprocessors; many small blocks would be slow to start.
struct ChannelGrid {
  int64_t blocks;
  unsigned chunks;  // of channels, a block each
  int threads;

  ChannelGrid(int64_t sequences, int64_t channels) {
    constexpr int kWarp = 32;
    constexpr int64_t kManyWarps = 4096;
    threads = sequences * ((channels + kWarp - 1) / kWarp) <= kManyWarps ? kWarp : kMaxChannelThreads;
    const int64_t per_sequence = (channels + threads - 1) / threads;
    blocks = sequences * per_sequence;
    chunks = static_cast<unsigned>(per_sequence);
  }

  bool fits() const { return blocks <= INT32_MAX; }

#ifdef __CUDACC__
  __device__ int64_t sequence() const { return blockIdx.x / chunks; }
  __device__ int64_t channel() const { return int64_t{blockIdx.x % chunks} * blockDim.x + threadIdx.x; }
#endif
};

}  // namespace flash_rwkv::cuda
