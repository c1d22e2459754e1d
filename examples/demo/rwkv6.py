"""RWKV-6 (Finch), arXiv 2404.05892: time mixing and channel mixing. Initial values as in BlinkDL/RWKV-LM."""

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

# The operator takes the raw decay and computes d = exp(-exp(w)) itself.
DECAY = "exp"

MIX_RANK = 32


class TimeMix6(nn.Module):
    """A matrix state a head that decays by a factor of its own for every token and key channel."""

    def __init__(self, dim: int, layer: int, layers: int) -> None:
        super().__init__()
        heads = dim // HEAD_SIZE
        depth, height = layer / max(layers - 1, 1), 1 - layer / layers

        # ddlerp: how much of the token before goes into each of r, k, v, w, g is a function of the token.
        self.mix_input = nn.Parameter(ramp(dim, height))
        powers = torch.tensor([0.5, 1.0, 1.0, 1.0, 0.5]) * height
        self.mix = nn.Parameter(torch.stack([ramp(dim, power) for power in powers.tolist()]))
        self.mix_down = nn.Parameter(torch.zeros(dim, 5 * MIX_RANK))
        self.mix_up = nn.Parameter(torch.empty(5, MIX_RANK, dim).uniform_(-0.01, 0.01))

        raw = -6 + 5 * torch.linspace(0, 1, dim) ** (0.7 + 1.3 * depth)
        self.decay = LowRank(dim, 64, nn.Tanh(), raw)
        self.bonus = nn.Parameter((depth * torch.linspace(1, 0, dim)).view(heads, HEAD_SIZE))

        self.receptance = linear(dim, dim, 0.5)
        self.key = linear(dim, dim, 0.05)
        self.value = linear(dim, dim, 0.5)
        self.gate = linear(dim, dim, 0.5)
        self.output = linear(dim, dim, 0)
        self.norm = head_norm(dim)

    def forward(
        self, x: Tensor, recurrence: Recurrence, state: LayerState | None, first_value: None
    ) -> tuple[Tensor, None]:
        """Mix over time; arguments as `TimeMix7.forward`, but RWKV-6 shares no values between layers."""
        difference = shift_difference(x, state and state.attention_token)
        mixed = x + difference * self.mix_input
        learned = torch.tanh(mixed @ self.mix_down).unflatten(-1, (5, MIX_RANK))
        learned = torch.einsum("btir,irc->ibtc", learned, self.mix_up)
        r, k, v, w, gate = x + difference * (self.mix[:, None, None] + learned)

        r, k, v = self.receptance(r), self.key(k), self.value(v)
        gate = functional.silu(self.gate(gate))
        inputs = (*(split_heads(each) for each in (r, k, v, self.decay(w))), self.bonus)
        y = run(recurrence, inputs, state, DECAY)

        y = self.norm(y.flatten(0, 1).flatten(1)).view_as(x)
        return self.output(y * gate), None


class ChannelMix6(nn.Module):
    """A squared-ReLU network with a gate, on the token mixed with the one before."""

    def __init__(self, dim: int, layer: int, layers: int) -> None:
        super().__init__()
        height = 1 - layer / layers
        self.mix = nn.ParameterDict({name: nn.Parameter(ramp(dim, height)) for name in ("k", "r")})
        hidden = dim * 7 // 2
        self.key = linear(dim, hidden, 0.5)
        self.value = linear(hidden, dim, 0)
        self.receptance = linear(dim, dim, 0.5)

    def forward(self, x: Tensor, state: LayerState | None) -> Tensor:
        difference = shift_difference(x, state and state.channel_token)
        hidden = torch.relu(self.key(x + difference * self.mix["k"])) ** 2
        return torch.sigmoid(self.receptance(x + difference * self.mix["r"])) * self.value(hidden)
