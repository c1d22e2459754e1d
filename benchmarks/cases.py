"""What is timed: each operator with inputs like a model's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

OPERATORS = ("wkv4", "wkv5", "wkv6", "wkv7")


@dataclass(frozen=True)
class Case:
    """One operator on one shape.

    Attributes:
        operator: `"wkv4"` to `"wkv7"`.
        inputs: by name, in the operator's order; float32.
        decay: the option of that name, as the operators default to; None for wkv4.
    """

    operator: str
    inputs: dict[str, Tensor]
    decay: str | None

    @property
    def shape(self) -> dict[str, int]:
        """B, T and C, or B, T, H and N."""
        names = "BTC" if self.operator == "wkv4" else "BTHN"
        return dict(zip(names, self.inputs["k"].shape, strict=True))

    @property
    def options(self) -> dict[str, str]:
        return {} if self.decay is None else {"decay": self.decay}

    def given_decay(self, reference: ModuleType) -> Tensor | None:
        """The factor d itself, which a baseline is spared to compute."""
        return None if self.decay is None else reference.decay_factor(self.inputs["w"], self.decay)

    def map(self, change: Callable[[Tensor], Tensor]) -> Case:
        """The same case with every input changed."""
        return Case(self.operator, {name: change(x) for name, x in self.inputs.items()}, self.decay)

    def some_heads(self, count: int) -> Case:
        """The first heads only, on which no other has any influence; of wkv4 that many times 64 channels."""
        if self.operator == "wkv4":
            return self.map(lambda x: x[..., : count * 64])
        return self.map(lambda x: x[..., :count, :])

    def first_token(self) -> Case:
        """One token a sequence, as the decode steps take it."""
        wide = 3 if self.operator == "wkv4" else 4
        return self.map(lambda x: x[:, 0].contiguous() if x.ndim == wide else x)


def make_case(operator: str, batch: int, tokens: int, heads: int, size: int = 64, seed: int = 0) -> Case:
    """Random inputs with decays from slow to fast and, for wkv7, a normalised key direction."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    per_token, per_head = (batch, tokens, heads, size), (heads, size)
    if operator == "wkv4":
        channels = heads * size
        k, v = normal(2, batch, tokens, channels)
        return Case(operator, dict(k=k, v=v, w=-normal(channels).exp(), u=normal(channels)), None)
    r, k, v = normal(3, *per_token)
    if operator == "wkv5":
        return Case(operator, dict(r=r, k=k, v=v, w=normal(*per_head) - 2, u=normal(*per_head)), "exp")
    if operator == "wkv6":
        return Case(operator, dict(r=r, k=k, v=v, w=normal(*per_token) - 2, u=normal(*per_head)), "exp")
    direction = functional.normalize(normal(*per_token), dim=-1)
    gate = torch.sigmoid(normal(*per_token))
    w = -(normal(*per_token) - 2).exp()
    return Case(operator, dict(r=r, w=w, k=k, v=v, a=-direction, b=direction * gate), "log")
