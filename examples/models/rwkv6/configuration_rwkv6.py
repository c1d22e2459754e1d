"""Configuration of RWKV-6 (Finch), arXiv 2404.05892."""

from __future__ import annotations

from typing import ClassVar

from .configuration_rwkv import RwkvBaseConfig


class Rwkv6Config(RwkvBaseConfig):
    """Sizes of an RWKV-6.0 language model: those of `RwkvBaseConfig`, and the ranks.

    Args:
        mix_rank, decay_rank: widths of the low-rank functions of a token that make the five mixtures with
            the token before (time_maa_w1, time_maa_w2) and the decay (time_decay_w1, time_decay_w2).
    """

    model_type = "flash_rwkv6"
    widening: ClassVar[float] = 3.5

    mix_rank: int = 32
    decay_rank: int = 64


Rwkv6Config.register_for_auto_class()
