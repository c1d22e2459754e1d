// CUDA's language and runtime as far as the kernels use them, for a C++ compiler and the threads of simt.h.
#pragma once

#include <math.h>

#include <cstring>

#include "simt.h"

// --- Language --------------------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)
#define __shared__ thread_local __attribute__((aligned(16)))

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

#define SIMT_VECTOR(Name, Type, Bytes2, Bytes4)                               \
  struct alignas(Bytes2) Name##2 { Type x, y; };                              \
  struct Name##3 { Type x, y, z; };                                           \
  struct alignas(Bytes4) Name##4 { Type x, y, z, w; };                        \
  inline Name##2 make_##Name##2(Type x, Type y) { return {x, y}; }            \
  inline Name##3 make_##Name##3(Type x, Type y, Type z) { return {x, y, z}; } \
  inline Name##4 make_##Name##4(Type x, Type y, Type z, Type w) { return {x, y, z, w}; }
SIMT_VECTOR(float, float, 8, 16)
SIMT_VECTOR(int, int, 8, 16)
SIMT_VECTOR(uint, unsigned, 8, 16)
#undef SIMT_VECTOR

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = simt::kWarp;

// --- Runtime ---------------------------------------------------------------------------------------------------------

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};
using cudaStream_t = struct CUstream_st*;

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};

namespace simt {
inline cudaError_t last_error = cudaSuccess;
}

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = simt::last_error;
  simt::last_error = cudaSuccess;
  return error;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorLaunchFailure: return simt::message().c_str();
  }
  return "unknown error";
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

// An H100, with as many multiprocessors as FLASH_RWKV_SIMT_PROCESSORS says: kernels choose their shape by that.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const char* const processors = getenv("FLASH_RWKV_SIMT_PROCESSORS");
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = processors != nullptr ? atoi(processors) : 132; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 228 << 10; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = simt::kMostSharedBytes; break;
  }
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t) {
  std::memset(to, byte, bytes);
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) > simt::kMostSharedBytes) return cudaErrorInvalidValue;
  simt::allow_shared_bytes(reinterpret_cast<const void*>(kernel), value);
  return cudaSuccess;
}

// --- Instructions that threads execute together ----------------------------------------------------------------------

#define SIMT_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(SIMT_PLACE) { simt::meet_block(false, {"__syncthreads", file, line}); }
inline int __syncthreads_count(int vote, SIMT_PLACE) {
  return simt::meet_block(vote != 0, {"__syncthreads_count", file, line}).yes;
}
inline int __syncthreads_or(int vote, SIMT_PLACE) {
  return simt::meet_block(vote != 0, {"__syncthreads_or", file, line}).yes > 0;
}
inline int __syncthreads_and(int vote, SIMT_PLACE) {
  const simt::Votes votes = simt::meet_block(vote != 0, {"__syncthreads_and", file, line});
  return votes.yes == votes.all;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_PLACE) {
  simt::meet(mask, &mask, nullptr, [](const simt::Meeting&) {}, {"__syncwarp", file, line});
}

namespace simt {

struct Shuffled {
  uint64_t bits;
  int from;  // lane
};

// The value of lane `from`; of a lane that takes no part, poison.
template <class T>
T shuffle(unsigned mask, T value, int from, Site site) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Shuffled in = {0, from};
  uint64_t out = 0;
  std::memcpy(&in.bits, &value, sizeof(T));
  meet(
      mask, &in, &out,
      [](const Meeting& meeting) {
        for (int lane = 0; lane < kWarp; ++lane) {
          if (meeting.in[lane] == nullptr) continue;
          const void* const from = meeting.in[static_cast<const Shuffled*>(meeting.in[lane])->from];
          const uint64_t bits = from ? static_cast<const Shuffled*>(from)->bits : ~uint64_t{0};
          *static_cast<uint64_t*>(meeting.out[lane]) = bits;
        }
      },
      site);
  std::memcpy(&value, &out, sizeof(T));
  return value;
}

inline int lane() { return static_cast<int>(threadIdx.x % kWarp); }

inline unsigned ballot(unsigned mask, bool vote, Site site) {
  unsigned out = 0;
  meet(
      mask, &vote, &out,
      [](const Meeting& meeting) {
        unsigned votes = 0;
        for (int lane = 0; lane < kWarp; ++lane)
          if (meeting.in[lane] != nullptr && *static_cast<const bool*>(meeting.in[lane])) votes |= 1u << lane;
        for (void* out : meeting.out)
          if (out != nullptr) *static_cast<unsigned*>(out) = votes;
      },
      site);
  return out;
}

}  // namespace simt

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = simt::kWarp, SIMT_PLACE) {
  const int first = simt::lane() & ~(width - 1);
  return simt::shuffle(mask, value, first + (from & (width - 1)), {"__shfl_sync", file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = simt::kWarp, SIMT_PLACE) {
  const int from = simt::lane() ^ bits, last = simt::lane() | (width - 1);
  return simt::shuffle(mask, value, from > last ? simt::lane() : from, {"__shfl_xor_sync", file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = simt::kWarp, SIMT_PLACE) {
  const int from = simt::lane() - static_cast<int>(by), first = simt::lane() & ~(width - 1);
  return simt::shuffle(mask, value, from < first ? simt::lane() : from, {"__shfl_up_sync", file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = simt::kWarp, SIMT_PLACE) {
  const int from = simt::lane() + static_cast<int>(by), last = simt::lane() | (width - 1);
  return simt::shuffle(mask, value, from > last ? simt::lane() : from, {"__shfl_down_sync", file, line});
}

inline unsigned __ballot_sync(unsigned mask, int vote, SIMT_PLACE) {
  return simt::ballot(mask, vote != 0, {"__ballot_sync", file, line});
}
inline int __any_sync(unsigned mask, int vote, SIMT_PLACE) {
  return simt::ballot(mask, vote != 0, {"__any_sync", file, line}) != 0;
}
inline int __all_sync(unsigned mask, int vote, SIMT_PLACE) {
  return simt::ballot(mask, vote == 0, {"__all_sync", file, line}) == 0;
}

// --- Instructions of one thread --------------------------------------------------------------------------------------

inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }

// Nothing is contracted: this is compiled with -ffp-contract=off.
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __expf(float x) { return expf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
// 0 for divisors from 2^126 on, as the manual says.
inline float __fdividef(float x, float y) { return fabsf(y) > 0x1p126f && fabsf(y) <= 0x1p128 ? x * 0.0f : x / y; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }

template <class T>
T __ldg(const T* at) {
  return *at;
}
template <class T>
T __ldcs(const T* at) {
  return *at;
}
template <class T>
void __stcs(T* at, T x) {
  *at = x;
}

inline size_t __cvta_generic_to_shared(const void* at) { return simt::shared_address(at); }
inline void __threadfence_block() {}
inline void __threadfence() {}
