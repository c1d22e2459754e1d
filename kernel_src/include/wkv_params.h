// What a kernel is given: plain pointers, sizes and strides. No Torch in here.
//
// Letters: S sequences, T tokens, H heads, N head size, C channels, K tokens a checkpoint block.
#pragma once

#include <cstdint>

// Code of every instruction set includes this header, so nothing here may become a shared out-of-line function.
#if defined(__CUDACC__)
#define FLASH_RWKV_ALWAYS_INLINE __host__ __device__ __forceinline__
#else
#define FLASH_RWKV_ALWAYS_INLINE inline __attribute__((always_inline))
#endif

namespace flash_rwkv {

enum class DType : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

// How the decay d in (0, 1] comes from w; the values are part of the op schemas.
enum class Decay : int { kLog = 0, kExp = 1, kSigmoid = 2 };

// Tokens between two saved states. Backward recomputes what lies between them.
constexpr int64_t kCheckpointTokens = 64;
// The same for matrix states on CUDA, where the states in between have to fit into a multiprocessor.
constexpr int kCudaCheckpointTokens = 16;

// Strides are in elements and may be 0 (an expanded dimension). data is nullptr when the tensor is absent.
struct View {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t stride[4] = {0, 0, 0, 0};  // [batch, token, head, channel]; for states [sequence, head, row, column]
};

// Which tokens make one sequence: row s of the batch, or cu_seqlens[s] … cu_seqlens[s + 1] of row 0.
struct Sequences {
  int64_t count = 0;                    // S
  int64_t tokens = 0;                   // T, of the dense batch
  const int32_t* cu_seqlens = nullptr;  // [S + 1] or nullptr, where the kernel runs
  int64_t checkpoint_tokens = kCheckpointTokens;

  FLASH_RWKV_ALWAYS_INLINE int64_t batch(int64_t s) const { return cu_seqlens ? 0 : s; }
  FLASH_RWKV_ALWAYS_INLINE int64_t begin(int64_t s) const { return cu_seqlens ? offset(s) : 0; }
  FLASH_RWKV_ALWAYS_INLINE int64_t length(int64_t s) const { return cu_seqlens ? offset(s + 1) - offset(s) : tokens; }

  // First checkpoint of sequence s. Packed sequences are placed by a bound that needs no sum over the others.
  FLASH_RWKV_ALWAYS_INLINE int64_t first_checkpoint(int64_t s) const {
    if (cu_seqlens) return offset(s) / checkpoint_tokens + s;
    return s * ((tokens + checkpoint_tokens - 1) / checkpoint_tokens);
  }

  // The sequence that a checkpoint is of if it is of any: in packed ones some are not.
  FLASH_RWKV_ALWAYS_INLINE int64_t sequence_of(uint32_t checkpoint) const {
    if (!cu_seqlens) return checkpoint / static_cast<uint32_t>(first_checkpoint(1));
    int64_t low = 0, high = count - 1;
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      if (first_checkpoint(middle) <= checkpoint) low = middle;
      else high = middle - 1;
    }
    return low;
  }

 private:
  // Inside the tensors whatever cu_seqlens holds: on CUDA nobody reads it before the kernels do.
  FLASH_RWKV_ALWAYS_INLINE int64_t offset(int64_t i) const {
    const int64_t value = cu_seqlens[i];
    return value < 0 ? 0 : value > tokens ? tokens : value;
  }
};

// wkv5 and wkv6. Where w has no token stride (wkv5) its gradient is summed over tokens.
struct Wkv6Params {
  Sequences sequences;
  int64_t num_heads = 0;
  int64_t head_size = 0;
  Decay decay = Decay::kExp;
  bool decay_per_token = true;
  View r, k, v;                    // [B, T, H, N]
  View w;                          // [B, T, H, N], or [H, N] with strides {0, 0, h, n}
  View u;                          // [H, N]
  View state;                      // [S or pool, H, N_value, N_key], may be absent
  const int32_t* slots = nullptr;  // [S], rows of state and final_state; nullptr: row s
  int64_t num_states = 0;          // of the pool that slots point into
  View y;                          // [B, T, H, N]
  View final_state;                // [S or pool, H, N_value, N_key]; may be the same memory as state
  // [blocks, H, N_value, N_key], fp32 (fp64 for fp64 inputs), or nullptr. Of wkv6_chunk_forward bf16, in the order of
  // fragments.
  void* checkpoints = nullptr;
  void* summaries = nullptr;  // scratch memory of wkv6_chunk_forward
};

struct Wkv6Gradients {
  View grad_y;            // [B, T, H, N], may be absent
  View grad_final_state;  // [S, H, N_value, N_key], may be absent
  View dr, dk, dv;        // [B, T, H, N]
  View dw;                // [B, T, H, N] (wkv6)
  // Summed over tokens, compute dtype, [S, H, N]; those of wkv6_chunk_backward for each checkpoint, [blocks, H, N].
  void* dw_sum = nullptr;  // wkv5
  void* du_sum = nullptr;
  View dstate;  // [S, H, N_value, N_key]
  void* scratch = nullptr;
};

struct Wkv7Params {
  Sequences sequences;
  int64_t num_heads = 0;
  int64_t head_size = 0;
  Decay decay = Decay::kLog;
  View r, w, k, v, a, b;           // [B, T, H, N]
  View state;                      // [S or pool, H, N_value, N_key], may be absent
  const int32_t* slots = nullptr;  // [S] or nullptr
  int64_t num_states = 0;
  View y;                       // [B, T, H, N]
  View final_state;             // [S or pool, H, N_value, N_key]
  void* checkpoints = nullptr;  // [blocks, H, N_value, N_key] or nullptr
};

struct Wkv7Gradients {
  View grad_y;                  // [B, T, H, N], may be absent
  View grad_final_state;        // [S, H, N_value, N_key], may be absent
  View dr, dw, dk, dv, da, db;  // [B, T, H, N]
  View dstate;                  // [S, H, N_value, N_key]
  void* scratch = nullptr;
};

struct Wkv4Params {
  Sequences sequences;
  int64_t num_channels = 0;
  View k, v;                       // [B, T, 1, C]
  View w, u;                       // [C]
  View state;                      // [B or pool, 1, 3 (p, q, o), C], may be absent
  const int32_t* slots = nullptr;  // [B] or nullptr
  int64_t num_states = 0;
  View y;                       // [B, T, 1, C]
  View final_state;             // [B or pool, 1, 3, C]
  void* checkpoints = nullptr;  // [blocks, 3, C] or nullptr
};

struct Wkv4Gradients {
  View grad_y;             // [B, T, 1, C], may be absent
  View grad_final_state;   // [B, 1, 3, C], may be absent
  View dk, dv;             // [B, T, 1, C]
  void* dw_sum = nullptr;  // [B, C] compute dtype: summed over tokens
  void* du_sum = nullptr;  // [B, C] compute dtype: summed over tokens
  View dstate;             // [B, 1, 3, C]
};

}  // namespace flash_rwkv
