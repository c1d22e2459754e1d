// The ops: schemas are in torch_binding.cpp, shapes and formulas in flash_rwkv/ops.py.
#pragma once

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
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> wkv6_backward(Tensor r, Tensor k, Tensor v, Tensor w,
                                                                         Tensor u, Tensor checkpoints,
                                                                         OptionalTensor grad_y,
                                                                         OptionalTensor grad_state,
                                                                         OptionalTensor cu_seqlens, int64_t decay);
template <int kVersion>
Tensor wkv6_step(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor state, OptionalTensor slots, int64_t decay);

Outputs wkv7_forward(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, OptionalTensor state,
                     OptionalTensor cu_seqlens, int64_t decay, bool save);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> wkv7_backward(
    Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor checkpoints, OptionalTensor grad_y,
    OptionalTensor grad_state, OptionalTensor cu_seqlens, int64_t decay);
Tensor wkv7_step(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor state, OptionalTensor slots,
                 int64_t decay);

}  // namespace flash_rwkv
