"""Gradients of the shipped kernels against finite differences, and what is not differentiable."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.operators import HEAD_OPERATORS, OPERATORS, call, make_inputs, options

OPERATOR_AND_DECAY = [(operator, decay) for operator in OPERATORS.values() for decay in operator.decays]


def gradcheck(kernel, operator, inputs, **keywords) -> bool:
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    return torch.autograd.gradcheck(
        lambda *tensors: call(kernel, operator, dict(zip(leaves, tensors, strict=True)), **keywords),
        tuple(leaves.values()),
    )


@pytest.mark.cpu_only
@pytest.mark.parametrize(("operator", "decay"), OPERATOR_AND_DECAY)
@pytest.mark.parametrize("state", [True, False], ids=["state", "no_state"])
def test_finite_differences(kernel, operator, decay, state: bool) -> None:
    inputs = make_inputs(
        operator, batch=2, tokens=4, heads=2, size=8, dtype=torch.float64, decay=decay, state=state
    )
    assert gradcheck(kernel, operator, inputs, **options(operator, decay))


@pytest.mark.cpu_only
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_finite_differences_over_many_blocks_of_tokens(kernel, operator) -> None:
    inputs = make_inputs(operator, batch=1, tokens=67, heads=1, size=8, dtype=torch.float64)
    assert gradcheck(kernel, operator, inputs)


@pytest.mark.cpu_only
@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_finite_differences_of_packed_sequences(kernel, operator) -> None:
    inputs = make_inputs(operator, batch=1, tokens=6, heads=2, size=8, sequences=4, dtype=torch.float64)
    cu_seqlens = torch.tensor([0, 3, 3, 4, 6], dtype=torch.int32)
    assert gradcheck(kernel, operator, inputs, cu_seqlens=cu_seqlens)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_only_wanted_gradients(kernel, device, operator) -> None:
    """One input at a time: its gradient does not depend on which others are wanted."""
    inputs = make_inputs(operator, tokens=20, device=device)
    every = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    sum(x.sum() for x in call(kernel, operator, every)).backward()
    for name in inputs:
        one = {n: x.clone().requires_grad_(n == name) for n, x in inputs.items()}
        sum(x.sum() for x in call(kernel, operator, one)).backward()
        assert torch.equal(one[name].grad, every[name].grad), name
        assert all(x.grad is None for n, x in one.items() if n != name)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_backward_twice_through_one_graph(kernel, device, operator) -> None:
    inputs = {name: x.requires_grad_() for name, x in make_inputs(operator, tokens=40, device=device).items()}
    y, state = call(kernel, operator, inputs)
    loss = y.square().sum() + state.square().sum()
    first = torch.autograd.grad(loss, tuple(inputs.values()), retain_graph=True)
    second = torch.autograd.grad(loss, tuple(inputs.values()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_input_changed_before_backward_is_noticed(kernel, device, operator) -> None:
    inputs = {name: x.requires_grad_() for name, x in make_inputs(operator, device=device).items()}
    y, _ = call(kernel, operator, inputs)
    with torch.no_grad():
        inputs[operator.first].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_second_derivative_is_refused(kernel, device, operator) -> None:
    inputs = {name: x.requires_grad_() for name, x in make_inputs(operator, device=device).items()}
    y, _ = call(kernel, operator, inputs)
    (gradient,) = torch.autograd.grad(y.square().sum(), inputs["v"], create_graph=True)
    with pytest.raises(RuntimeError, match=f"{operator.name}.*second"):
        gradient.sum().backward()


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_no_grad_makes_no_graph(kernel, device, operator) -> None:
    inputs = {name: x.requires_grad_() for name, x in make_inputs(operator, device=device).items()}
    with torch.no_grad():
        assert not any(x.requires_grad for x in call(kernel, operator, inputs))
    with torch.inference_mode():
        assert not any(x.requires_grad for x in call(kernel, operator, inputs))
