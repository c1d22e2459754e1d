"""Fakes: the shapes and dtypes of every op's results, for tracing without data."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _ops
from ._ops import add_op_namespace_prefix

# Tokens between two states that forward saves for backward: kCheckpointTokens in wkv_params.h, and
# kCudaCheckpointTokens for matrix states on CUDA.
CHECKPOINT_TOKENS = 64
CUDA_CHECKPOINT_TOKENS = 16
# What is in plain PyTorch saves the same on every device.
IS_PLAIN = hasattr(_ops, "plain")


def _on_one_device(op: str, first: Tensor, **others: Tensor | None) -> None:
    """Tracing sees tensors of several devices before any kernel does."""
    for name, tensor in others.items():
        if tensor is not None and tensor.device != first.device:
            raise RuntimeError(
                f"{op}: {name} must be on the device of the first tensor, {first.device}, got {tensor.device}"
            )


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _fake_heads_forward(
    r: Tensor,
    cu_seqlens: Tensor | None,
    save: bool,
    saves_rows: bool = False,
    chunks: bool = False,
    saved_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`saves_rows`: on CUDA each saved state has a row for every token behind it, unless `chunks`."""
    batch, tokens, heads, size = r.shape
    cuda = r.device.type == "cuda" and not chunks and not IS_PLAIN
    each = CUDA_CHECKPOINT_TOKENS if cuda else CHECKPOINT_TOKENS
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    blocks = 0
    if save:
        blocks = batch * ((tokens + each - 1) // each) if cu_seqlens is None else tokens // each + sequences
    rows = size + each if cuda and saves_rows else size
    compute = _compute_dtype(r)
    state = r.new_empty((sequences, heads, size, size), dtype=compute)
    return r.new_empty(r.shape), state, r.new_empty((blocks, heads, rows, size), dtype=saved_dtype or compute)


def _fake_state(r: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    batch, _, heads, size = r.shape
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return r.new_empty((sequences, heads, size, size), dtype=_compute_dtype(r))


def _empty(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.shape)


@torch.library.register_fake(add_op_namespace_prefix("wkv4_forward"))
def _(k, v, w, u, state, save):
    _on_one_device("wkv4", k, v=v, w=w, u=u, state=state)
    batch, tokens, channels = k.shape
    compute = _compute_dtype(k)
    blocks = batch * ((tokens + CHECKPOINT_TOKENS - 1) // CHECKPOINT_TOKENS) if save else 0
    final_state = k.new_empty((batch, 3, channels), dtype=compute)
    return _empty(k), final_state, k.new_empty((blocks, 3, channels), dtype=compute)


@torch.library.register_fake(add_op_namespace_prefix("wkv4_backward"))
def _(k, v, w, u, checkpoints, grad_y, grad_state):
    _on_one_device("wkv4", k, v=v, w=w, u=u, checkpoints=checkpoints, grad_y=grad_y, grad_state=grad_state)
    batch, _, channels = k.shape
    state = k.new_empty((batch, 3, channels), dtype=_compute_dtype(k))
    return _empty(k), _empty(v), _empty(w), _empty(u), state


@torch.library.register_fake(add_op_namespace_prefix("wkv4_step_"))
def _(k, v, w, u, state, slots):
    _on_one_device("wkv4_step_", k, v=v, w=w, u=u, state=state, slots=slots)
    return _empty(k)


@torch.library.register_fake(add_op_namespace_prefix("wkv5_forward"))
def _(r, k, v, w, u, state, cu_seqlens, decay, save):
    _on_one_device("wkv5", r, k=k, v=v, w=w, u=u, state=state, cu_seqlens=cu_seqlens)
    return _fake_heads_forward(r, cu_seqlens, save)


@torch.library.register_fake(add_op_namespace_prefix("wkv6_forward"))
def _(r, k, v, w, u, state, cu_seqlens, decay, save):
    _on_one_device("wkv6", r, k=k, v=v, w=w, u=u, state=state, cu_seqlens=cu_seqlens)
    return _fake_heads_forward(r, cu_seqlens, save)


@torch.library.register_fake(add_op_namespace_prefix("wkv7_forward"))
def _(r, w, k, v, a, b, state, cu_seqlens, decay, save):
    _on_one_device("wkv7", r, w=w, k=k, v=v, a=a, b=b, state=state, cu_seqlens=cu_seqlens)
    return _fake_heads_forward(r, cu_seqlens, save, saves_rows=True)


@torch.library.register_fake(add_op_namespace_prefix("wkv7_chunk_forward"))
def _(r, w, k, v, a, b, state, cu_seqlens, decay, save):
    _on_one_device("wkv7", r, w=w, k=k, v=v, a=a, b=b, state=state, cu_seqlens=cu_seqlens)
    return _fake_heads_forward(r, cu_seqlens, save, chunks=True)


@torch.library.register_fake(add_op_namespace_prefix("wkv5_chunk_forward"))
def _(r, k, v, w, u, state, cu_seqlens, decay, save):
    _on_one_device("wkv5", r, k=k, v=v, w=w, u=u, state=state, cu_seqlens=cu_seqlens)
    return _fake_heads_forward(r, cu_seqlens, save, chunks=True, saved_dtype=torch.bfloat16)


@torch.library.register_fake(add_op_namespace_prefix("wkv5_backward"))
@torch.library.register_fake(add_op_namespace_prefix("wkv5_chunk_backward"))
def _(r, k, v, w, u, checkpoints, grad_y, grad_state, cu_seqlens, decay):
    _on_one_device(
        "wkv5",
        r,
        k=k,
        v=v,
        w=w,
        u=u,
        checkpoints=checkpoints,
        grad_y=grad_y,
        grad_state=grad_state,
        cu_seqlens=cu_seqlens,
    )
    return _empty(r), _empty(k), _empty(v), _empty(w), _empty(u), _fake_state(r, cu_seqlens)


@torch.library.register_fake(add_op_namespace_prefix("wkv6_chunk_forward"))
def _(r, k, v, w, u, state, cu_seqlens, decay, save):
    _on_one_device("wkv6", r, k=k, v=v, w=w, u=u, state=state, cu_seqlens=cu_seqlens)
    return _fake_heads_forward(r, cu_seqlens, save, chunks=True, saved_dtype=torch.bfloat16)


@torch.library.register_fake(add_op_namespace_prefix("wkv6_backward"))
@torch.library.register_fake(add_op_namespace_prefix("wkv6_chunk_backward"))
def _(r, k, v, w, u, checkpoints, grad_y, grad_state, cu_seqlens, decay):
    _on_one_device(
        "wkv6",
        r,
        k=k,
        v=v,
        w=w,
        u=u,
        checkpoints=checkpoints,
        grad_y=grad_y,
        grad_state=grad_state,
        cu_seqlens=cu_seqlens,
    )
    return _empty(r), _empty(k), _empty(v), _empty(w), _empty(u), _fake_state(r, cu_seqlens)


@torch.library.register_fake(add_op_namespace_prefix("wkv7_backward"))
@torch.library.register_fake(add_op_namespace_prefix("wkv7_chunk_backward"))
def _(r, w, k, v, a, b, checkpoints, grad_y, grad_state, cu_seqlens, decay):
    _on_one_device(
        "wkv7",
        r,
        w=w,
        k=k,
        v=v,
        a=a,
        b=b,
        checkpoints=checkpoints,
        grad_y=grad_y,
        grad_state=grad_state,
        cu_seqlens=cu_seqlens,
    )
    return _empty(r), _empty(w), _empty(k), _empty(v), _empty(a), _empty(b), _fake_state(r, cu_seqlens)


@torch.library.register_fake(add_op_namespace_prefix("wkv5_step_"))
def _(r, k, v, w, u, state, slots, decay):
    _on_one_device("wkv5_step_", r, k=k, v=v, w=w, u=u, state=state, slots=slots)
    return _empty(r)


@torch.library.register_fake(add_op_namespace_prefix("wkv6_step_"))
def _(r, k, v, w, u, state, slots, decay):
    _on_one_device("wkv6_step_", r, k=k, v=v, w=w, u=u, state=state, slots=slots)
    return _empty(r)


@torch.library.register_fake(add_op_namespace_prefix("wkv7_step_"))
def _(r, w, k, v, a, b, state, slots, decay):
    _on_one_device("wkv7_step_", r, w=w, k=k, v=v, a=a, b=b, state=state, slots=slots)
    return _empty(r)
