"""The logarithm of the decay, and its derivative. Forms have the ops' numbers: 0 log, 1 exp, 2 sigmoid."""

from __future__ import annotations

import torch
from torch import Tensor

# From here on exp(-exp(w)) is 0, also in float64; exp(w) itself must stay finite.
_LARGEST_EXPONENT = 80.0
# RWKV-7 keeps its decay above exp(-exp(-1/2)).
_SIGMOID_SCALE = 0.6065306597126334


def log_decay(w: Tensor, form: int) -> Tensor:
    """log d of w, elementwise; at most 0 for w in the range that `form` is for."""
    if form == 0:
        return w
    if form == 1:
        return -w.clamp(max=_LARGEST_EXPONENT).exp()
    return -_SIGMOID_SCALE * torch.sigmoid(w)


def gradient_of_w(w: Tensor, form: int, of_log_decay: Tensor) -> Tensor:
    """The gradient of w, elementwise, from that of log d. Where d is 0 that is 0, and so is this."""
    if form == 0:
        return of_log_decay
    if form == 1:
        return of_log_decay * -w.clamp(max=_LARGEST_EXPONENT).exp()
    gate = torch.sigmoid(w)
    return of_log_decay * (-_SIGMOID_SCALE * gate * (1 - gate))
