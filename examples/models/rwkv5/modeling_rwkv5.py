"""RWKV-5.2 (Eagle), arXiv 2404.05892, for transformers. Names and initial values as in BlinkDL/RWKV-LM.

Letters in shapes: B batch, T tokens, C channels, H heads, N head size, C = H·N.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_rwkv5 import Rwkv5Config
from .gated_rwkv import GatedChannelMix, GatedTimeMix
from .model_rwkv import RwkvForCausalLM, RwkvModel


class Rwkv5TimeMix(GatedTimeMix):
    """Fixed mixtures with the token before, and a fixed decay for each channel."""

    def __init__(self, config: Rwkv5Config, layer: int) -> None:
        super().__init__(config, layer)
        self.add_rows("time_mix_r", "time_mix_k", "time_mix_v", "time_mix_g")
        self.time_decay = nn.Parameter(torch.empty(config.num_heads, config.head_size))

    def forward(
        self,
        x: Tensor,
        before: Tensor,
        v_first: None,
        state: Tensor | None,
        absent: Tensor | None,
    ) -> tuple[Tensor, None, Tensor]:
        """Mix x `[B, T, C]`, or a token `[B, C]`, over time; returns y like it, None and the state after."""
        # The shares are of the token itself.
        xr, xk, xv, xg = self.mix(before, x, "time_mix_r", "time_mix_k", "time_mix_v", "time_mix_g")
        y, state = self.attend(xr, xk, xv, xg, self.time_decay, state, absent)
        return y, v_first, state

    def initialize(self) -> None:
        super().initialize()
        init.copy_(self.time_mix_r, self.ramp(0.5 * self.height))
        init.copy_(self.time_mix_k, self.ramp(self.height))
        init.copy_(self.time_mix_v, self.ramp(self.height) + 0.3 * self.depth)
        init.copy_(self.time_mix_g, self.ramp(0.5 * self.height))
        init.copy_(self.time_decay, self.initial_decay().view_as(self.time_decay))


class Rwkv5ChannelMix(GatedChannelMix):
    """Fixed mixtures with the token before."""

    def __init__(self, config: Rwkv5Config, layer: int) -> None:
        super().__init__(config, layer)
        self.add_rows("time_mix_k", "time_mix_r")

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """`[B, T, C]` to `[B, T, C]`."""
        return self.transform(*self.mix(before, x, "time_mix_k", "time_mix_r"))

    def initialize(self) -> None:
        super().initialize()
        init.copy_(self.time_mix_k, self.ramp(self.height))
        init.copy_(self.time_mix_r, self.ramp(self.height))


class Rwkv5Model(RwkvModel):
    """RWKV-5 without its head."""

    config_class = Rwkv5Config
    time_mix, channel_mix = Rwkv5TimeMix, Rwkv5ChannelMix


class Rwkv5ForCausalLM(RwkvForCausalLM):
    """RWKV-5 with its head over the vocabulary."""

    config_class = Rwkv5Config
    model_class = Rwkv5Model


Rwkv5Model.register_for_auto_class("AutoModel")
Rwkv5ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
