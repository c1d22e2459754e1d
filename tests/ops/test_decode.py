"""The in-place steps: the same as a prefill, on any rows of a pool, touching nothing else."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.measure import TOLERANCES, assert_same, error, is_plain
from tests.helpers.operators import (
    HEAD_OPERATORS,
    OPERATORS,
    call,
    make_inputs,
    recurrent,
    slice_tokens,
    step,
    token_inputs,
)

DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    pytest.param(torch.float64, marks=pytest.mark.cpu_only),
]
POOL_DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def one_token(operator, inputs, t: int) -> dict:
    """Token t without a dimension for tokens."""
    chosen = token_inputs(operator, inputs)
    return {name: x[:, t] if name in chosen else x for name, x in inputs.items()}


def prefill(kernel, operator, inputs, decay=None):
    return call(kernel, operator, inputs, **recurrent(operator, decay))


@pytest.mark.kernels_ci
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 24])
def test_steps_are_a_prefill(kernel, device, operator, dtype, size) -> None:
    inputs = make_inputs(operator, batch=3, tokens=40, size=size, dtype=dtype, device=device)
    y, final_state = prefill(kernel, operator, inputs)
    state = inputs["state"].clone()
    for t in range(40):
        assert_same(kernel, step(kernel, operator, one_token(operator, inputs, t), state), y[:, t], t)
    assert_same(kernel, state, final_state)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 2, 5, 33])
def test_a_few_tokens_a_step(kernel, device, operator, tokens) -> None:
    inputs = make_inputs(operator, batch=3, tokens=2 * tokens, device=device)
    y, final_state = prefill(kernel, operator, inputs)
    state = inputs["state"].clone()
    first = step(kernel, operator, slice_tokens(operator, inputs, 0, tokens), state)
    second = step(kernel, operator, slice_tokens(operator, inputs, tokens, 2 * tokens), state)
    assert_same(kernel, torch.cat([first, second], dim=1), y)
    assert_same(kernel, state, final_state)


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@pytest.mark.parametrize("decay", ["log", "exp", "sigmoid"])
def test_decay_forms(kernel, device, operator, decay) -> None:
    inputs = make_inputs(operator, tokens=3, decay=decay, device=device)
    y, final_state = prefill(kernel, operator, inputs, decay)
    state = inputs["state"].clone()
    assert torch.equal(step(kernel, operator, inputs, state, decay=decay), y)
    assert torch.equal(state, final_state)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("pool_dtype", POOL_DTYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slots_of_a_pool(kernel, device, operator, dtype, pool_dtype) -> None:
    """Rows in any order; the others stay bit-equal; a low-precision pool costs its rounding and no more."""
    rows = [5, 0, 3]
    inputs = make_inputs(operator, batch=3, tokens=4, dtype=dtype, device=device)
    slots = torch.tensor(rows, dtype=torch.int32, device=device)
    pool = torch.randn(8, *inputs["state"].shape[1:], generator=torch.Generator().manual_seed(2))
    pool = pool.to(device, pool_dtype)
    pool[rows] = inputs["state"].to(pool_dtype)
    before = pool.clone()

    y = step(kernel, operator, inputs, pool, slots)
    exact_y, exact_state = prefill(kernel, operator, {**inputs, "state": before[rows].float()})
    assert torch.equal(y, exact_y)
    assert torch.equal(pool[rows], exact_state.to(pool_dtype))
    others = [row for row in range(8) if row not in rows]
    assert torch.equal(pool[others], before[others])


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("pool_dtype", POOL_DTYPES)
def test_long_generation_stays_accurate(kernel, device, operator, pool_dtype) -> None:
    """A bfloat16 pool rounds the state once a token, and forgets the roundings as it forgets the tokens."""
    inputs = make_inputs(operator, tokens=100, size=64, device=device)
    exact = call(kernel.reference, operator, {name: x.double() for name, x in inputs.items()})[0]
    state = inputs["state"].to(pool_dtype)
    y = torch.stack(
        [step(kernel, operator, one_token(operator, inputs, t), state) for t in range(100)], dim=1
    )
    plain_state, plain = inputs["state"].to(pool_dtype), []
    for t in range(100):
        token = {**slice_tokens(operator, inputs, t, t + 1), "state": plain_state}
        y_token, plain_state = call(kernel.reference, operator, token)
        plain_state = plain_state.to(pool_dtype)
        plain.append(y_token)
    allowed = max(2 * error(torch.cat(plain, dim=1), exact), TOLERANCES[torch.float32] * exact.norm().item())
    assert error(y, exact) <= allowed


@pytest.mark.cpu_only
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_float64_pool(kernel, operator) -> None:
    inputs = make_inputs(operator, batch=2, tokens=5, dtype=torch.float64)
    y, final_state = prefill(kernel, operator, inputs)
    pool = torch.full((4, *inputs["state"].shape[1:]), 7.0, dtype=torch.float64)
    pool[[2, 1]] = inputs["state"]
    assert torch.equal(step(kernel, operator, inputs, pool, torch.tensor([2, 1], dtype=torch.int32)), y)
    assert torch.equal(pool[[2, 1]], final_state)
    assert (pool[[0, 3]] == 7).all()


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_pool_between_guard_bands_and_with_gaps(kernel, device, operator) -> None:
    """A pool that is a strided view of a larger tensor: what lies between and around it stays as it was."""
    inputs = make_inputs(operator, batch=3, tokens=2, size=24, device=device)
    shape = inputs["state"].shape
    around = torch.full((2 * shape[0] + 3, *shape[1:-1], shape[-1] + 5), 123.0, device=device)
    pool = around[2:-1:2, ..., 3:-2]
    pool.copy_(inputs["state"])
    inside = torch.zeros_like(around, dtype=torch.bool)
    inside[2:-1:2, ..., 3:-2] = True

    y = step(kernel, operator, inputs, pool)
    expected_y, expected_state = prefill(kernel, operator, inputs)
    assert torch.equal(y, expected_y)
    assert torch.equal(pool, expected_state)
    assert (around[~inside] == 123).all()


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_transposed_pool(kernel, device, operator) -> None:
    """A key-major pool can be stepped through its transpose."""
    inputs = make_inputs(operator, tokens=3, device=device)
    key_major = inputs["state"].mT.contiguous()
    expected_y, expected_state = prefill(kernel, operator, inputs)
    assert torch.equal(step(kernel, operator, inputs, key_major.mT), expected_y)
    assert torch.equal(key_major.mT, expected_state)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_no_sequence(kernel, device, operator) -> None:
    """An empty batch of slots is a quiet step of a serving loop."""
    inputs = make_inputs(operator, batch=0, tokens=1, device=device)
    pool = torch.randn(4, *inputs["state"].shape[1:], device=device)
    before = pool.clone()
    y = step(kernel, operator, inputs, pool, torch.empty(0, dtype=torch.int32, device=device))
    assert y.shape == inputs[operator.first].shape
    assert torch.equal(pool, before)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_version_counter(kernel, device, operator) -> None:
    """Autograd is told that the state changed."""
    inputs = make_inputs(operator, tokens=1, device=device)
    state = inputs["state"].clone()
    step(kernel, operator, inputs, state)
    # Plain PyTorch updates a state a part at a time.
    assert state._version > 0 if is_plain(kernel) else state._version == 1
