"""The error that stands beside each time: against the reference in float64, outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from benchmarks.cases import Case

# Heads have nothing to do with each other; the reference, differentiated in float64, takes its time for each.
HEADS = 2


def relative_error(value: Tensor, expected: Tensor) -> float:
    """‖value - expected‖ / ‖expected‖, in float64."""
    value, expected = value.double(), expected.double()
    return ((value - expected).norm() / expected.norm()).item()


def errors(kernel: ModuleType, case: Case) -> dict[str, float]:
    """Worst relative error of forward (y, state), of the gradients, and of a decode step (y, state)."""
    case = case.some_heads(HEADS)
    exact = case.map(Tensor.double)
    forward, reference = getattr(kernel, case.operator), getattr(kernel.reference, case.operator)
    outputs, gradients = _differentiate(forward, case)
    expected_outputs, expected_gradients = _differentiate(reference, exact)

    state = expected_outputs[1]
    pool = state.float()
    y = getattr(kernel, f"{case.operator}_step_")(*case.first_token().inputs.values(), pool, **case.options)
    token = exact.map(lambda x: x[:, :1] if x.shape[:2] == exact.inputs["k"].shape[:2] else x)
    expected_y, expected_state = reference(*token.inputs.values(), state.float().double(), **case.options)
    return {
        "forward": max(map(relative_error, outputs, expected_outputs)),
        "backward": max(map(relative_error, gradients, expected_gradients)),
        "step": max(relative_error(y, expected_y[:, 0]), relative_error(pool, expected_state)),
    }


def _differentiate(operator: Callable[..., tuple[Tensor, Tensor]], case: Case) -> tuple[list[Tensor], tuple]:
    leaves = [x.clone().requires_grad_() for x in case.inputs.values()]
    outputs = operator(*leaves, **case.options)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in outputs]
    return [x.detach() for x in outputs], torch.autograd.grad(outputs, leaves, grads)
