"""Rows of a pool of states, read and written without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor


def take(pool: Tensor, slots: Tensor | None) -> Tensor:
    """The states of the sequences; of a slot outside the pool, which the CPU has refused, a row of NaN."""
    if slots is None:
        return pool
    rows = pool.index_select(0, slots.clamp(0, pool.shape[0] - 1))
    return rows if pool.is_cpu else torch.where(_column(_inside(pool, slots), pool), rows, torch.nan)


def put(pool: Tensor, slots: Tensor | None, states: Tensor) -> None:
    """Write the states of the sequences to their rows; those of slots outside go nowhere."""
    if slots is None:
        pool.copy_(states)
        return
    if not pool.is_cpu:
        # Whoever is outside repeats what the first one inside writes; if nobody is inside, what is there already.
        inside = _inside(pool, slots)
        writer = torch.where(inside, torch.arange(len(slots), device=slots.device), inside.int().argmax())
        slots = slots[writer].clamp(0, pool.shape[0] - 1)
        states = torch.where(inside.any(), states[writer].to(pool.dtype), pool.index_select(0, slots))
    pool.index_copy_(0, slots.long(), states.to(pool.dtype))


def _inside(pool: Tensor, slots: Tensor) -> Tensor:
    return (slots >= 0) & (slots < pool.shape[0])


def _column(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (like.dim() - 1))
