"""How far the kernel is from the reference in float64, on what a trained model really feeds it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from examples.demo.model import LanguageModel
from examples.demo.recurrence import Recurrence

TOLERANCE = 1e-5  # float32, relative


def relative_error(value: Tensor, expected: Tensor) -> float:
    """‖value - expected‖ / ‖expected‖ in float64."""
    expected = expected.double()
    return ((value.double() - expected).norm() / expected.norm().clamp_min(1e-300)).item()


def operator_errors(
    model: LanguageModel, kernel: Recurrence, reference: Recurrence, window: Tensor
) -> tuple[float, float]:
    """Errors of the operator in the model's last layer, with a state before the tokens and one after.

    Args:
        window: int64 `[B, T]`, the tokens that make the operator's inputs.

    Returns:
        The worst relative error of the outputs, and that of the gradients of all inputs and the state.
    """
    inputs, options = _last_inputs(model, kernel, window)
    generator = torch.Generator().manual_seed(0)
    batch, _, heads, size = inputs[0].shape
    state = torch.randn(batch, heads, size, size, generator=generator)
    grads = [torch.randn(inputs[0].shape, generator=generator), torch.randn(state.shape, generator=generator)]

    arguments = [*inputs, state]
    outputs, gradients = _differentiate(kernel, arguments, grads, options)
    double = [[x.double() for x in each] for each in (arguments, grads)]
    expected_outputs, expected_gradients = _differentiate(reference, *double, options)
    forward = max(map(relative_error, outputs, expected_outputs))
    return forward, max(map(relative_error, gradients, expected_gradients))


def _last_inputs(model: LanguageModel, kernel: Recurrence, window: Tensor) -> tuple[list[Tensor], dict]:
    calls = []

    def remember(*inputs: Tensor, **options: str) -> tuple[Tensor, Tensor]:
        calls.append(([x.detach().clone() for x in inputs], options))
        return kernel.forward(*inputs, **options)

    with torch.no_grad():
        model(window, replace(kernel, forward=remember))
    return calls[-1]


def _differentiate(
    recurrence: Recurrence, arguments: list[Tensor], grads: list[Tensor], options: dict
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    leaves = [x.clone().requires_grad_() for x in arguments]
    outputs = recurrence.forward(*leaves, **options)
    return outputs, torch.autograd.grad(outputs, leaves, grads)
