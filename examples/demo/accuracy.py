"""How far the kernel is from the reference in float64, on what a trained model really feeds it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from examples.demo.model import LanguageModel
from examples.demo.recurrence import Recurrence

TOLERANCE = 1e-5  # float32, relative


def relative_error(value: Tensor, expected: Tensor) -> float:
    """‖value - expected‖ / ‖expected‖ in float64."""
    expected = expected.double()
    return ((value.double() - expected).norm() / expected.norm().clamp_min(1e-300)).item()


@dataclass(frozen=True)
class Call:
    """One call of the operator: its inputs, a state before it, gradients to come back, and its options."""

    arguments: list[Tensor]
    gradients: list[Tensor]
    options: dict[str, str]

    def double(self) -> Call:
        """The same call in float64."""
        return Call([x.double() for x in self.arguments], [x.double() for x in self.gradients], self.options)

    def differentiate(self, recurrence: Recurrence) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The outputs, and the gradients of all arguments."""
        leaves = [x.clone().requires_grad_() for x in self.arguments]
        outputs = recurrence.forward(*leaves, **self.options)
        return outputs, torch.autograd.grad(outputs, leaves, self.gradients)


def last_call(model: LanguageModel, kernel: Recurrence, window: Tensor) -> Call:
    """The call that the model's last layer makes for `window` `[B, T]`, with a random state and gradients."""
    calls = []

    def remember(*inputs: Tensor, **options: str) -> tuple[Tensor, Tensor]:
        calls.append(([x.detach().clone() for x in inputs], options))
        return kernel.forward(*inputs, **options)

    with torch.no_grad():
        model(window, replace(kernel, forward=remember))
    inputs, options = calls[-1]
    generator = torch.Generator().manual_seed(0)
    batch, _, heads, size = inputs[0].shape
    state, grad_state = torch.randn(2, batch, heads, size, size, generator=generator)
    grad_y = torch.randn(inputs[0].shape, generator=generator)
    return Call([*inputs, state], [grad_y, grad_state], options)


def operator_errors(call: Call, kernel: Recurrence, reference: Recurrence) -> tuple[float, float]:
    """Worst relative errors of the outputs and of the gradients, against the reference in float64."""
    outputs, gradients = call.differentiate(kernel)
    expected_outputs, expected_gradients = call.double().differentiate(reference)
    forward = max(map(relative_error, outputs, expected_outputs))
    return forward, max(map(relative_error, gradients, expected_gradients))
