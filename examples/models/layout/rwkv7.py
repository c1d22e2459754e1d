"""RWKV-7 (Goose)."""

from __future__ import annotations

from dataclasses import dataclass

from .sizes import Shapes, Sizes


@dataclass(frozen=True)
class Rwkv7Sizes(Sizes):
    """Sizes of RWKV-7."""

    version = "7"
    folder = "rwkv7"
    # The first layer mixes its values with nobody's.
    unread = tuple(f"blocks.0.att.v{part}" for part in range(3))

    decay_rank: int
    rate_rank: int
    value_rank: int
    gate_rank: int

    @classmethod
    def read(cls, shapes: Shapes) -> dict[str, int]:
        ranks = {"decay_rank": "w1", "rate_rank": "a1", "gate_rank": "g1"}
        values = shapes.get("blocks.1.att.v1", (32,))  # one layer alone has none: any will do
        return {
            "head_size": shapes["blocks.0.att.r_k"][1],
            "value_rank": values[-1],
            **{rank: shapes[f"blocks.0.att.{name}"][-1] for rank, name in ranks.items()},
        }

    def block(self, layer: int) -> Shapes:
        channels = self.hidden_size
        rows = ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "a0", "k_k", "k_a"]
        ranks = {"w": self.decay_rank, "a": self.rate_rank, "g": self.gate_rank}
        if layer:
            rows, ranks = [*rows, "v0"], {**ranks, "v": self.value_rank}
        return {
            **{f"att.{name}": (channels,) for name in rows},
            **{f"att.{name}1": (channels, rank) for name, rank in ranks.items()},
            **{f"att.{name}2": (rank, channels) for name, rank in ranks.items()},
            "att.r_k": (self.num_heads, self.head_size),
            "ffn.x_k": (channels,),
        }
