"""Configuration of RWKV-7 (Goose), arXiv 2503.14456."""

from __future__ import annotations

from typing import ClassVar

from .configuration_rwkv import RwkvBaseConfig


class Rwkv7Config(RwkvBaseConfig):
    """Sizes of an RWKV-7 language model: those of `RwkvBaseConfig`, and the ranks.

    Args:
        decay_rank, rate_rank, value_rank, gate_rank: widths of the low-rank functions of a token that make
            the decay (w1, w2), the in-context learning rate (a1, a2), the mix with the first layer's values
            (v1, v2) and the gate (g1, g2).
    """

    model_type = "flash_rwkv7"
    widening: ClassVar[float] = 4.0

    decay_rank: int = 64
    rate_rank: int = 64
    value_rank: int = 32
    gate_rank: int = 128


Rwkv7Config.register_for_auto_class()
