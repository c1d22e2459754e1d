"""Gradients: how autograd goes from every forward op to its backward op."""

from __future__ import annotations

import torch

from ._ops import add_op_namespace_prefix, ops


class _Gradient:
    """How one op is differentiated: `inputs` float tensors, the state, then what has no derivative."""

    def __init__(self, name: str, inputs: int, options: int):
        self.name = name
        self.inputs = inputs
        self.options = options  # trailing arguments between the state and `save` (cu_seqlens, decay)

    def setup_context(self, ctx, inputs, output):
        tensors = inputs[: self.inputs]
        state = inputs[self.inputs]
        cu_seqlens = inputs[self.inputs + 1] if self.options else None
        ctx.save_for_backward(*tensors, state, cu_seqlens, output[2])
        ctx.decay = inputs[self.inputs + 2] if self.options else None
        ctx.saved_checkpoints = inputs[-1]
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)

    def backward(self, ctx, grad_y, grad_state, _):
        *tensors, state, cu_seqlens, checkpoints = ctx.saved_tensors
        options = (cu_seqlens, ctx.decay) if self.options else ()
        if not ctx.saved_checkpoints:
            # The op was called without `save` although a gradient was wanted: run it again.
            forward = getattr(ops, f"{self.name}_forward")
            checkpoints = forward(*tensors, state, *options, True)[2]
        backward = getattr(ops, f"{self.name}_backward")
        *gradients, grad_initial = backward(*tensors, checkpoints, grad_y, grad_state, *options)
        return (*gradients, grad_initial if state is not None else None, *(None for _ in options), None)

    def refuse(self, ctx, *gradients):
        raise RuntimeError(
            f"{self.name}: expected a first derivative, got a second (its gradient is not differentiable)"
        )


_GRADIENTS = (
    _Gradient("wkv4", 4, 0),
    *(_Gradient(name, 5, 2) for name in ("wkv5", "wkv5_chunk", "wkv6", "wkv6_chunk")),
    *(_Gradient(name, 6, 2) for name in ("wkv7", "wkv7_chunk")),
)

for _gradient in _GRADIENTS:
    torch.library.register_autograd(
        add_op_namespace_prefix(f"{_gradient.name}_forward"),
        _gradient.backward,
        setup_context=_gradient.setup_context,
    )
    torch.library.register_autograd(add_op_namespace_prefix(f"{_gradient.name}_backward"), _gradient.refuse)
