"""RWKV-7 (Goose), arXiv 2503.14456: time mixing and channel mixing. Initial values as in BlinkDL/RWKV-LM."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.demo.layers import (
    HEAD_SIZE,
    LayerState,
    LowRank,
    head_norm,
    linear,
    ramp,
    shift_difference,
    split_heads,
)
from examples.demo.recurrence import Recurrence, run

# The operator takes the decay's raw logits and computes d = exp(-exp(-1/2) sigmoid(w)) itself.
DECAY = "sigmoid"


class TimeMix7(nn.Module):
    """The delta rule: each head reads its state along kk, removes what it found there and writes v at k."""

    def __init__(self, dim: int, layer: int, layers: int) -> None:
        super().__init__()
        heads = dim // HEAD_SIZE
        depth, height = layer / max(layers - 1, 1), 1 - layer / layers
        self.first = layer == 0

        powers = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
        self.mix = nn.ParameterDict(
            {name: nn.Parameter(ramp(dim, power * height)) for name, power in powers.items()}
        )
        logits = -6.5 + 5 * torch.linspace(0, 1, dim) ** (0.85 + depth**0.5)
        self.decay = LowRank(dim, 32, nn.Tanh(), logits)
        self.learning_rate = LowRank(dim, 32, nn.Identity(), torch.zeros(dim))
        self.gate = LowRank(dim, 64, nn.Sigmoid(), None)
        if not self.first:
            self.value_mix = LowRank(dim, 16, nn.Identity(), torch.ones(dim))

        self.receptance = linear(dim, dim, 0.5)
        self.key = linear(dim, dim, 0.05)
        self.value = linear(dim, dim, 0.5)
        self.output = linear(dim, dim, 0)
        self.key_direction = nn.Parameter(torch.full((dim,), 0.85))
        self.key_rate = nn.Parameter(torch.ones(dim))
        self.bonus = nn.Parameter(torch.zeros(heads, HEAD_SIZE))
        self.norm = head_norm(dim)

    def forward(
        self, x: Tensor, recurrence: Recurrence, state: LayerState | None, first_value: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Mix over time.

        Args:
            x: `[B, T, C]`.
            recurrence: `wkv7` of the kernel or of the reference.
            state: where the tokens before left off; updated in place. None starts from nothing.
            first_value: `[B, T, C]`, the first layer's values, which the later layers' are blended with.

        Returns:
            y `[B, T, C]` and the first layer's values.
        """
        difference = shift_difference(x, state and state.attention_token)
        mixed = {name: x + difference * mix for name, mix in self.mix.items()}

        r, k, v = self.receptance(mixed["r"]), self.key(mixed["k"]), self.value(mixed["v"])
        w = self.decay(mixed["w"])
        rate = torch.sigmoid(self.learning_rate(mixed["a"]))
        gate = self.gate(mixed["g"])
        if self.first:
            first_value = v
        else:
            v = torch.lerp(v, first_value, torch.sigmoid(self.value_mix(mixed["v"])))

        direction = functional.normalize(split_heads(k * self.key_direction), dim=-1)
        k = k * (1 + (rate - 1) * self.key_rate)
        r, w, k, v, rate = (split_heads(each) for each in (r, w, k, v, rate))
        inputs = (r, w, k, v, -direction, direction * rate)
        y = run(recurrence, inputs, state, DECAY)

        y = self.norm(y.flatten(0, 1).flatten(1)).view_as(x)
        y = y + ((r * k * self.bonus).sum(-1, keepdim=True) * v).flatten(2)
        return self.output(y * gate), first_value


class ChannelMix7(nn.Module):
    """A squared-ReLU network on the token mixed with the one before."""

    def __init__(self, dim: int, layer: int, layers: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(ramp(dim, (1 - layer / layers) ** 4))
        self.key = linear(dim, 4 * dim, 0.5)
        self.value = linear(4 * dim, dim, 0)

    def forward(self, x: Tensor, state: LayerState | None) -> Tensor:
        difference = shift_difference(x, state and state.channel_token)
        return self.value(torch.relu(self.key(x + difference * self.mix)) ** 2)
