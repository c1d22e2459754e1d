"""Recurrent results are the same bits however the tokens are split, batched, packed or threaded."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.helpers.measure import assert_same, run
from tests.helpers.operators import (
    HEAD_OPERATORS,
    OPERATORS,
    call,
    make_inputs,
    recurrent,
    slice_batch,
    slice_tokens,
)

DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    pytest.param(torch.float64, marks=pytest.mark.cpu_only),
]


def assert_same_bits(results, expected) -> None:
    for name, value in expected.items():
        assert torch.equal(results[name], value), name


@pytest.mark.kernels_ci
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 40])
def test_split_over_calls(kernel, device, operator, dtype, size) -> None:
    tokens = 150
    inputs = make_inputs(operator, tokens=tokens, size=size, dtype=dtype, device=device)
    y, state = call(kernel, operator, inputs, **recurrent(operator))
    for cuts in ([1], [32], [37], [64, 65, 65, 128], list(range(1, tokens, 7))):
        parts, carried = [], inputs["state"]
        for start, end in zip([0, *cuts], [*cuts, tokens], strict=True):
            part = {**slice_tokens(operator, inputs, start, end), "state": carried}
            y_part, carried = call(kernel, operator, part, **recurrent(operator))
            parts.append(y_part)
        assert_same(kernel, torch.cat(parts, dim=1), y, cuts)
        assert_same(kernel, carried, state, cuts)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [1, 5])
def test_in_another_batch(kernel, device, operator, dtype, heads) -> None:
    inputs = make_inputs(operator, batch=4, tokens=70, heads=heads, size=24, dtype=dtype, device=device)
    y, state = call(kernel, operator, inputs, **recurrent(operator))
    for start, end in ((0, 1), (1, 2), (3, 4), (1, 4)):
        part = slice_batch(operator, inputs, start, end)
        y_part, state_part = call(kernel, operator, part, **recurrent(operator))
        assert_same(kernel, y_part, y[start:end])
        assert_same(kernel, state_part, state[start:end])


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_state", [True, False], ids=["state", "no_state"])
def test_packed(kernel, device, operator, dtype, with_state) -> None:
    bounds = [0, 0, 1, 6, 39, 103, 105, 105, 137]
    inputs = make_inputs(
        operator,
        batch=1,
        tokens=bounds[-1],
        heads=3,
        size=64,
        dtype=dtype,
        device=device,
        state=with_state,
        sequences=len(bounds) - 1,
    )
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=device)
    y, state = call(kernel, operator, inputs, cu_seqlens=cu_seqlens, **recurrent(operator))
    for i, (start, end) in enumerate(itertools.pairwise(bounds)):
        one = slice_tokens(operator, inputs, start, end)
        if with_state:
            one["state"] = inputs["state"][i : i + 1]
        y_one, state_one = call(kernel, operator, one, **recurrent(operator))
        assert_same(kernel, y[:, start:end], y_one, i)
        assert_same(kernel, state[i : i + 1], state_one, i)


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_gradients_of_one_packed_sequence(kernel, device, operator) -> None:
    """A pack of one is a batch of one, gradients included."""
    inputs = make_inputs(operator, batch=1, tokens=77, size=64, device=device)
    cu_seqlens = torch.tensor([0, 77], dtype=torch.int32, device=device)
    assert_same_bits(run(kernel, operator, inputs, cu_seqlens=cu_seqlens), run(kernel, operator, inputs))


@pytest.mark.cpu_only
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (1, 3), (3, 5)])
def test_any_number_of_threads(kernel, threads, operator, batch, heads) -> None:
    """Outputs and gradients: work is shared out over heads and, if those are few, over rows of the state."""
    inputs = make_inputs(operator, batch=batch, tokens=100, heads=heads, size=64, dtype=torch.float32)
    threads(1)
    expected = run(kernel, operator, inputs)
    for count in (2, 3, 4, 7, 16):
        threads(count)
        assert_same_bits(run(kernel, operator, inputs), expected)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_repeats_under_contention(kernel, device, threads, operator) -> None:
    """More threads than cores, many times: a race would show as different bits."""
    threads(4)
    inputs = make_inputs(operator, tokens=40, heads=3, size=32, device=device)
    expected = run(kernel, operator, inputs)
    for _ in range(100):
        assert_same_bits(run(kernel, operator, inputs), expected)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_calls_from_several_python_threads(kernel, device, operator) -> None:
    """Scratch memory belongs to a thread: calls of different sizes at once do not disturb each other."""
    from concurrent.futures import ThreadPoolExecutor

    cases = [
        make_inputs(operator, tokens=t, size=n, device=device)
        for t, n in ((50, 16), (3, 128), (33, 64), (9, 8))
    ]
    expected = [run(kernel, operator, inputs) for inputs in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            for results, known in zip(
                pool.map(lambda inputs: run(kernel, operator, inputs), cases), expected, strict=True
            ):
                assert_same_bits(results, known)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_saving_for_backward_changes_nothing(kernel, device, operator) -> None:
    inputs = make_inputs(operator, tokens=70, device=device)
    y, state = call(kernel, operator, inputs)
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    y_saved, state_saved = call(kernel, operator, leaves)
    assert torch.equal(y, y_saved)
    assert torch.equal(state, state_saved)
