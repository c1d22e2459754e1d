"""What is timed: each operator with inputs like a model's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

OPERATORS = ("wkv4", "wkv5", "wkv6", "wkv7")

# RWKV-7's log decay lies between 0 and -e^(-1/2).
WKV7_FASTEST = 0.6065306597126334


@dataclass(frozen=True)
class Case:
    """One operator on one shape.

    Attributes:
        operator: `"wkv4"` to `"wkv7"`.
        inputs: by name, in the operator's order.
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
        return self.map(lambda x: self.of_heads(x, 0, count))

    def of_heads(self, x: Tensor, start: int, end: int) -> Tensor:
        """The part of an input, of y or of one of their gradients that belongs to heads start … end - 1."""
        return x[..., start * 64 : end * 64] if self.operator == "wkv4" else x[..., start:end, :]

    def state_of_heads(self, state: Tensor, start: int, end: int) -> Tensor:
        """The same of a state."""
        return state[..., start * 64 : end * 64] if self.operator == "wkv4" else state[:, start:end]

    @property
    def heads(self) -> int:
        """How many `of_heads` counts."""
        return self.inputs["k"].shape[-1] // 64 if self.operator == "wkv4" else self.inputs["k"].shape[-2]

    def empty_state(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Before the first token of every sequence."""
        k = self.inputs["k"]
        if self.operator == "wkv4":
            state = k.new_zeros(k.shape[0], 3, k.shape[-1], dtype=dtype)
            state[:, 2] = -1e38 if dtype == torch.float32 else torch.finfo(dtype).min
            return state
        return k.new_zeros(k.shape[0], *k.shape[-2:], k.shape[-1], dtype=dtype)

    def first_token(self) -> Case:
        """One token a sequence, as the decode steps take it."""
        wide = 3 if self.operator == "wkv4" else 4
        return self.map(lambda x: x[:, 0].contiguous() if x.ndim == wide else x)


def make_case(
    operator: str,
    batch: int,
    tokens: int,
    heads: int,
    size: int = 64,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Case:
    """Random inputs: decays from slow to fast; for wkv7 in its range, with a normalised key direction."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    return _random_case(operator, (batch, tokens, heads, size), normal).map(lambda x: x.to(dtype))


def _random_case(operator: str, per_token: tuple[int, ...], normal: Callable[..., Tensor]) -> Case:
    batch, tokens, heads, size = per_token
    per_head = (heads, size)
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
    w = -WKV7_FASTEST * torch.sigmoid(normal(*per_token))
    return Case(operator, dict(r=r, w=w, k=k, v=v, a=-direction, b=direction * gate), "log")
