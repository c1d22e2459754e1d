"""A block of RWKV: what surrounds the time mixing and channel mixing that each version has its own of.

Letters in shapes: B batch, T tokens, C channels, H heads, N head size, C = H·N.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .cache_rwkv import RwkvCache
from .configuration_rwkv import RwkvBaseConfig
from .padding_rwkv import Padding, shift

HEAD_NORM_EPSILON = 64e-5
# A logit of the decay for which d is exactly 1 in every dtype and version: the state stays as it is.
NO_DECAY = -1e4


class RwkvMix(nn.Module, ABC):
    """Time mixing or channel mixing of one layer.

    Attributes:
        depth: from 0 in the first layer to 1 in the last.
        height: from 1 in the first layer to almost 0 in the last.
    """

    def __init__(self, config: RwkvBaseConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.head_size = config.head_size  # at hand: looking into a configuration is slow
        self.depth = layer / max(config.num_hidden_layers - 1, 1)
        self.height = 1 - layer / config.num_hidden_layers

    def add_rows(self, *names: str) -> None:
        """Register parameters `[C]`."""
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.empty(self.config.hidden_size)))

    @abstractmethod
    def initialize(self) -> None:
        """Give the parameters their values at the start of training, those of BlinkDL/RWKV-LM."""

    def ramp(self, power: float) -> Tensor:
        """`[C]` from 0 in the first channel to 1 in the last, to the power."""
        return torch.linspace(0, 1, self.config.hidden_size) ** power

    def rows(self, x: Tensor, *names: str) -> Tensor:
        """Parameters `[C]` one over the other, to go with x `[.., C]`: `[len(names), 1, .., C]`."""
        rows = torch.stack([getattr(self, name) for name in names])
        return rows.view(len(names), *[1] * (x.dim() - 1), -1)

    def mix(self, x: Tensor, before: Tensor, *names: str) -> tuple[Tensor, ...]:
        """x `[.., C]` moved towards the token before by the share in each row: a `[.., C]` a name.

        All in one operation, since each is so short that launching it, and what backward makes of it, counts.
        """
        return torch.addcmul(x, before - x, self.rows(x, *names)).unbind()

    def heads(self, x: Tensor) -> Tensor:
        """`[.., C]` as `[.., H, N]`."""
        return x.view(*x.shape[:-1], -1, self.head_size)


class RwkvBlock(GradientCheckpointingLayer):
    """Time mixing and channel mixing, each on a normalised input and added to the stream.

    It alone knows the cache: what mixes gets the tokens before its own and the state, and returns the next.
    """

    def __init__(self, config: RwkvBaseConfig, layer: int, att: RwkvMix, ffn: RwkvMix) -> None:
        super().__init__()
        self.layer = layer
        self.ln1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.ln2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.att, self.ffn = att, ffn

    def forward(
        self,
        x: Tensor,
        v_first: Tensor | None,
        padding: Padding | None = None,
        past_key_values: RwkvCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """x `[B, T, C]` after the block, and the first layer's values `[B, T, C]`, which RWKV-7 hands on."""
        cache, layer = past_key_values, self.layer
        absent = None if padding is None else padding.absent
        token, state = (None, None) if cache is None else (cache.attention_token[layer], cache.wkv[layer])
        normed = self.ln1(x)
        before, attention_token = shift(normed, token, padding)
        y, v_first, state = self.att(normed, before, v_first, state, absent)
        x = x + y

        normed = self.ln2(x)
        token = None if cache is None else cache.channel_token[layer]
        before, channel_token = shift(normed, token, padding)
        x = x + self.ffn(normed, before)
        if cache is not None:
            cache.update(layer, state, attention_token, channel_token)
        return x, v_first
