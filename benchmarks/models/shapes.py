"""Which models are timed, and on how many tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from examples.models.layout import Rwkv5Sizes, Rwkv6Sizes, Rwkv7Sizes, Sizes

VERSIONS = ("rwkv5", "rwkv6", "rwkv7")
HEAD_SIZE, VOCABULARY = 64, 65536
# Layers, channels, and the ranks of RWKV-7's decay, rate, value and gate, as published (arXiv 2503.14456).
# RWKV-5 and 6 were published at some of these sizes only; their models of the others have the same width.
PUBLISHED = {
    "0.1B": (12, 768, (64, 64, 32, 128)),
    "0.4B": (24, 1024, (64, 64, 32, 128)),
    "1.5B": (24, 2048, (96, 96, 64, 256)),
}
TRIAL = (2, 128, (16, 16, 8, 16))  # "trial": to try the benchmark itself
SIZES = (*PUBLISHED, "trial")


def sizes(version: str, name: str) -> Sizes:
    """Everything about a model's shape; `name` is one of `SIZES`."""
    layers, channels, ranks = PUBLISHED.get(name, TRIAL)
    vocabulary = VOCABULARY if name in PUBLISHED else 512
    common = (vocabulary, channels, layers, HEAD_SIZE)
    if version == "rwkv7":
        return Rwkv7Sizes(*common, 4 * channels, *ranks)
    narrow = int(3.5 * channels) // 32 * 32
    if version == "rwkv6":
        return Rwkv6Sizes(*common, narrow, mix_rank=32, decay_rank=64)
    return Rwkv5Sizes(*common, narrow)


@dataclass(frozen=True)
class Work:
    """What a model is given to do.

    Attributes:
        dtype: of weights and activations.
        tokens: of a prompt, and of a training step; one sequence.
        loop_tokens: the same for the loop in Python, which takes as long for each and would take all day.
        checked_tokens: those that errors are measured on.
        seconds: for the rounds of each kind of work.
    """

    dtype: torch.dtype
    tokens: int
    loop_tokens: int
    checked_tokens: int
    seconds: float


def work(device: torch.device, name: str, quick: bool) -> Work:
    """What is usual on a device, for a model of a size."""
    if device.type == "cuda":
        return Work(torch.bfloat16, 4096, 64, 64, 0.5 if quick else 1.5)
    if name == "trial":
        return Work(torch.float32, 48, 48, 40, 0.0)
    return Work(torch.float32, 128, 128, 40, 1.0 if quick else 4.0)
