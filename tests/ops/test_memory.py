"""What is read and written: any layout in, nothing but the outputs out, and every element of those."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.utils.deterministic

from tests.helpers.layouts import LAYOUTS
from tests.helpers.measure import assert_accurate, error, output_gradients, run
from tests.helpers.operators import HEAD_OPERATORS, OPERATORS, call, make_inputs, step, token_inputs

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def poisoned_memory():
    """New tensors are full of NaN until somebody writes to them."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(100).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [0, 1, 16, pytest.param(33, marks=pytest.mark.kernels_ci)])
@pytest.mark.parametrize("size", [8, 24, 64])
def test_every_element_is_written(kernel, device, poisoned_memory, operator, dtype, tokens, size) -> None:
    inputs = make_inputs(operator, tokens=tokens, size=size, dtype=dtype, device=device)
    for given in (inputs, {name: x for name, x in inputs.items() if name != "state"}):
        for name, value in run(kernel, operator, given).items():
            assert not value.isnan().any(), name
    assert not step(kernel, operator, inputs, inputs["state"].clone()).isnan().any()


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_every_element_of_packed_results_is_written(kernel, device, poisoned_memory, operator) -> None:
    bounds = torch.tensor([0, 0, 1, 34, 34, 98, 100], dtype=torch.int32, device=device)
    inputs = make_inputs(operator, batch=1, tokens=100, sequences=6, device=device)
    for name, value in run(kernel, operator, inputs, cu_seqlens=bounds).items():
        assert not value.isnan().any(), name


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout(kernel, device, operator, dtype, layout) -> None:
    """The same bits as contiguous inputs give, gradients included."""
    inputs = make_inputs(operator, tokens=37, heads=3, size=24, dtype=dtype, device=device)
    expected = run(kernel, operator, inputs)
    for names in ([operator.first], ["state"], list(inputs)):
        changed = {name: layout(x) if name in names else x for name, x in inputs.items()}
        leaves = {
            name: x.detach().requires_grad_() for name, x in changed.items()
        }  # no clone: it would tidy up
        y, state = call(kernel, operator, leaves)
        torch.autograd.backward((y, state), output_gradients(y, state, 1))
        assert torch.equal(y, expected["y"]), names
        assert torch.equal(state, expected["final state"]), names
        for name, leaf in leaves.items():
            assert torch.equal(leaf.grad, expected[f"grad {name}"]), (names, name)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_any_layout_of_output_gradients(kernel, device, operator, layout) -> None:
    inputs = make_inputs(operator, tokens=37, heads=3, size=24, device=device)
    expected = run(kernel, operator, inputs)
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    y, state = call(kernel, operator, leaves)
    torch.autograd.backward((y, state), [layout(g) for g in output_gradients(y, state, 1)])
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, expected[f"grad {name}"]), name


@pytest.mark.kernels_ci
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_expanded_output_gradients(kernel, device, operator) -> None:
    """`y.sum()` sends back one number with strides of 0."""
    inputs = make_inputs(operator, tokens=37, device=device)
    gradients = {}
    for materialised in (False, True):
        leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        y, state = call(kernel, operator, leaves)
        ones = [torch.ones((), device=device).expand(x.shape) for x in (y, state)]
        torch.autograd.backward((y, state), [g.contiguous() if materialised else g for g in ones])
        gradients[materialised] = {name: x.grad for name, x in leaves.items()}
    for name in inputs:
        assert torch.equal(gradients[False][name], gradients[True][name]), name


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("dimension", [0, 1, 2])
def test_expanded_inputs(kernel, device, operator, dimension) -> None:
    """One row for all sequences, tokens or heads, without a copy; its gradient is the sum over them."""
    inputs = make_inputs(operator, batch=3, tokens=20, device=device)
    if not operator.has_heads and dimension == 2:
        dimension = -1
    narrow = {
        name: inputs[name].narrow(dimension, 0, 1).clone().requires_grad_()
        for name in token_inputs(operator, inputs)
    }
    wide = {name: x.expand(inputs[name].shape) for name, x in narrow.items()}
    y, _ = call(kernel, operator, {**inputs, **wide})
    y.square().sum().backward()
    exact = {name: x.detach().double().requires_grad_() for name, x in narrow.items()}
    exact_wide = {name: x.expand(inputs[name].shape) for name, x in exact.items()}
    exact_y, _ = call(
        kernel.reference, operator, {**{n: x.double() for n, x in inputs.items()}, **exact_wide}
    )
    exact_y.square().sum().backward()
    assert error(y, exact_y) <= 1e-5 * exact_y.norm()
    for name, leaf in narrow.items():
        assert error(leaf.grad, exact[name].grad) <= 2e-5 * exact[name].grad.norm(), name


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_expanded_initial_state(kernel, device, operator) -> None:
    """One learned state for the whole batch."""
    inputs = make_inputs(operator, batch=3, tokens=20, device=device)
    learned = inputs["state"][:1].clone().requires_grad_()
    y, state = call(kernel, operator, {**inputs, "state": learned.expand(inputs["state"].shape)})
    expected_y, expected_state = call(
        kernel, operator, {**inputs, "state": learned.repeat(3, *[1] * (learned.dim() - 1))}
    )
    assert torch.equal(y, expected_y)
    assert torch.equal(state, expected_state)
    y.sum().backward()
    assert learned.grad.shape == learned.shape


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_one_tensor_as_several_inputs(kernel, device, operator) -> None:
    inputs = make_inputs(operator, tokens=20, device=device)
    shared = 0.1 * inputs["v"]
    names = [name for name in token_inputs(operator, inputs) if name != "w"]
    assert_accurate(kernel, operator, {**inputs, **dict.fromkeys(names, shared)})


@pytest.mark.kernels_ci
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_inputs_are_not_modified(kernel, device, operator) -> None:
    inputs = {name: x.requires_grad_() for name, x in make_inputs(operator, tokens=37, device=device).items()}
    before = {name: x.detach().clone() for name, x in inputs.items()}
    y, state = call(kernel, operator, inputs)
    gradients = output_gradients(y, state, 1)
    gradients_before = [g.clone() for g in gradients]
    y_before, state_before = y.detach().clone(), state.detach().clone()
    torch.autograd.backward((y, state), gradients)
    assert all(torch.equal(x, before[name]) for name, x in inputs.items())
    assert all(torch.equal(*pair) for pair in zip(gradients, gradients_before, strict=True))
    assert torch.equal(y, y_before)
    assert torch.equal(state, state_before)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("tokens", [0, 5])
def test_results_are_new_tensors(kernel, device, operator, tokens) -> None:
    inputs = make_inputs(operator, tokens=tokens, device=device)
    y, state = call(kernel, operator, inputs)
    addresses = {x.untyped_storage().data_ptr() for x in inputs.values() if x.numel()}
    assert state.untyped_storage().data_ptr() not in addresses
    assert y.is_contiguous()
    assert state.is_contiguous()
    state.add_(1)
    assert not torch.equal(state, inputs["state"])


@pytest.mark.xdist_group("large memory")
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_offsets_beyond_32_bits(kernel, device, operator) -> None:
    """Sequences more than 2^31 elements apart: only the touched pages of so large a buffer take memory."""
    gap = 2**31 + 64
    inputs = make_inputs(operator, batch=2, tokens=3, heads=1, size=8, dtype=torch.bfloat16, device=device)
    expected = run(kernel, operator, inputs)
    name = operator.first
    buffer = torch.empty(gap + 1000, dtype=torch.bfloat16, device=device)
    far = buffer.as_strided(inputs[name].shape, (gap, *inputs[name].stride()[1:]))
    far.copy_(inputs[name])
    y, state = call(kernel, operator, {**inputs, name: far})
    assert torch.equal(y, expected["y"])
    assert torch.equal(state, expected["final state"])


@pytest.mark.xdist_group("large memory")
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_pool_rows_beyond_32_bits(kernel, device, operator) -> None:
    inputs = make_inputs(operator, batch=1, tokens=1, heads=1, size=8, device=device)
    gap = 2**30 + 64  # of float16, more than 2^31 bytes a row; the third row lies beyond 2^31 elements
    shape = inputs["state"].shape
    buffer = torch.empty(2 * gap + 1000, dtype=torch.float16, device=device)
    pool = buffer.as_strided((3, *shape[1:]), (gap, *inputs["state"].stride()[1:]))
    pool[2] = inputs["state"][0]
    state = pool[2:].float()
    y = step(kernel, operator, inputs, pool, torch.tensor([2], dtype=torch.int32, device=device))
    expected_y, expected_state = call(kernel, operator, {**inputs, "state": state})
    assert torch.equal(y, expected_y)
    assert torch.equal(pool[2:], expected_state.half())


@pytest.mark.cpu_only
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_memory_is_given_back(kernel, operator) -> None:
    """Many training steps leave no tensor behind."""
    inputs = make_inputs(operator, tokens=40)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())

    run(kernel, operator, inputs)
    before = tensors()
    for _ in range(20):
        run(kernel, operator, inputs)
    assert tensors() <= before
