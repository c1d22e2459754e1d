// What the ops with a matrix state have in common: sizes, sequences, shapes of states and checkpoints.
#pragma once

#include "tensor_checks.h"

namespace flash_rwkv {

// Sizes of the first tensor, [B, T, H, N] or, for a step of one token, [B, H, N].
struct HeadSizes {
  int64_t batch, tokens, heads, size;
  bool one_token;

  HeadSizes(const Checker& check, const char* name, const Tensor& first, bool step);

  // Of one element of a state by one token.
  int64_t updates() const { return batch * tokens * heads * size * size; }

  // Another tensor of that shape.
  void check_tokens(const Checker& check, const char* name, const Tensor& tensor) const;
  int64_t sequences(const OptionalTensor& cu_seqlens) const { return cu_seqlens ? cu_seqlens->size(0) - 1 : batch; }
  int64_t checkpoint_blocks(int64_t sequences, bool packed) const {
    if (packed) return tokens / kCheckpointTokens + sequences;
    return sequences * ((tokens + kCheckpointTokens - 1) / kCheckpointTokens);
  }
  Sequences describe(int64_t sequences, const OptionalTensor& packed) const {
    return {sequences, tokens, packed ? packed->const_data_ptr<int32_t>() : nullptr};
  }
};

// Zeros in the blocks of checkpoints that no packed sequence owns, so that the result is the same in every run.
void clear_unowned_checkpoints(const Tensor& checkpoints, const Sequences& sequences);

// Checks of a state, of a pool with its slots, and of what backward is given.
void check_state(const Checker& check, const char* name, const Tensor& state, int64_t sequences,
                 const HeadSizes& sizes);
OptionalTensor check_pool(const Checker& check, const Tensor& state, const OptionalTensor& slots,
                          const HeadSizes& sizes);
void check_gradients(const Checker& check, const Tensor& checkpoints, const OptionalTensor& grad_y,
                     const OptionalTensor& grad_state, int64_t sequences, bool packed, const HeadSizes& sizes);

}  // namespace flash_rwkv
