"""Rows of a pool of states, read and written without waiting for the device.

Only on the CPU have slots been looked at. Elsewhere one may be outside: it reads NaN and writes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor


def take(pool: Tensor, slots: Tensor | None) -> Tensor:
    """The states of the sequences."""
    if slots is None:
        return pool
    inside = _inside(pool, slots).view(-1, *[1] * (pool.dim() - 1))
    return torch.where(inside, pool.index_select(0, slots.clamp(0, pool.shape[0] - 1)), torch.nan)


def put(pool: Tensor, slots: Tensor | None, states: Tensor) -> None:
    """Write the states of the sequences to their rows."""
    if slots is None:
        pool.copy_(states)
        return
    if slots.shape[0] == 0:
        return
    # Whoever is outside writes what the first one inside writes; if nobody is inside, what is there already.
    inside = _inside(pool, slots)
    writer = torch.where(inside, torch.arange(slots.shape[0], device=slots.device), inside.int().argmax())
    rows = slots[writer].clamp(0, pool.shape[0] - 1).long()
    values = torch.where(inside.any(), states[writer].to(pool.dtype), pool.index_select(0, rows))
    pool.index_copy_(0, rows, values)


def _inside(pool: Tensor, slots: Tensor) -> Tensor:
    return (slots >= 0) & (slots < pool.shape[0])
