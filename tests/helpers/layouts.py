"""The same numbers in other memory layouts, as models hand them over."""

from __future__ import annotations

import torch
from torch import Tensor


def contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def transposed(x: Tensor) -> Tensor:
    """Heads before tokens in memory, as after `[B, H, T, N].transpose(1, 2)`; else channels first."""
    if x.dim() < 2:
        return strided(x)
    first, second = (1, 2) if x.dim() > 2 else (0, 1)
    return x.transpose(first, second).contiguous().transpose(first, second)


def channels_outermost(x: Tensor) -> Tensor:
    """The last dimension is the one of the largest stride."""
    return x.movedim(-1, 0).contiguous().movedim(0, -1)


def strided(x: Tensor) -> Tensor:
    """Every other element of a tensor of NaN, so that one read beside x is seen."""
    around = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan, dtype=x.dtype, device=x.device)
    view = around[..., 1::2]
    return view.copy_(x)


def chunk_of_a_projection(x: Tensor) -> Tensor:
    """The middle third of the last dimension of a wider tensor, as `qkv.chunk(3, dim=-1)` gives."""
    around = torch.full((*x.shape[:-1], 3 * x.shape[-1]), torch.nan, dtype=x.dtype, device=x.device)
    return around.chunk(3, dim=-1)[1].copy_(x)


def inside_guards(x: Tensor) -> Tensor:
    """Contiguous, at an odd offset into a buffer of NaN: not aligned to any vector."""
    around = torch.full((x.numel() + 600,), torch.nan, dtype=x.dtype, device=x.device)
    return around[301 : 301 + x.numel()].view(x.shape).copy_(x)


LAYOUTS = (contiguous, transposed, channels_outermost, strided, chunk_of_a_projection, inside_guards)


# Tensors of which many elements are one number in memory. They change the numbers, unlike layouts.


def as_it_is(x: Tensor) -> Tensor:
    return x


def one_sequence_for_all(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


def one_token_for_all(x: Tensor) -> Tensor:
    return x[:, :1].expand(x.shape)


def one_head_for_all(x: Tensor) -> Tensor:
    """Of RWKV-4, one channel."""
    return x[:, :, :1].expand(x.shape)


SHARINGS = (as_it_is, one_sequence_for_all, one_token_for_all, one_head_for_all)


def sliding_window(x: Tensor) -> Tensor:
    """Each token begins one element behind the last, as in a view by `unfold`."""
    row = x[0].contiguous()
    return row.as_strided(x.shape, (0, 1, *row.stride()[1:]))
