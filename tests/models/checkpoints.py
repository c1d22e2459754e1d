"""Small random checkpoints with BlinkDL's names and shapes, and a small world vocabulary."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from examples.models import layout

SMALL = dict(vocab_size=300, hidden_size=96, num_hidden_layers=3, head_size=32)
SIZES: dict[str, layout.Sizes] = {
    "5.2": layout.Rwkv5Sizes(**SMALL, intermediate_size=320),
    "6.0": layout.Rwkv6Sizes(**SMALL, intermediate_size=352, mix_rank=16, decay_rank=24),
    "7": layout.Rwkv7Sizes(
        **SMALL, intermediate_size=320, decay_rank=8, rate_rank=16, value_rank=24, gate_rank=40
    ),
}


def random_checkpoint(size: layout.Sizes, seed: int = 0) -> dict[str, Tensor]:
    """Weights under which every branch counts; rows are `[1, 1, C]`, as in the official files.

    In alphabetical order, since the package rwkv finds the version by the order of names too.
    """
    torch.manual_seed(seed)
    tensors = {}
    for name, shape in sorted(size.shapes().items()):
        values = torch.randn(shape)
        last = name.rsplit(".", 1)[-1]
        if "ln" in name:
            values = 0.1 * values + (last == "weight")
        elif last.startswith(("x_", "time_mix_")) or (last.startswith("time_maa_") and len(shape) == 1):
            values = torch.rand(shape)
        elif last == "weight" and name != "emb.weight":
            values = values / shape[-1] ** 0.5
        elif last.endswith(("1", "2")):  # low rank
            values = values / shape[-2] ** 0.5
        single = len(shape) == 1 and "ln" not in name
        tensors[name] = values.view(1, 1, -1) if single else values
    return tensors


def write_vocabulary(path: Path) -> Path:
    """All bytes, and a few longer tokens that share beginnings or are not whole characters."""
    tokens: list[str | bytes] = [chr(byte) if byte < 128 else bytes([byte]) for byte in range(256)]
    tokens += ["th", "the", "them", " the", "ü", "中", "中".encode()[:2], "\r\n", "''"]
    lines = []
    for index, token in enumerate(tokens, 1):
        length = len(token.encode() if isinstance(token, str) else token)
        lines.append(f"{index} {token!r} {length}\n")
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    return path
