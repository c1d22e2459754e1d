"""What BlinkDL's checkpoints hold: a file for each version, with its names, shapes and sizes."""

from __future__ import annotations

from torch import Tensor

from .rwkv5 import Rwkv5Sizes
from .rwkv6 import Rwkv6Sizes
from .rwkv7 import Rwkv7Sizes
from .sizes import Shapes, Sizes, name_in_model

__all__ = ["VERSIONS", "Rwkv5Sizes", "Rwkv6Sizes", "Rwkv7Sizes", "Shapes", "Sizes", "name_in_model", "sizes"]

VERSIONS: dict[str, type[Sizes]] = {each.version: each for each in (Rwkv5Sizes, Rwkv6Sizes, Rwkv7Sizes)}


def version(tensors: dict[str, Tensor]) -> str:
    """The version of RWKV that a checkpoint's names and shapes belong to; `"unknown"` for none."""
    names = {name.removeprefix("blocks.0.") for name in tensors}
    decay = tensors.get("blocks.0.att.time_decay")
    per_channel = decay is not None and decay.dim() > 1 and decay.shape[1] > 1
    signs = {
        "7, with deep embeddings": "ffn.s_emb.weight" in names,
        "7": "att.r_k" in names,
        "6.0": "att.time_maa_w1" in names,
        "5.2": "att.gate.weight" in names and per_channel,
        "5.1": "att.gate.weight" in names,
        "5.0": "att.ln_x.weight" in names,
        "4": "att.time_first" in names,
    }
    return next((found for found, fits in signs.items() if fits), "unknown")


def sizes(tensors: dict[str, Tensor]) -> Sizes:
    """Read the sizes off a checkpoint, and compare all it holds with what it must hold.

    Raises:
        ValueError: it is of a version that is not among `VERSIONS`, or tensors are missing, unknown or of
            another shape; up to five are named.
    """
    found = version(tensors)
    if found not in VERSIONS:
        raise ValueError(
            f"only checkpoints of RWKV {', '.join(VERSIONS)} can be converted, this one is of version {found}"
        )
    size = VERSIONS[found].of(tensors)
    size.check(tensors)
    return size
