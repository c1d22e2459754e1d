"""What the RWKV-6 and RWKV-7 models share: token shift, low-rank functions of a token, the layers' state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

HEAD_SIZE = 64


@dataclass
class LayerState:
    """What one layer remembers of the tokens so far; updated in place.

    Attributes:
        attention_token: `[B, C]`, the last input of time mixing.
        channel_token: `[B, C]`, the last input of channel mixing.
        wkv: `[B, H, N_value, N_key]`, the state of the operator.
    """

    attention_token: Tensor
    channel_token: Tensor
    wkv: Tensor

    @classmethod
    def empty(cls, batch: int, dim: int, device: torch.device) -> LayerState:
        heads = dim // HEAD_SIZE
        return cls(
            torch.zeros(batch, dim, device=device),
            torch.zeros(batch, dim, device=device),
            torch.zeros(batch, heads, HEAD_SIZE, HEAD_SIZE, device=device),
        )


def shift_difference(x: Tensor, last_token: Tensor | None) -> Tensor:
    """The token before minus the token, `[B, T, C]`; `last_token` `[B, C]` stands before x and is updated."""
    if last_token is None:
        before = nn.functional.pad(x, (0, 0, 1, -1))
    else:
        before = torch.cat([last_token[:, None], x[:, :-1]], dim=1)
        last_token.copy_(x[:, -1])
    return before - x


def ramp(dim: int, power: float) -> Tensor:
    """Mixing coefficients `[C]` from 1 down to 0: low channels look at the token before, high ones less."""
    return 1 - torch.linspace(0, 1, dim) ** power


def split_heads(x: Tensor) -> Tensor:
    """`[B, T, C]` as `[B, T, H, N]`."""
    return x.unflatten(-1, (-1, HEAD_SIZE))


def linear(inputs: int, outputs: int, scale: float) -> nn.Linear:
    """A matrix without bias, uniform in ±scale/sqrt(inputs); 0 makes a residual branch start silent."""
    layer = nn.Linear(inputs, outputs, bias=False)
    bound = scale / inputs**0.5
    nn.init.uniform_(layer.weight, -bound, bound)
    return layer


class LowRank(nn.Module):
    """offset + activation(x A) B with a narrow A: the data-dependent part of decay, gate and the like.

    A starts at zero, so that every token starts with the offset.
    """

    def __init__(self, dim: int, rank: int, activation: nn.Module, offset: Tensor | None) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.zeros(dim, rank))
        self.up = nn.Parameter(nn.init.orthogonal_(torch.empty(rank, dim), gain=0.1))
        self.activation = activation
        self.offset = None if offset is None else nn.Parameter(offset)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(x @ self.down) @ self.up
        return y if self.offset is None else y + self.offset


def head_norm(dim: int) -> nn.GroupNorm:
    """Normalises the operator's output a head; apply it to `[B * T, C]`."""
    return nn.GroupNorm(dim // HEAD_SIZE, dim, eps=64e-5)
