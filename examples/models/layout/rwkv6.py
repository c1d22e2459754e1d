"""RWKV-6.0 (Finch)."""

from __future__ import annotations

from dataclasses import dataclass

from .sizes import Shapes, Sizes


@dataclass(frozen=True)
class Rwkv6Sizes(Sizes):
    """Sizes of RWKV-6.0."""

    version = "6.0"
    folder = "rwkv6"

    mix_rank: int
    decay_rank: int

    @classmethod
    def read(cls, shapes: Shapes) -> dict[str, int]:
        return {
            "head_size": shapes["blocks.0.att.time_faaaa"][1],
            "mix_rank": shapes["blocks.0.att.time_maa_w2"][1],
            "decay_rank": shapes["blocks.0.att.time_decay_w1"][1],
        }

    def block(self, layer: int) -> Shapes:
        channels = self.hidden_size
        return {
            **{f"att.time_maa_{name}": (channels,) for name in "xwkvrg"},
            "att.time_maa_w1": (channels, 5 * self.mix_rank),
            "att.time_maa_w2": (5, self.mix_rank, channels),
            "att.time_decay": (channels,),
            "att.time_decay_w1": (channels, self.decay_rank),
            "att.time_decay_w2": (self.decay_rank, channels),
            "att.time_faaaa": (self.num_heads, self.head_size),
            "att.gate.weight": (channels, channels),
            "ffn.time_maa_k": (channels,),
            "ffn.time_maa_r": (channels,),
            "ffn.receptance.weight": (channels, channels),
        }
