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


def _refuse_chunks(name: str):
    def refuse(ctx, *gradients):
        raise RuntimeError(f"{name}: algorithm 'chunk' has no gradient yet; expected 'auto' or 'recurrent'")

    return refuse


_WKV4 = _Gradient("wkv4", 4, 0)
_WKV5 = _Gradient("wkv5", 5, 2)
_WKV6 = _Gradient("wkv6", 5, 2)
_WKV7 = _Gradient("wkv7", 6, 2)
_WKV7_CHUNK = _Gradient("wkv7_chunk", 6, 2)

torch.library.register_autograd(
    add_op_namespace_prefix("wkv4_forward"), _WKV4.backward, setup_context=_WKV4.setup_context
)
torch.library.register_autograd(
    add_op_namespace_prefix("wkv5_forward"), _WKV5.backward, setup_context=_WKV5.setup_context
)
torch.library.register_autograd(
    add_op_namespace_prefix("wkv6_forward"), _WKV6.backward, setup_context=_WKV6.setup_context
)
torch.library.register_autograd(
    add_op_namespace_prefix("wkv7_forward"), _WKV7.backward, setup_context=_WKV7.setup_context
)
torch.library.register_autograd(
    add_op_namespace_prefix("wkv7_chunk_forward"),
    _WKV7_CHUNK.backward,
    setup_context=_WKV7_CHUNK.setup_context,
)
for _name in ("wkv5", "wkv6"):
    torch.library.register_autograd(add_op_namespace_prefix(f"{_name}_chunk_forward"), _refuse_chunks(_name))
torch.library.register_autograd(add_op_namespace_prefix("wkv4_backward"), _WKV4.refuse)
torch.library.register_autograd(add_op_namespace_prefix("wkv5_backward"), _WKV5.refuse)
torch.library.register_autograd(add_op_namespace_prefix("wkv6_backward"), _WKV6.refuse)
torch.library.register_autograd(add_op_namespace_prefix("wkv7_backward"), _WKV7.refuse)
torch.library.register_autograd(add_op_namespace_prefix("wkv7_chunk_backward"), _WKV7_CHUNK.refuse)
