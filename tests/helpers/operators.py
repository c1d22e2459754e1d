"""The operators as data: what they take, and inputs for them that look like a model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

DECAYS = ("log", "exp", "sigmoid")


@dataclass(frozen=True)
class Operator:
    """One recurrence.

    `inputs` are its tensors in the order of the arguments, without the state, which comes last. `wide` are
    those that may stay float32 beside lower-precision others.
    """

    name: str
    inputs: tuple[str, ...]
    wide: tuple[str, ...]
    decays: tuple[str | None, ...] = DECAYS

    def __str__(self) -> str:
        return self.name

    @property
    def has_heads(self) -> bool:
        """Whether the state is a matrix per head; RWKV-4's is three numbers per channel."""
        return self.name != "wkv4"

    @property
    def first(self) -> str:
        """The input that y takes its dtype from."""
        return self.inputs[0]

    def shape(self, name: str, batch: int, tokens: int, heads: int, size: int) -> tuple[int, ...]:
        per_token = name not in self.wide or (name == "w" and self.name in ("wkv6", "wkv7"))
        channels = (heads, size) if self.has_heads else (heads * size,)
        return (batch, tokens, *channels) if per_token else channels

    def state_shape(self, sequences: int, heads: int, size: int) -> tuple[int, ...]:
        return (sequences, heads, size, size) if self.has_heads else (sequences, 3, heads * size)


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator("wkv4", ("k", "v", "w", "u"), ("w", "u"), (None,)),
        Operator("wkv5", ("r", "k", "v", "w", "u"), ("w", "u")),
        Operator("wkv6", ("r", "k", "v", "w", "u"), ("w", "u")),
        Operator("wkv7", ("r", "w", "k", "v", "a", "b"), ("w",)),
    )
}
HEAD_OPERATORS = tuple(operator for operator in OPERATORS.values() if operator.has_heads)


def options(operator: Operator, decay: str | None = None, **others) -> dict:
    """Keyword arguments of a call: RWKV-4 knows no decay form."""
    return {**({"decay": decay} if decay and operator.has_heads else {}), **others}


def recurrent(operator: Operator, decay: str | None = None, **others) -> dict:
    """Options of a call that goes token by token on every device and in every dtype."""
    return options(operator, decay, **({"algorithm": "recurrent"} if operator.has_heads else {}), **others)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def make_inputs(
    operator: Operator,
    *,
    batch: int = 2,
    tokens: int = 17,
    heads: int = 3,
    size: int = 16,
    dtype: torch.dtype = torch.float32,
    wide_dtype: torch.dtype | None = None,
    decay: str | None = None,
    state: bool = True,
    sequences: int | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Random inputs by name, `state` among them if wanted; the same for a seed on every device.

    Decays reach from about 0.01 to 0.9999 where the form allows. `wide_dtype` is the dtype of the inputs that
    may differ (default: `dtype`); `sequences` is the number of states (default: `batch`).
    """
    generator = torch.Generator().manual_seed(seed)
    numbers = SimpleNamespace(
        normal=lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64),
        uniform=lambda shape, low, high: (
            low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
        ),
    )
    tensors = {}
    for name in operator.inputs:
        shape = operator.shape(name, batch, tokens, heads, size)
        tensors[name] = _values(
            operator, name, shape, decay or ("log" if operator.name == "wkv7" else "exp"), numbers
        )
    if "b" in tensors:  # as in RWKV-7: a = -kk and b = kk * rate, with kk of length 1
        direction = torch.nn.functional.normalize(tensors["a"], dim=-1)
        tensors["a"], tensors["b"] = -direction, direction * torch.sigmoid(tensors["b"])
    result = {
        name: tensor.to(device, (wide_dtype or dtype) if name in operator.wide else dtype)
        for name, tensor in tensors.items()
    }
    if state:
        values = _initial_state(operator, batch if sequences is None else sequences, heads, size, numbers)
        result["state"] = values.to(device, state_dtype(dtype))
    return result


def _values(
    operator: Operator, name: str, shape: tuple[int, ...], decay: str, numbers: SimpleNamespace
) -> Tensor:
    if name == "w":
        if operator.name == "wkv4":
            return -numbers.uniform(shape, -5, 1).exp()
        if decay == "sigmoid":
            return 3 * numbers.normal(shape)
        log_rate = numbers.uniform(shape, -9, 1.5)
        return log_rate if decay == "exp" else -log_rate.exp()
    # Keys of about length 1, so that float16 holds sums over a thousand tokens.
    scale = max(shape[-1], 1) ** -0.5 if name == "k" and operator.has_heads else 1.0
    return scale * numbers.normal(shape)


def _initial_state(
    operator: Operator, sequences: int, heads: int, size: int, numbers: SimpleNamespace
) -> Tensor:
    state = 0.5 * numbers.normal(operator.state_shape(sequences, heads, size))
    if not operator.has_heads:
        state[:, 1] = numbers.uniform(state[:, 1].shape, 0.5, 2)  # q, a sum of positive weights
    return state


def call(namespace, operator: Operator, inputs: Mapping[str, Tensor], **keywords) -> tuple[Tensor, Tensor]:
    """`namespace.wkvN(*inputs, state, **keywords)`; the namespace is the kernel or its reference."""
    function = getattr(namespace, operator.name)
    return function(*(inputs[name] for name in operator.inputs), inputs.get("state"), **keywords)


def step(
    namespace, operator: Operator, inputs: Mapping[str, Tensor], state: Tensor, *rest, **keywords
) -> Tensor:
    """`namespace.wkvN_step_(*inputs, state, *rest, **keywords)`, which updates `state` in place."""
    function = getattr(namespace, f"{operator.name}_step_")
    return function(*(inputs[name] for name in operator.inputs), state, *rest, **keywords)


def token_inputs(operator: Operator, inputs: Mapping[str, Tensor]) -> list[str]:
    """Names of the inputs that have a row for every token."""
    dimensions = inputs[operator.first].dim()
    return [name for name in operator.inputs if inputs[name].dim() == dimensions]


def slice_tokens(operator: Operator, inputs: Mapping[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    """Tokens start … end - 1 of the inputs."""
    sliced = token_inputs(operator, inputs)
    return {name: tensor[:, start:end] if name in sliced else tensor for name, tensor in inputs.items()}


def slice_batch(operator: Operator, inputs: Mapping[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    """Sequences start … end - 1 of the inputs, their states included."""
    sliced = [*token_inputs(operator, inputs), "state"]
    return {name: tensor[start:end] if name in sliced else tensor for name, tensor in inputs.items()}
