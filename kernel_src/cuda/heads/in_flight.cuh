// Words that a thread has asked global memory for and will read itself later on.
//
// Since capability 8.0 they are copied to shared memory in the background. Loads to registers would take one of a warp's
// six scoreboards with them, and whatever else uses that one, such as loads from shared memory, waits for them too:
// measured, a tenth of the forward pass. Older devices load to registers all the same.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

namespace flash_rwkv::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define FLASH_RWKV_ASYNC_COPIES 1
constexpr bool kCopiesInBackground = true;
#else
constexpr bool kCopiesInBackground = false;
#endif

// Words in shared memory, of which every thread reads those alone that it has put or fetched itself.
template <class Word>
class SharedWords {
 public:
  __device__ __forceinline__ explicit SharedWords(void* shared) : words_(static_cast<Word*>(shared)) {}

  // `from` is read only if `wanted`; else the word is zeros. wait_for_loads() comes before get().
  __device__ __forceinline__ void fetch(int at, const Word* from, bool wanted) {
#if defined(FLASH_RWKV_ASYNC_COPIES)
    constexpr int kBytes = sizeof(Word);
    if constexpr (kBytes == 16) ptx::cp_async_cg_shared_global<kBytes>(words_ + at, from, wanted ? kBytes : 0);
    else ptx::cp_async_ca_shared_global<kBytes>(words_ + at, from, wanted ? kBytes : 0);
#else
    words_[at] = wanted ? __ldg(from) : Word{};
#endif
  }

  __device__ __forceinline__ void put(int at, Word word) { words_[at] = word; }
  __device__ __forceinline__ Word get(int at) const { return words_[at]; }
  template <class Half>
  __device__ __forceinline__ Half half(int at, int i) const {
    return reinterpret_cast<const Half*>(words_ + at)[i];
  }

 private:
  Word* words_;
};

// kCount words a thread, kTotal of the block. Where devices have background copies they lie in shared memory, at places
// that the caller gives; other devices leave that alone.
template <class Word, int kCount, int kTotal>
class InFlight {
 public:
  static constexpr int kSharedBytes = kTotal * static_cast<int>(sizeof(Word));

#if defined(FLASH_RWKV_ASYNC_COPIES)
  __device__ __forceinline__ explicit InFlight(void* shared) : words_(shared) {}
  __device__ __forceinline__ void fetch(int, int at, const Word* from, bool wanted) { words_.fetch(at, from, wanted); }
  __device__ __forceinline__ Word get(int, int at) const { return words_.get(at); }
  template <class Half>
  __device__ __forceinline__ Half half(int at, int i) const {
    return words_.template half<Half>(at, i);
  }

 private:
  SharedWords<Word> words_;
#else
  __device__ __forceinline__ explicit InFlight(void*) {}

  __device__ __forceinline__ void fetch(int i, int, const Word* from, bool wanted) {
    words_[i] = Word{};
    if (wanted) words_[i] = *from;  // not as a constant: the thread may write there once it has the word
  }

  __device__ __forceinline__ Word get(int i, int) const { return words_[i]; }

 private:
  Word words_[kCount];
#endif
};

// Until all that this thread has asked for is there.
__device__ __forceinline__ void wait_for_loads() {
#if defined(FLASH_RWKV_ASYNC_COPIES)
  ptx::cp_async_wait_all();
#endif
}

// What this thread has asked for since the last batch is a batch; there may be nothing in it.
__device__ __forceinline__ void end_batch() {
#if defined(FLASH_RWKV_ASYNC_COPIES)
  ptx::cp_async_commit_group();
#endif
}

// Until all batches but the last kCount are there.
template <int kCount>
__device__ __forceinline__ void wait_for_batches_before_last() {
#if defined(FLASH_RWKV_ASYNC_COPIES)
  ptx::cp_async_wait_group<kCount>();
#endif
}

}  // namespace flash_rwkv::cuda
