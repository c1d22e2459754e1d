// Windows of tokens of all heads, a block each, so that no multiprocessor is idle before the last windows, whatever the number
// of heads.
//
// Blocks take tickets as they start. Tickets are numbers of windows, the last one of every head first. Who takes a window
// takes up the gradient of the state where the window after it in the sequence has left it, and that one's ticket was taken
// before: so whoever waits, waits for a block that runs. What comes of it does not depend on who takes what.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

namespace flash_rwkv::cuda {

struct Turn {
  int unit;  // a head of a sequence
  int window;
};

class Turns {
 public:
  // words: [1 + units], zeros before the launch: how many tickets have been taken, and for every unit the number of the
  // window that was dealt with last, from 1 on. shared: one word.
  __device__ __forceinline__ Turns(int* words, int windows, int units, int* shared)
      : words_(words), windows_(windows), units_(units), shared_(shared) {}

  // Of this block. All its threads come.
  __device__ __forceinline__ Turn take() const {
    if (threadIdx.x == 0) *shared_ = ptx::atom_add_relaxed_gpu_s32(words_, 1);
    __syncthreads();
    int ticket = *shared_;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // older devices do not come here
    ticket = ptx::redux_sync_min_s32(ticket);        // so that the compiler keeps what follows from it once a warp
#endif
    return {ticket % units_, windows_ - 1 - ticket / units_};
  }

  // Until the next window of the sequence has been dealt with.
  __device__ __forceinline__ void wait(const Turn& turn) const {
    if (threadIdx.x == 0)
      while (ptx::ld_acquire_gpu_s32(words_ + 1 + turn.unit) != turn.window + 2) continue;
    __syncthreads();
  }

  // All threads have written what the window before takes up.
  __device__ __forceinline__ void finish(const Turn& turn) const {
    __syncthreads();
    if (threadIdx.x == 0) ptx::st_release_gpu_s32(words_ + 1 + turn.unit, turn.window + 1);
  }

 private:
  int* const words_;
  const int windows_, units_;
  int* const shared_;
};

}  // namespace flash_rwkv::cuda
