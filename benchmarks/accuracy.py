"""The error that stands beside each time: against the reference in float64, outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from benchmarks.cases import Case

# Heads have nothing to do with each other; the reference, differentiated in float64, takes its time for each.
HEADS = 2


@dataclass(frozen=True)
class Results:
    """What an operator made of a case.

    Attributes:
        y: as the operator's.
        state: the final state, value-major; None if it was not asked for.
        gradients: of y's gradient alone, by input; None if they were not asked for.
    """

    y: Tensor
    state: Tensor | None = None
    gradients: dict[str, Tensor] | None = None

    def of_heads(self, case: Case, start: int, end: int) -> Results:
        """The part of heads start … end - 1."""
        state = None if self.state is None else case.state_of_heads(self.state, start, end)
        gradients = self.gradients and {n: case.of_heads(x, start, end) for n, x in self.gradients.items()}
        return Results(case.of_heads(self.y, start, end), state, gradients)


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


def reference_results(
    reference: ModuleType, case: Case, grad_y: Tensor | None, head: int, dtype: torch.dtype | None = None
) -> Results:
    """What the reference makes of one head, on the case's device: in float64, or in another dtype.

    Args:
        reference: the kernel's module of that name.
        case: the whole case.
        grad_y: of the whole y; None: no gradients.
        head: which one.
        dtype: of the computation; None: as the case's inputs are.
    """
    part = case.map(lambda x: case.of_heads(x, head, head + 1).to(dtype or x.dtype))
    leaves = {n: x.detach().clone().requires_grad_(grad_y is not None) for n, x in part.inputs.items()}
    y, state = getattr(reference, case.operator)(*leaves.values(), **case.options)
    if grad_y is None:
        return Results(y, state)
    gradient = case.of_heads(grad_y, head, head + 1).to(y.dtype)
    gradients = torch.autograd.grad(y, list(leaves.values()), gradient)
    return Results(y.detach(), state.detach(), dict(zip(leaves, gradients, strict=True)))


def worst_errors(
    case: Case, results: Results, expected: Iterable[tuple[int, Results]]
) -> dict[str, float | None]:
    """Relative errors against `expected`, pairs of a head and its results: of y, final state and gradients.

    None of what there is not.
    """
    found: dict[str, list[float]] = {"forward": [], "state": [], "backward": []}
    for head, exact in expected:
        part = results.of_heads(case, head, head + 1)
        found["forward"].append(relative_error(part.y, exact.y))
        if part.state is not None:
            found["state"].append(relative_error(part.state, exact.state))
        for name, gradient in (part.gradients or {}).items():
            found["backward"].append(relative_error(gradient, exact.gradients[name]))
    return {what: _worst(values) if values else None for what, values in found.items()}


def _worst(values: list[float]) -> float:
    """The largest, or NaN if any is: `max` would pass over it."""
    return float("nan") if any(value != value for value in values) else max(values)


def _differentiate(operator: Callable[..., tuple[Tensor, Tensor]], case: Case) -> tuple[list[Tensor], tuple]:
    leaves = [x.clone().requires_grad_() for x in case.inputs.values()]
    outputs = operator(*leaves, **case.options)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in outputs]
    return [x.detach() for x in outputs], torch.autograd.grad(outputs, leaves, grads)
