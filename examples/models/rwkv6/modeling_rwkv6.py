"""RWKV-6.0 (Finch), arXiv 2404.05892, for transformers. Names and initial values as in BlinkDL/RWKV-LM.

Letters in shapes: B batch, T tokens, C channels, H heads, N head size, C = H·N.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_rwkv6 import Rwkv6Config
from .gated_rwkv import GatedChannelMix, GatedTimeMix
from .model_rwkv import RwkvForCausalLM, RwkvModel


class Rwkv6TimeMix(GatedTimeMix):
    """Mixtures with the token before and decays that both depend on the token, by low-rank functions."""

    def __init__(self, config: Rwkv6Config, layer: int) -> None:
        super().__init__(config, layer)
        size, mix, decay = config.hidden_size, config.mix_rank, config.decay_rank
        self.add_rows(*(f"time_maa_{name}" for name in "xwkvrg"), "time_decay")
        self.time_maa_w1 = nn.Parameter(torch.empty(size, 5 * mix))
        self.time_maa_w2 = nn.Parameter(torch.empty(5, mix, size))
        self.time_decay_w1 = nn.Parameter(torch.empty(size, decay))
        self.time_decay_w2 = nn.Parameter(torch.empty(decay, size))

    def forward(
        self,
        x: Tensor,
        before: Tensor,
        v_first: None,
        state: Tensor | None,
        absent: Tensor | None,
    ) -> tuple[Tensor, None, Tensor]:
        """Mix x `[B, T, C]`, or a token `[B, C]`, over time; returns y like it, None and the state after."""
        difference = before - x
        inner = torch.tanh(torch.addcmul(x, difference, self.time_maa_x) @ self.time_maa_w1)
        inner = inner.view(-1, 5, self.time_maa_w2.shape[1]).transpose(0, 1)  # [5, B·T, mix_rank]
        mixes = torch.bmm(inner, self.time_maa_w2).view(5, *x.shape)
        mixes = mixes + self.rows(x, *(f"time_maa_{name}" for name in "wkvrg"))
        xw, xk, xv, xr, xg = torch.addcmul(x, difference, mixes).unbind()
        low_rank = torch.tanh(xw @ self.time_decay_w1) @ self.time_decay_w2
        w = self.heads(self.time_decay.float() + low_rank)  # float32
        y, state = self.attend(xr, xk, xv, xg, w, state, absent)
        return y, v_first, state

    def initialize(self) -> None:
        super().initialize()
        powers = {"x": 1, "w": 1, "k": 1, "v": 1, "r": 0.5, "g": 0.5}
        for name, power in powers.items():
            more = 0.3 * self.depth if name == "v" else 0
            init.copy_(getattr(self, f"time_maa_{name}"), 1 - self.ramp(power * self.height) - more)
        init.copy_(self.time_decay, self.initial_decay())
        init.zeros_(self.time_maa_w1)
        init.uniform_(self.time_maa_w2, -0.01, 0.01)
        init.zeros_(self.time_decay_w1)
        init.uniform_(self.time_decay_w2, -0.01, 0.01)


class Rwkv6ChannelMix(GatedChannelMix):
    """Fixed mixtures with the token before."""

    def __init__(self, config: Rwkv6Config, layer: int) -> None:
        super().__init__(config, layer)
        self.add_rows("time_maa_k", "time_maa_r")

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """`[B, T, C]` to `[B, T, C]`."""
        return self.transform(*self.mix(x, before, "time_maa_k", "time_maa_r"))

    def initialize(self) -> None:
        super().initialize()
        init.copy_(self.time_maa_k, 1 - self.ramp(self.height))
        init.copy_(self.time_maa_r, 1 - self.ramp(self.height))


class Rwkv6Model(RwkvModel):
    """RWKV-6 without its head."""

    config_class = Rwkv6Config
    time_mix, channel_mix = Rwkv6TimeMix, Rwkv6ChannelMix


class Rwkv6ForCausalLM(RwkvForCausalLM):
    """RWKV-6 with its head over the vocabulary."""

    config_class = Rwkv6Config
    model_class = Rwkv6Model


Rwkv6Model.register_for_auto_class("AutoModel")
Rwkv6ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
