"""What transformers' own RWKV-4 calls of `kernels-community/rwkv`: the same names and arguments.

`RwkvForCausalLM` runs on this kernel, unmodified, where `LOCAL_KERNELS=kernels-community/rwkv=PATH` names its
build. It allocates what the functions are to write. Shapes: B batch, T tokens, any number, C channels.

- w: `[C]`, float32, `-exp(time_decay)`; u: `[C]`, `time_first`; k, v, y: `[B, T, C]`, float32 or bfloat16.
- state: `[B, C, 3]`, float32: the sums p and q and the exponent o, updated in place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._ops import ops

__all__ = [
    "backward",
    "backward_bf16",
    "forward",
    "forward_bf16",
    "forward_with_state",
    "forward_with_state_bf16",
]


@torch.no_grad()
def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, y: Tensor) -> None:
    """Write y, of sequences that begin here."""
    y.copy_(ops.wkv4_forward(k, v, w, u, None, False)[0])


@torch.no_grad()
def forward_with_state(w: Tensor, u: Tensor, k: Tensor, v: Tensor, y: Tensor, state: Tensor) -> None:
    """Write y, going on from the state, and the state after the last token."""
    result, final, _ = ops.wkv4_forward(k, v, w, u, state.transpose(1, 2).contiguous(), False)
    y.copy_(result)
    state.copy_(final.transpose(1, 2))


@torch.no_grad()
def backward(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    grad_y: Tensor,
    grad_w: Tensor,
    grad_u: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
) -> None:
    """Write the gradients of `forward`: `[C]` summed over the batch in float32, `[B, T, C]` of k and v.

    `grad_w` receives the gradient of `time_decay`, not of w = -exp(time_decay): the caller, which makes w,
    leaves that derivative to the kernel.

    Raises:
        ValueError: a gradient has not the shape of its input.
    """
    outputs = {"grad_w": (grad_w, w), "grad_u": (grad_u, u), "grad_k": (grad_k, k), "grad_v": (grad_v, v)}
    for name, (output, tensor) in outputs.items():
        if output.shape != tensor.shape:
            raise ValueError(
                f"backward: {name} must be of the shape of its input, {list(tensor.shape)}, "
                f"got {list(output.shape)}"
            )
    checkpoints = ops.wkv4_forward(k, v, w, u, None, True)[2]
    of_k, of_v, of_w, of_u, _ = ops.wkv4_backward(k, v, w, u, checkpoints, grad_y, None)
    for output, gradient in ((grad_k, of_k), (grad_v, of_v), (grad_w, of_w * w), (grad_u, of_u)):
        output.copy_(gradient)


# The operators take either dtype.
forward_bf16 = forward
forward_with_state_bf16 = forward_with_state
backward_bf16 = backward
