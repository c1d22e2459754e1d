// Small kernels, most of them wrong in one way that the emulator has to show.
#include <cstdint>

#include "cuda/launch.h"
#include "cuda/ptx.cuh"

namespace flash_rwkv::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kThreads = 64;

// Every thread reads what its neighbour, in another warp for some, has written.
__global__ void neighbour_kernel(bool waits, float* y) {
  __shared__ float x[kThreads];
  x[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (waits) __syncthreads();
  y[threadIdx.x] = x[(threadIdx.x + 1) % kThreads];
}

// A second round over the same memory, without waiting until the first has been read.
__global__ void two_rounds_kernel(bool waits, float* y) {
  extern __shared__ float x[];
  for (int round = 0; round < 2; ++round) {
    x[threadIdx.x] = static_cast<float>(threadIdx.x + round * kThreads);
    __syncthreads();
    y[round * kThreads + threadIdx.x] = x[(threadIdx.x + kThreads / 2) % kThreads];
    if (waits) __syncthreads();
  }
}

// One warp fills a place again and again, by background copies or by stores, and another reads it. They meet when it is
// full, and perhaps when it is empty, each time at another barrier.
__global__ void ring_kernel(bool copies, bool empties, const float4* x, float4* y) {
  __shared__ float4 place[32];
  const int lane = threadIdx.x % 32;
  for (int round = 0; round < 3; ++round) {
    if (threadIdx.x < 32) {
      ptx::bar_sync(1 + round, kThreads);
      y[round * 32 + lane] = place[31 - lane];
      if (empties && round < 2) ptx::bar_arrive(5 + round, kThreads);
    } else {
      if (empties && round > 0) ptx::bar_sync(4 + round, kThreads);
      if (copies) {
        ptx::cp_async_cg_shared_global<16>(place + lane, x + round * 32 + lane, 16);
        ptx::cp_async_wait_all();
      } else {
        place[lane] = x[round * 32 + lane];
      }
      ptx::bar_arrive(1 + round, kThreads);
    }
  }
}

// A copy that nobody has waited for is read behind a barrier.
__global__ void hasty_copy_kernel(const float4* x, float4* y) {
  __shared__ float4 place[kThreads];
  ptx::cp_async_cg_shared_global<16>(place + threadIdx.x, x + threadIdx.x, 16);
  __syncthreads();
  y[threadIdx.x] = place[kThreads - 1 - threadIdx.x];
  ptx::cp_async_wait_all();
}

__global__ void unwritten_kernel(float* y) {
  __shared__ float fixed[kThreads];
  extern __shared__ float dynamic[];
  if (blockIdx.x == 0) fixed[threadIdx.x] = dynamic[threadIdx.x] = 1.0f;
  y[blockIdx.x * 2 * kThreads + threadIdx.x] = fixed[threadIdx.x];
  y[(blockIdx.x * 2 + 1) * kThreads + threadIdx.x] = dynamic[threadIdx.x];
}

__global__ void beyond_kernel(int index) {
  extern __shared__ float x[];
  if (threadIdx.x == 0) x[index] = 1.0f;
}

__global__ void half_at_the_barrier_kernel() {
  if (threadIdx.x % 32 < 16) __syncthreads();
  else __syncwarp();
}

__global__ void two_barriers_kernel() {
  if (threadIdx.x < kThreads / 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void early_return_kernel(float* y) {
  if (threadIdx.x % 2) return;
  __syncthreads();
  y[threadIdx.x] = __shfl_xor_sync(kAll, 1.0f, 1);  // of a lane that is gone
}

__global__ void half_at_the_shuffle_kernel(float* y) {
  y[threadIdx.x] = 1.0f;
  if (threadIdx.x % 2) y[threadIdx.x] = __shfl_xor_sync(kAll, y[threadIdx.x], 2);
  __syncthreads();
}

__global__ void strange_mask_kernel() { __syncwarp(1); }

__global__ void halves_of_a_warp_kernel(int* y) {
  const int lane = threadIdx.x % 32;
  const unsigned mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  if (lane < 16) y[threadIdx.x] = __shfl_sync(mask, lane, 3);
  else y[threadIdx.x] = __shfl_down_sync(mask, lane, 1) + static_cast<int>(__ballot_sync(mask, lane == 20));
}

// How many of three copies are waited for.
__global__ void copies_kernel(int waited, const float4* x, float4* y) {
  extern __shared__ float4 copied[];
  float4* const to = copied + threadIdx.x * 3;
  for (int i = 0; i < 3; ++i) {
    ptx::cp_async_cg_shared_global<16>(to + i, x + i, i == 2 ? 4 : 16);
    ptx::cp_async_commit_group();
  }
  if (waited == 1) ptx::cp_async_wait_group<2>();
  if (waited == 2) ptx::cp_async_wait_group<1>();
  if (waited == 3) ptx::cp_async_wait_all();
  for (int i = 0; i < 3; ++i) y[threadIdx.x * 3 + i] = to[i];
}

__global__ void odd_copy_kernel(const char* x) {
  extern __shared__ double to[];
  ptx::cp_async_ca_shared_global<8>(to, x + 4, 8);
}

__global__ void copy_to_nowhere_kernel(char* x) { ptx::cp_async_ca_shared_global<8>(x, x, 8); }

cudaError_t run_with(int shared_bytes, void (*kernel)(), int blocks = 1) {
  return launch(kernel, blocks, kThreads, shared_bytes, nullptr);
}

}  // namespace
}  // namespace flash_rwkv::cuda

using namespace flash_rwkv::cuda;

extern "C" {

const char* text_of(cudaError_t error) { return cudaGetErrorString(error); }

cudaError_t neighbour(bool waits, float* y) { return launch(neighbour_kernel, 1, kThreads, 0, nullptr, waits, y); }
cudaError_t two_rounds(bool waits, float* y) {
  return launch(two_rounds_kernel, 1, kThreads, kThreads * 4, nullptr, waits, y);
}
cudaError_t ring(bool copies, bool empties, const float4* x, float4* y) {
  return launch(ring_kernel, 1, kThreads, 0, nullptr, copies, empties, x, y);
}
cudaError_t hasty_copy(const float4* x, float4* y) { return launch(hasty_copy_kernel, 1, kThreads, 0, nullptr, x, y); }
cudaError_t unwritten(float* y) { return launch(unwritten_kernel, 2, kThreads, kThreads * 4, nullptr, y); }
cudaError_t beyond(int index) { return launch(beyond_kernel, 1, kThreads, 64, nullptr, index); }
cudaError_t half_at_the_barrier() { return run_with(0, half_at_the_barrier_kernel); }
cudaError_t two_barriers() { return run_with(0, two_barriers_kernel); }
cudaError_t early_return(float* y) { return launch(early_return_kernel, 1, kThreads, 0, nullptr, y); }
cudaError_t half_at_the_shuffle(float* y) { return launch(half_at_the_shuffle_kernel, 1, kThreads, 0, nullptr, y); }
cudaError_t strange_mask() { return run_with(0, strange_mask_kernel); }
cudaError_t halves_of_a_warp(int* y) { return launch(halves_of_a_warp_kernel, 1, kThreads, 0, nullptr, y); }
cudaError_t copies(int waited, const float4* x, float4* y) {
  return launch(copies_kernel, 1, kThreads, kThreads * 3 * 16, nullptr, waited, x, y);
}
cudaError_t odd_copy(const char* x) { return launch(odd_copy_kernel, 1, 1, 64, nullptr, x); }
cudaError_t copy_to_nowhere(char* x) { return launch(copy_to_nowhere_kernel, 1, 1, 64, nullptr, x); }
cudaError_t much_shared_memory(int bytes, bool asks) {
  if (asks) cudaFuncSetAttribute(beyond_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  return launch(beyond_kernel, 1, kThreads, bytes, nullptr, 0);
}
cudaError_t too_many_threads() { return launch(strange_mask_kernel, 1, 1025, 0, nullptr); }

}  // extern "C"
