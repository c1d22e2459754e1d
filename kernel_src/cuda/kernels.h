// The CUDA kernels as the rest of the project sees them. All run on the current device, in the stream they are given,
// and return the error of their launches.
#pragma once

#include <cuda_runtime_api.h>

#include "wkv_params.h"

namespace flash_rwkv::cuda {

cudaError_t wkv4_forward(const Wkv4Params&, cudaStream_t);
cudaError_t wkv4_backward(const Wkv4Params&, const Wkv4Gradients&, cudaStream_t);
cudaError_t wkv4_step(const Wkv4Params&, cudaStream_t);

// Into how many parts the rows of a state are split, and bytes of scratch memory that backward wants then.
struct RowSplit {
  int64_t parts;
  int64_t scratch_bytes;
};

// wkvN_chunk_forward is on tensor cores: head sizes 64 and 128 in bf16 and fp16, and no slots, on a device that has what
// it takes (has_chunks() of heads/device.h). It saves a state for every kCheckpointTokens tokens.

cudaError_t wkv6_forward(const Wkv6Params&, cudaStream_t);
RowSplit wkv6_backward_split(const Wkv6Params&);
cudaError_t wkv6_backward(const Wkv6Params&, const Wkv6Gradients&, cudaStream_t);
cudaError_t wkv6_step(const Wkv6Params&, cudaStream_t);
// With p.summaries of so many bytes.
int64_t wkv6_chunk_scratch_bytes(const Wkv6Params&);
cudaError_t wkv6_chunk_forward(const Wkv6Params&, cudaStream_t);
bool has_wkv6_chunk_gradients(int64_t head_size);  // whether a block of the device has shared memory enough
// With g.grad_y, and g.scratch of so many bytes.
int64_t wkv6_chunk_backward_scratch_bytes(const Wkv6Params&);
cudaError_t wkv6_chunk_backward(const Wkv6Params&, const Wkv6Gradients&, cudaStream_t);

cudaError_t wkv7_forward(const Wkv7Params&, cudaStream_t);
RowSplit wkv7_backward_split(const Wkv7Params&);
cudaError_t wkv7_backward(const Wkv7Params&, const Wkv7Gradients&, cudaStream_t);
cudaError_t wkv7_chunk_forward(const Wkv7Params&, cudaStream_t);
bool has_wkv7_chunk_gradients(int64_t head_size);  // whether a block of the device has shared memory enough
int64_t wkv7_chunk_backward_scratch_bytes(const Wkv7Params&);
cudaError_t wkv7_chunk_backward(const Wkv7Params&, const Wkv7Gradients&, cudaStream_t);
cudaError_t wkv7_step(const Wkv7Params&, cudaStream_t);

}  // namespace flash_rwkv::cuda
