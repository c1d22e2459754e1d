"""Configuration of RWKV-5 (Eagle), arXiv 2404.05892."""

from __future__ import annotations

from typing import ClassVar

from .configuration_rwkv import RwkvBaseConfig


class Rwkv5Config(RwkvBaseConfig):
    """Sizes of an RWKV-5.2 language model."""

    model_type = "flash_rwkv5"
    widening: ClassVar[float] = 3.5


Rwkv5Config.register_for_auto_class()
