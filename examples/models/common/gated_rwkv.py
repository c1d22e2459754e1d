"""What RWKV-5 and RWKV-6 share: attention under a gate of its own, channel mixing under receptance."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init

from .configuration_rwkv import RwkvBaseConfig
from .kernel_rwkv import recurrence
from .layers_rwkv import HEAD_NORM_EPSILON, NO_DECAY, RwkvMix


class GatedTimeMix(RwkvMix):
    """Linear attention with a matrix as state; the versions differ in how tokens are mixed, and in decay."""

    def __init__(self, config: RwkvBaseConfig, layer: int) -> None:
        super().__init__(config, layer)
        size = config.hidden_size
        self.time_faaaa = nn.Parameter(torch.empty(config.num_heads, config.head_size))
        self.receptance, self.key, self.value, self.gate, self.output = (
            nn.Linear(size, size, bias=False) for _ in range(5)
        )
        self.ln_x = nn.GroupNorm(config.num_heads, size, eps=HEAD_NORM_EPSILON)

    def attend(
        self,
        xr: Tensor,
        xk: Tensor,
        xv: Tensor,
        xg: Tensor,
        w: Tensor,
        state: Tensor | None,
        absent: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """From tokens mixed for each purpose, `[B, T, C]`, to y `[B, T, C]` and the state.

        Args:
            w: raw decay, d = e^(-e^w): `[H, N]`, or `[B, T, H, N]`.
            state: `[B, H, N_value, N_key]` before the tokens, None for zeros.
            absent: `[B, T, 1, 1]`, True at padding.
        """
        r, k, v = (self.heads(each) for each in (self.receptance(xr), self.key(xk), self.value(xv)))
        if absent is not None:  # d = 1 and nothing written: the state passes as it is
            w = w.expand_as(r).masked_fill(absent, NO_DECAY)
            k = k.masked_fill(absent, 0)
        operator = "wkv5" if w.dim() == 2 else "wkv6"
        y, state = recurrence(operator, r, k, v, w, self.time_faaaa, state=state, decay="exp")
        y = self.ln_x(y.reshape(-1, xr.shape[-1])).view_as(xr)
        return self.output(y * functional.silu(self.gate(xg))), state

    def initial_decay(self) -> Tensor:
        """`[C]`: from slow in the first channel to fast in the last, sooner so in early layers."""
        return -6 + 5 * self.ramp(0.7 + 1.3 * self.depth)

    def initialize(self) -> None:
        zigzag = 0.1 * ((torch.arange(self.config.hidden_size) + 1) % 3 - 1)
        bonus = self.depth * (1 - self.ramp(1)) + zigzag
        init.copy_(self.time_faaaa, bonus.view_as(self.time_faaaa))
        for layer, gain in ((self.receptance, 1), (self.key, 0.1), (self.value, 1), (self.gate, 0.1)):
            init.orthogonal_(layer.weight, gain=gain)
        init.zeros_(self.output.weight)


class GatedChannelMix(RwkvMix):
    """A squared-ReLU network under a gate."""

    def __init__(self, config: RwkvBaseConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.key = nn.Linear(config.hidden_size, config.channel_mix_size, bias=False)
        self.receptance = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.value = nn.Linear(config.channel_mix_size, config.hidden_size, bias=False)

    def transform(self, xk: Tensor, xr: Tensor) -> Tensor:
        """From tokens mixed for each purpose, `[B, T, C]`, to `[B, T, C]`."""
        return torch.sigmoid(self.receptance(xr)) * self.value(torch.relu(self.key(xk)) ** 2)

    def initialize(self) -> None:
        init.orthogonal_(self.key.weight)
        init.zeros_(self.receptance.weight)
        init.zeros_(self.value.weight)
