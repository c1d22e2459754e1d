// The ops: schemas are in torch_binding.cpp, shapes and formulas in flash_rwkv/ops.py.
#pragma once

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "tensor_checks.h"

namespace flash_rwkv {

// Forward gives (y, final state, checkpoints); checkpoints are empty unless save is set.
using Outputs = std::tuple<Tensor, Tensor, Tensor>;

Outputs wkv4_forward(Tensor k, Tensor v, Tensor w, Tensor u, OptionalTensor state, bool save);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> wkv4_backward(Tensor k, Tensor v, Tensor w, Tensor u,
                                                                 Tensor checkpoints, OptionalTensor grad_y,
                                                                 OptionalTensor grad_state);
Tensor wkv4_step(Tensor k, Tensor v, Tensor w, Tensor u, Tensor state, OptionalTensor slots);

// kVersion 5: w is [H, N]. kVersion 6: w is [B, T, H, N].
template <int kVersion>
Outputs wkv6_forward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, OptionalTensor state, OptionalTensor cu_seqlens,
                     int64_t decay, bool save);
template <int kVersion>
Outputs wkv6_chunk_forward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, OptionalTensor state,
                           OptionalTensor cu_seqlens, int64_t decay, bool save);
using Wkv6Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
template <int kVersion>
Wkv6Backward wkv6_backward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor checkpoints, OptionalTensor grad_y,
                           OptionalTensor grad_state, OptionalTensor cu_seqlens, int64_t decay);
template <int kVersion>
Wkv6Backward wkv6_chunk_backward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor checkpoints,
                                 OptionalTensor grad_y, OptionalTensor grad_state, OptionalTensor cu_seqlens,
                                 int64_t decay);
template <int kVersion>
Tensor wkv6_step(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor state, OptionalTensor slots, int64_t decay);

Outputs wkv7_forward(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, OptionalTensor state,
                     OptionalTensor cu_seqlens, int64_t decay, bool save);
Outputs wkv7_chunk_forward(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, OptionalTensor state,
                           OptionalTensor cu_seqlens, int64_t decay, bool save);
using Wkv7Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
Wkv7Backward wkv7_backward(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor checkpoints,
                           OptionalTensor grad_y, OptionalTensor grad_state, OptionalTensor cu_seqlens, int64_t decay);
Wkv7Backward wkv7_chunk_backward(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor checkpoints,
                                 OptionalTensor grad_y, OptionalTensor grad_state, OptionalTensor cu_seqlens,
                                 int64_t decay);
Tensor wkv7_step(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor state, OptionalTensor slots,
                 int64_t decay);

// Registers all ops for one dispatch key; which kernels run, the tensors' device decides.
template <class Library>
void implement(Library& ops) {
  ops.impl("wkv4_forward", TORCH_BOX(&wkv4_forward));
  ops.impl("wkv4_backward", TORCH_BOX(&wkv4_backward));
  ops.impl("wkv4_step_", TORCH_BOX(&wkv4_step));
  ops.impl("wkv5_forward", TORCH_BOX(&wkv6_forward<5>));
  ops.impl("wkv5_chunk_forward", TORCH_BOX(&wkv6_chunk_forward<5>));
  ops.impl("wkv5_backward", TORCH_BOX(&wkv6_backward<5>));
  ops.impl("wkv5_chunk_backward", TORCH_BOX(&wkv6_chunk_backward<5>));
  ops.impl("wkv5_step_", TORCH_BOX(&wkv6_step<5>));
  ops.impl("wkv6_forward", TORCH_BOX(&wkv6_forward<6>));
  ops.impl("wkv6_chunk_forward", TORCH_BOX(&wkv6_chunk_forward<6>));
  ops.impl("wkv6_backward", TORCH_BOX(&wkv6_backward<6>));
  ops.impl("wkv6_chunk_backward", TORCH_BOX(&wkv6_chunk_backward<6>));
  ops.impl("wkv6_step_", TORCH_BOX(&wkv6_step<6>));
  ops.impl("wkv7_forward", TORCH_BOX(&wkv7_forward));
  ops.impl("wkv7_chunk_forward", TORCH_BOX(&wkv7_chunk_forward));
  ops.impl("wkv7_backward", TORCH_BOX(&wkv7_backward));
  ops.impl("wkv7_chunk_backward", TORCH_BOX(&wkv7_chunk_backward));
  ops.impl("wkv7_step_", TORCH_BOX(&wkv7_step));
}

}  // namespace flash_rwkv
