"""The operator as the models see it, so that one model runs on the kernel or on plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from examples.demo.layers import LayerState


@dataclass(frozen=True)
class Recurrence:
    """One WKV operator.

    Attributes:
        forward: `(*inputs, state, decay=...) -> (y, final_state)`, inputs `[B, T, H, N]`.
        step_: `(*inputs, state, decay=...) -> y`, the same for a few tokens; updates `state` in place.
    """

    forward: Callable[..., tuple[Tensor, Tensor]]
    step_: Callable[..., Tensor]


def run(recurrence: Recurrence, inputs: tuple[Tensor, ...], state: LayerState | None, decay: str) -> Tensor:
    """y `[B, T, H, N]`, from nothing or from a layer's state, which is updated in place."""
    if state is None:
        return recurrence.forward(*inputs, decay=decay)[0]
    if inputs[0].shape[1] == 1:
        return recurrence.step_(*inputs, state.wkv, decay=decay)
    y, final_state = recurrence.forward(*inputs, state.wkv, decay=decay)
    state.wkv.copy_(final_state)
    return y


def from_kernel(kernel: ModuleType, name: str) -> Recurrence:
    """The compiled operator `name`, `"wkv6"` or `"wkv7"`."""
    return Recurrence(getattr(kernel, name), getattr(kernel, f"{name}_step_"))


def from_reference(reference: ModuleType, name: str) -> Recurrence:
    """The plain PyTorch operator `name`: a Python loop over tokens, differentiated by autograd."""
    forward = getattr(reference, name)

    def step_(*arguments: Tensor, decay: str) -> Tensor:
        y, final_state = forward(*arguments, decay=decay)
        arguments[-1].copy_(final_state)
        return y

    return Recurrence(forward, step_)
