"""Decays at both ends of what a number can say."""

from __future__ import annotations

import torch

# w from a decay so strong that the state is gone after one token to one so weak that float32 calls it 1.
EXTREME_W = {
    "log": (-1e30, -1000, -104, -88, -50, -10, -1, -0.1, -1e-2, -1e-4, -1e-8, -1e-30, 0.0),
    "exp": (-1e30, -100, -30, -10, -5, -1, 0, 1, 2, 4.6, 5, 30, 100, 1e30),
    "sigmoid": (-1e30, -100, -30, -10, -1, 0, 1, 10, 30, 100, 1e30),
    "wkv4": (-1e30, -1e4, -20.0, -1.0, -1e-4, -1e-30),  # which has one form
}


def in_range(values, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).clamp(torch.finfo(dtype).min, torch.finfo(dtype).max)
