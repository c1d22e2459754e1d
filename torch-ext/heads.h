// What the ops with a matrix state have in common: sizes, sequences, shapes of states and checkpoints.
#pragma once

#include "device_kernels.h"
#include "tensor_checks.h"

namespace flash_rwkv {

// Sizes of the first tensor, [B, T, H, N] or, for a step of one token, [B, H, N].
struct HeadSizes {
  int64_t batch, tokens, heads, size;
  bool one_token;

  HeadSizes(const Checker& check, const char* name, const Tensor& first, bool step);

  Call call(const Tensor& first) const { return {first.get_device_index(), batch * tokens * heads * size * size}; }

  // Another tensor of that shape.
  void check_tokens(const Checker& check, const char* name, const Tensor& tensor) const;
  int64_t sequences(const OptionalTensor& cu_seqlens) const { return cu_seqlens ? cu_seqlens->size(0) - 1 : batch; }
  Sequences describe(int64_t sequences, const OptionalTensor& packed, const DeviceKernels& kernels) const {
    return {sequences, tokens, packed ? packed->const_data_ptr<int32_t>() : nullptr, kernels.checkpoint_tokens};
  }

  // [blocks, H, N + extra, N]: a state, and rows of whatever else the kernels want to find again.
  std::vector<int64_t> checkpoint_shape(const Sequences& sequences, int64_t extra_rows) const {
    return {checkpoint_blocks(sequences), heads, size + extra_rows, size};
  }

 private:
  int64_t checkpoint_blocks(const Sequences& s) const {
    if (s.cu_seqlens) return tokens / s.checkpoint_tokens + s.count;
    return s.count * ((tokens + s.checkpoint_tokens - 1) / s.checkpoint_tokens);
  }
};

// Memory for the checkpoints, none unless `save`; dtype: of them, if not that of computations. Blocks that no packed
// sequence owns are zeros, so that the result is the same in every run.
Tensor allocate_checkpoints(const Checker& check, const Tensor& like, const HeadSizes& sizes,
                            const Sequences& sequences, int64_t extra_rows, bool save,
                            std::optional<ScalarType> dtype = std::nullopt);

// Checks of a state, of a pool with its slots, and of what backward is given.
void check_state(const Checker& check, const char* name, const Tensor& state, int64_t sequences,
                 const HeadSizes& sizes);
OptionalTensor check_pool(const Checker& check, const Tensor& state, const OptionalTensor& slots,
                          const HeadSizes& sizes);
void check_gradients(const Checker& check, const Tensor& checkpoints, const OptionalTensor& grad_y,
                     const OptionalTensor& grad_state, const HeadSizes& sizes, const Sequences& sequences,
                     int64_t extra_rows, std::optional<ScalarType> dtype = std::nullopt);

// Whether the matrix form of wkv`version` takes heads of that size on the device of the call; `gradients`: and
// differentiates them.
bool has_chunks(const DeviceKernels& kernels, int64_t version, int64_t size, bool gradients, const Call& call);

// Refuses what the matrix form cannot do.
void check_chunks(const Checker& check, const DeviceKernels& kernels, const HeadSizes& sizes, const Tensor& first);

}  // namespace flash_rwkv
