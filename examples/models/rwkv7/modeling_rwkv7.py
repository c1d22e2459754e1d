"""RWKV-7 (Goose), arXiv 2503.14456, for transformers. Names and initial values as in BlinkDL/RWKV-LM.

Letters in shapes: B batch, T tokens, C channels, H heads, N head size, C = H·N.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init

from .configuration_rwkv7 import Rwkv7Config
from .kernel_rwkv import recurrence
from .layers_rwkv import HEAD_NORM_EPSILON, NO_DECAY, RwkvMix
from .model_rwkv import RwkvForCausalLM, RwkvModel


class Rwkv7TimeMix(RwkvMix):
    """The delta rule: each head reads its state along kk, removes what it found there and writes v at k."""

    def __init__(self, config: Rwkv7Config, layer: int) -> None:
        super().__init__(config, layer)
        size = config.hidden_size
        self.add_rows("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a", "w0", "a0")
        ranks = {"w": config.decay_rank, "a": config.rate_rank, "g": config.gate_rank}
        if layer:
            self.add_rows("v0")
            ranks["v"] = config.value_rank
        for name, rank in ranks.items():
            self.register_parameter(f"{name}1", nn.Parameter(torch.empty(size, rank)))
            self.register_parameter(f"{name}2", nn.Parameter(torch.empty(rank, size)))
        self.r_k = nn.Parameter(torch.empty(config.num_heads, config.head_size))
        self.receptance, self.key, self.value, self.output = (
            nn.Linear(size, size, bias=False) for _ in range(4)
        )
        self.ln_x = nn.GroupNorm(config.num_heads, size, eps=HEAD_NORM_EPSILON)

    def forward(
        self,
        x: Tensor,
        before: Tensor,
        v_first: Tensor | None,
        state: Tensor | None,
        absent: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mix x `[B, T, C]`, or one token `[B, C]`, over time.

        Args:
            before: the token before each, `[B, T, C]`.
            v_first: the first layer's values `[B, T, C]`; None in the first layer.
            state: `[B, H, N_value, N_key]` before the tokens, None for zeros.
            absent: `[B, T, 1, 1]`, True at padding.

        Returns:
            y `[B, T, C]`, v_first and the state after the tokens.
        """
        xr, xw, xk, xv, xa, xg = self.mix(x, before, "x_r", "x_w", "x_k", "x_v", "x_a", "x_g")
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        w = self.w0.float() + torch.tanh(xw @ self.w1) @ self.w2  # float32
        rate = torch.sigmoid(self.a0 + xa @ self.a1 @ self.a2)
        gate = torch.sigmoid(xg @ self.g1) @ self.g2
        if v_first is None:
            v_first = v
        else:
            v = torch.addcmul(v, v_first - v, torch.sigmoid(self.v0 + xv @ self.v1 @ self.v2))

        kk = functional.normalize(self.heads(k * self.k_k), dim=-1)
        k = k * torch.addcmul(1 - self.k_a, rate, self.k_a)
        r, w, k, v, rate = (self.heads(each) for each in (r, w, k, v, rate))
        a, b = -kk, kk * rate
        if absent is not None:  # d = 1 and nothing removed or written: the state passes as it is
            w = w.masked_fill(absent, NO_DECAY)
            k, a, b = (each.masked_fill(absent, 0) for each in (k, a, b))
        y, state = recurrence("wkv7", r, w, k, v, a, b, state=state, decay="sigmoid")

        y = self.ln_x(y.reshape(-1, x.shape[-1])).view_as(r)
        y = torch.addcmul(y, (r * k * self.r_k).sum(-1, keepdim=True), v).flatten(-2)
        return self.output(y * gate), v_first, state

    def initialize(self) -> None:
        powers = {"x_r": 0.2, "x_w": 0.9, "x_k": 0.7, "x_v": 0.7, "x_a": 0.9, "x_g": 0.2}
        for name, power in powers.items():
            init.copy_(getattr(self, name), 1 - self.ramp(power * self.height))
        init.copy_(self.w0, -6.5 + 5 * self.ramp(0.85 + self.depth**0.5))
        init.zeros_(self.a0)
        init.constant_(self.k_k, 0.85)
        init.ones_(self.k_a)
        init.zeros_(self.r_k)
        if hasattr(self, "v0"):
            init.ones_(self.v0)
        for name in "wagv" if hasattr(self, "v0") else "wag":
            init.zeros_(getattr(self, f"{name}1"))
            init.orthogonal_(getattr(self, f"{name}2"), gain=0.1)
        for layer, scale in ((self.receptance, 0.5), (self.key, 0.05), (self.value, 0.5)):
            bound = scale * self.config.hidden_size**-0.5
            init.uniform_(layer.weight, -bound, bound)
        init.zeros_(self.output.weight)


class Rwkv7ChannelMix(RwkvMix):
    """A squared-ReLU network on the token mixed with the one before."""

    def __init__(self, config: Rwkv7Config, layer: int) -> None:
        super().__init__(config, layer)
        self.add_rows("x_k")
        self.key = nn.Linear(config.hidden_size, config.channel_mix_size, bias=False)
        self.value = nn.Linear(config.channel_mix_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """`[B, T, C]` to `[B, T, C]`."""
        return self.value(torch.relu(self.key(torch.addcmul(x, before - x, self.x_k))) ** 2)

    def initialize(self) -> None:
        bound = 0.5 * self.config.hidden_size**-0.5
        init.copy_(self.x_k, 1 - self.ramp(self.height**4))
        init.uniform_(self.key.weight, -bound, bound)
        init.zeros_(self.value.weight)


class Rwkv7Model(RwkvModel):
    """RWKV-7 without its head."""

    config_class = Rwkv7Config
    time_mix, channel_mix = Rwkv7TimeMix, Rwkv7ChannelMix


class Rwkv7ForCausalLM(RwkvForCausalLM):
    """RWKV-7 with its head over the vocabulary."""

    config_class = Rwkv7Config
    model_class = Rwkv7Model


Rwkv7Model.register_for_auto_class("AutoModel")
Rwkv7ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
