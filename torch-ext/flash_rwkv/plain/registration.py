"""Defines the ops, with the schemas of `torch_binding.cpp`; `fakes` and `gradients` register the rest."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from .._ops import add_op_namespace_prefix
from . import pool, wkv4, wkv6, wkv7
from .checks import Call
from .heads import Heads, compute_dtype

_NAMES = {
    "wkv4": ("k", "v", "w", "u"),
    "wkv5": ("r", "k", "v", "w", "u"),
    "wkv6": ("r", "k", "v", "w", "u"),
    "wkv7": ("r", "w", "k", "v", "a", "b"),
}
_FORMS = {"wkv5": wkv6, "wkv6": wkv6, "wkv7": wkv7}


def _wkv4_forward(op: str, *arguments):
    *inputs, state, save = arguments
    Call(op, _NAMES[op], inputs).state("state", state, inputs[0].shape[0])
    k, *others = _computed(inputs)
    state = wkv4.empty(k) if state is None else state
    y, final_state, checkpoints = wkv4.forward(k, *others, state)
    return (
        y.to(inputs[0].dtype),
        final_state,
        checkpoints if save else checkpoints.new_empty(0, *state.shape[1:]),
    )


def _wkv4_backward(op: str, *arguments):
    *inputs, checkpoints, grad_y, grad_state = arguments
    Call(op, _NAMES[op], inputs).gradients(checkpoints, grad_y, grad_state, None)
    k, *others = _computed(inputs)
    batch, tokens, _ = k.shape
    # Of the states that were saved only the first is needed; after no token it does not matter.
    initial = checkpoints.unflatten(0, (batch, -1))[:, 0] if tokens and batch else wkv4.empty(k)
    grad_y = torch.zeros_like(k) if grad_y is None else grad_y.to(k.dtype).contiguous()
    grad_state = torch.zeros_like(initial) if grad_state is None else grad_state
    *gradients, of_state = wkv4.backward(k, *others, initial, grad_y, grad_state)
    return (*(g.to(x.dtype) for g, x in zip(gradients, inputs)), of_state)


def _wkv4_step(op: str, *arguments):
    *inputs, state, slots = arguments
    Call(op, _NAMES[op[:4]], inputs).pool(state, slots)
    k, v, w, u = _computed(inputs)
    k, v = (x if x.dim() == 3 else x.unsqueeze(1) for x in (k, v))
    y, final_state, _ = wkv4.forward(k, v, w, u, pool.take(state, slots).to(k.dtype))
    pool.put(state, slots, final_state)
    return y.view(inputs[0].shape).to(inputs[0].dtype)


def _heads_forward(op: str, *arguments):
    *inputs, state, cu_seqlens, decay, save = arguments
    call = Call(op, _NAMES[op], inputs, decay)
    call.state("state", state, call.cu_seqlens(cu_seqlens))
    return Heads(_FORMS[op], inputs, cu_seqlens, decay).forward(state, save)


def _heads_backward(op: str, *arguments):
    *inputs, checkpoints, grad_y, grad_state, cu_seqlens, decay = arguments
    Call(op, _NAMES[op], inputs, decay).gradients(checkpoints, grad_y, grad_state, cu_seqlens)
    return Heads(_FORMS[op], inputs, cu_seqlens, decay).backward(checkpoints, grad_y, grad_state)


def _heads_step(op: str, *arguments):
    *inputs, state, slots, decay = arguments
    Call(op, _NAMES[op[:4]], inputs, decay).pool(state, slots)
    if (first := inputs[0]).dim() == 3:
        inputs = [x.unsqueeze(1) if x.dim() == 3 else x for x in inputs]
    y, final_state, _ = Heads(_FORMS[op[:4]], inputs, None, decay).forward(pool.take(state, slots))
    pool.put(state, slots, final_state)
    return y.view(first.shape)


def _refuse_chunks(op: str, first: Tensor, *arguments):
    raise RuntimeError(
        f"{op}: algorithm 'chunk' runs on the tensor cores of CUDA devices of capability 8.0 and later, in "
        f"their own variant; expected 'auto' or 'recurrent', got 'chunk' for a tensor on {first.device}"
    )


def _computed(tensors) -> list[Tensor]:
    """In the dtype that is computed in, and in one layout: sums are rounded in the order of the memory."""
    dtype = compute_dtype(tensors[0])
    return [x.to(dtype).contiguous() for x in tensors]


def _schema(inputs: tuple[str, ...], arguments: str, results: int) -> str:
    tensors = ", ".join(f"Tensor {name}" for name in inputs)
    returned = ", ".join(["Tensor"] * results)
    return f"({tensors}, {arguments}) -> {f'({returned})' if results > 1 else returned}"


def _register(name: str, schema: str, function: Callable) -> None:
    torch.library.define(add_op_namespace_prefix(name), schema)
    torch.library.impl(add_op_namespace_prefix(name), "default")(function)


def _of(op: str, function: Callable) -> Callable:
    """The implementation of one op. Autocast has had its say about the inputs, and has none inside."""

    @functools.wraps(function)
    def call(first: Tensor, *others):
        device = first.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return function(op, first, *others)
        return function(op, first, *others)

    return call


def _register_operator(op: str, forward: Callable, backward: Callable, step: Callable) -> None:
    names = _NAMES[op]
    decay, options = (", int decay", ", Tensor? cu_seqlens, int decay") if op in _FORMS else ("", "")
    forward_schema = _schema(names, f"Tensor? state{options}, bool save", 3)
    given = f"Tensor checkpoints, Tensor? grad_y, Tensor? grad_state{options}"
    backward_schema = _schema(names, given, len(names) + 1)
    _register(f"{op}_forward", forward_schema, _of(op, forward))
    _register(f"{op}_backward", backward_schema, _of(op, backward))
    step_schema = _schema(names, f"Tensor(a!) state, Tensor? slots{decay}", 1)
    _register(f"{op}_step_", step_schema, _of(f"{op}_step_", step))
    if op in _FORMS:
        _register(f"{op}_chunk_forward", forward_schema, _of(op, _refuse_chunks))
        _register(f"{op}_chunk_backward", backward_schema, _of(op, _refuse_chunks))


_register_operator("wkv4", _wkv4_forward, _wkv4_backward, _wkv4_step)
for _op in _FORMS:
    _register_operator(_op, _heads_forward, _heads_backward, _heads_step)

_register("cpu_isa", "() -> str", lambda: "torch")
_question = "int version, int head_size, int device_index, bool gradients"
_register("has_chunks", f"({_question}) -> bool", lambda *question: False)
