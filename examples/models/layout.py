"""What BlinkDL's RWKV-7 checkpoints hold: names, shapes, and the names in `rwkv7/modeling_rwkv7.py`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sizes:
    """The sizes that a checkpoint's shapes say; as the arguments of `Rwkv7Config`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    head_size: int
    intermediate_size: int
    decay_rank: int
    rate_rank: int
    value_rank: int
    gate_rank: int


def version(names: set[str]) -> str:
    """The version of RWKV that a checkpoint's names belong to; `"unknown"` for none."""
    signs = {
        "7, with deep embeddings": "blocks.0.ffn.s_emb.weight",
        "7": "blocks.0.att.r_k",
        "6": "blocks.0.att.time_maa_w1",
        "5": "blocks.0.att.ln_x.weight",
        "4": "blocks.0.att.time_first",
    }
    return next((found for found, name in signs.items() if name in names), "unknown")


def sizes(tensors: dict[str, Tensor]) -> Sizes:
    """Read the sizes off a version 7 checkpoint.

    Raises:
        ValueError: it is of another version, or lacks a tensor that the sizes are read from.
    """
    if (found := version(set(tensors))) != "7":
        raise ValueError(f"only RWKV-7 checkpoints can be converted, this one is of version {found}")
    layers = 1 + max(int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name)))
    later = "blocks.1.att.v1" if layers > 1 else "blocks.0.att.v1"
    try:
        return Sizes(
            *tensors["emb.weight"].shape,
            layers,
            tensors["blocks.0.att.r_k"].shape[1],
            tensors["blocks.0.ffn.key.weight"].shape[0],
            tensors["blocks.0.att.w1"].shape[-1],
            tensors["blocks.0.att.a1"].shape[-1],
            tensors[later].shape[-1] if later in tensors else 32,
            tensors["blocks.0.att.g1"].shape[-1],
        )
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"not a whole RWKV-7 checkpoint: {error}") from None


def expected(size: Sizes) -> Shapes:
    """Every tensor of a checkpoint of these sizes, with its shape less the leading ones of `[1, 1, C]`."""
    channels, vocabulary = size.hidden_size, size.vocab_size
    shapes: Shapes = {"emb.weight": (vocabulary, channels), "head.weight": (vocabulary, channels)}
    norms = ["ln_out", "blocks.0.ln0"]
    for layer in range(size.num_hidden_layers):
        block = f"blocks.{layer}."
        norms += [f"{block}ln1", f"{block}ln2", f"{block}att.ln_x"]
        rows = ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "a0", "k_k", "k_a"]
        ranks = {"w": size.decay_rank, "a": size.rate_rank, "g": size.gate_rank}
        if layer:
            rows, ranks = [*rows, "v0"], {**ranks, "v": size.value_rank}
        shapes |= {f"{block}att.{name}": (channels,) for name in rows}
        shapes |= {f"{block}att.{name}1": (channels, rank) for name, rank in ranks.items()}
        shapes |= {f"{block}att.{name}2": (rank, channels) for name, rank in ranks.items()}
        shapes[f"{block}att.r_k"] = (channels // size.head_size, size.head_size)
        for name in ("receptance", "key", "value", "output"):
            shapes[f"{block}att.{name}.weight"] = (channels, channels)
        shapes[f"{block}ffn.x_k"] = (channels,)
        shapes[f"{block}ffn.key.weight"] = (size.intermediate_size, channels)
        shapes[f"{block}ffn.value.weight"] = (channels, size.intermediate_size)
    shapes |= {f"{norm}.{part}": (channels,) for norm in norms for part in ("weight", "bias")}
    return shapes


def check(tensors: dict[str, Tensor], shapes: Shapes) -> None:
    """Compare a checkpoint with what it must hold.

    The first layer may have v0, v1 and v2, which nothing reads.

    Raises:
        ValueError: tensors that are missing, unknown or of another shape; up to five are named.
    """
    unread = {f"blocks.0.att.v{part}" for part in range(3)}
    problems = [f"{name} is missing" for name in shapes if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in shapes and name not in unread]
    for name in shapes.keys() & tensors.keys():
        found = tuple(tensors[name].shape)
        if found not in (shapes[name], (1, 1, *shapes[name])):
            problems.append(f"{name} must be {list(shapes[name])}, got {list(found)}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError("not an RWKV-7 checkpoint: " + "; ".join(problems[:5]) + more)


def name_in_model(name: str) -> str:
    """The name of a checkpoint's tensor in `Rwkv7ForCausalLM`."""
    if name == "head.weight":
        return "lm_head.weight"
    return f"model.{name.replace('blocks.0.ln0', 'ln0')}"
