"""RWKV-5.2 (Eagle)."""

from __future__ import annotations

from dataclasses import dataclass

from .sizes import Shapes, Sizes


@dataclass(frozen=True)
class Rwkv5Sizes(Sizes):
    """Sizes of RWKV-5.2."""

    version = "5.2"
    folder = "rwkv5"

    @classmethod
    def read(cls, shapes: Shapes) -> dict[str, int]:
        return {"head_size": shapes["blocks.0.att.time_faaaa"][1]}

    def block(self, layer: int) -> Shapes:
        channels, heads = self.hidden_size, (self.num_heads, self.head_size)
        return {
            **{f"att.time_mix_{name}": (channels,) for name in "rkvg"},
            "att.time_decay": heads,
            "att.time_faaaa": heads,
            "att.gate.weight": (channels, channels),
            "ffn.time_mix_k": (channels,),
            "ffn.time_mix_r": (channels,),
            "ffn.receptance.weight": (channels, channels),
        }
