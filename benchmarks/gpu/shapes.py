"""What is timed on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SIZE = 64


@dataclass(frozen=True)
class Shape:
    """Of forward and backward: `heads` of size 64, of wkv4 as many channels, which knows no algorithms."""

    operator: str
    batch: int
    tokens: int
    heads: int
    dtype: torch.dtype
    algorithm: str | None = None
    peers: bool = True  # whether others are timed beside it

    def __str__(self) -> str:
        width = f"C{self.heads * SIZE}" if self.operator == "wkv4" else f"H{self.heads}"
        algorithm = f" {self.algorithm}" if self.algorithm else ""
        return f"B{self.batch} T{self.tokens} {width} {dtype_name(self.dtype)}{algorithm}"


@dataclass(frozen=True)
class StepShape:
    """Of one decode step: bfloat16 tokens on a pool of states."""

    operator: str
    batch: int
    heads: int
    pool_dtype: torch.dtype

    def __str__(self) -> str:
        width = f"C{self.heads * SIZE}" if self.operator == "wkv4" else f"H{self.heads}"
        return f"B{self.batch} {width} {dtype_name(self.pool_dtype)} state"


def dtype_name(dtype: torch.dtype) -> str:
    return {BF16: "bf16", FP16: "fp16", FP32: "fp32"}[dtype]


SHAPES = (
    Shape("wkv4", 8, 4096, 64, FP32),
    Shape("wkv4", 1, 4096, 32, FP32),
    *(
        Shape(operator, *size, BF16, "recurrent", peers=False)  # they are timed beside "chunk"
        for operator in ("wkv5", "wkv6", "wkv7")
        for size in ((8, 4096, 64), (1, 4096, 32), (32, 1024, 32))
    ),
    *(
        Shape(operator, *size, BF16, "chunk")
        for operator in ("wkv5", "wkv6", "wkv7")
        for size in ((8, 4096, 64), (1, 4096, 32), (32, 1024, 32))
    ),
    Shape("wkv7", 4, 4096, 12, BF16, "chunk"),
    Shape("wkv7", 1, 32768, 32, BF16, "chunk"),
)
STEPS = (
    *(StepShape(operator, batch, 64, FP32) for operator in ("wkv4", "wkv5", "wkv6") for batch in (1, 64)),
    *(StepShape("wkv7", batch, 64, dtype) for batch in (1, 8, 64, 256, 512) for dtype in (FP32, FP16)),
)
# For a first look, and for the tests of the benchmark itself.
QUICK_SHAPES = (
    Shape("wkv4", 2, 128, 4, FP32),
    *(Shape(name, 2, 128, 4, BF16, "recurrent") for name in ("wkv5", "wkv6", "wkv7")),
)
QUICK_STEPS = (StepShape("wkv4", 1, 4, FP32), StepShape("wkv6", 2, 4, FP32), StepShape("wkv7", 2, 4, FP16))
