"""Gradients of matrix forms, in the emulator: accurate, and the same in every order of threads."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.chunks import (
    GRADIENT_CASES,
    assert_gradients_accurate,
    chunk_gradients,
    make_case,
    small_device,
)
from tests.helpers.operators import HEAD_OPERATORS, OPERATORS
from tests.simt import emulated


# Few heads have a block for each checkpoint, many one for all.
@pytest.mark.parametrize("processors", [132, 1], ids=["few heads", "many heads"])
@pytest.mark.parametrize(("operator", "case"), GRADIENT_CASES.values(), ids=GRADIENT_CASES)
def test_accuracy(simt_kernel, operator, case, processors) -> None:
    inputs, keywords = make_case(operator, **case)
    first = None
    for order in ("forward", "reverse", "1"):
        with emulated.setting(order, processors):
            gradients = chunk_gradients(simt_kernel, operator, inputs, keywords)
        if first is None:
            first = gradients
            assert_gradients_accurate(simt_kernel, operator, inputs, keywords, gradients)
        same = all(torch.equal(gradients[name], first[name]) for name in first)
        assert same, "the gradients depend on the order of threads: a race"


@pytest.mark.parametrize("processors", [132, 1], ids=["few heads", "many heads"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_small_device(simt_kernel, operator, dtype, processors) -> None:
    """With less shared memory the same is computed in another order, if at all."""
    for lengths in ([17, 0, 40, 64, 150], [100]):
        inputs, keywords = make_case(operator, lengths=lengths, dtype=dtype, heads=1)
        with emulated.setting(processors=processors):
            expected = chunk_gradients(simt_kernel, operator, inputs, keywords)
        for order in ("forward", "reverse", "1"):
            with emulated.setting(order, processors), small_device():
                gradients = chunk_gradients(simt_kernel, operator, inputs, keywords)
            assert all(torch.equal(gradients[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", ["wkv6", "wkv7"])
def test_no_room(simt_kernel, name) -> None:
    inputs, keywords = make_case(OPERATORS[name], size=128)
    with (
        small_device(),
        pytest.raises(RuntimeError, match=r"head size 64 and, on devices with \d+ KiB .*got 'chunk' for 128"),
    ):
        chunk_gradients(simt_kernel, OPERATORS[name], inputs, keywords)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@pytest.mark.parametrize("exponent", [-40, -30, 20])
def test_scale(simt_kernel, operator, exponent, size) -> None:
    """Nothing underflows or overflows on the way."""
    inputs, keywords = make_case(operator, tokens=100, size=size)
    gradients = chunk_gradients(simt_kernel, operator, inputs, keywords, 2.0**exponent)
    assert_gradients_accurate(simt_kernel, operator, inputs, keywords, gradients, 2.0**exponent)


# As far as float16 holds the results.
@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@pytest.mark.parametrize("exponent", [-10, 10])
def test_scale_of_float16(simt_kernel, operator, exponent) -> None:
    inputs, keywords = make_case(operator, tokens=100, dtype=torch.float16)
    inputs["k"] *= 2.0 ** min(0, -exponent)
    gradients = chunk_gradients(simt_kernel, operator, inputs, keywords, 2.0**exponent)
    assert_gradients_accurate(simt_kernel, operator, inputs, keywords, gradients, 2.0**exponent)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@pytest.mark.parametrize("of", [0, 1], ids=["y", "state"])
def test_one_output(simt_kernel, operator, of, size) -> None:
    """The gradient of the other is absent."""
    inputs, keywords = make_case(operator, tokens=100, size=size)
    gradients = chunk_gradients(simt_kernel, operator, inputs, keywords, of=(of,))
    assert_gradients_accurate(simt_kernel, operator, inputs, keywords, gradients, of=(of,))


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_no_token(simt_kernel, operator) -> None:
    inputs, keywords = make_case(operator, tokens=0)
    gradients = chunk_gradients(simt_kernel, operator, inputs, keywords)
    assert gradients["r"].shape == (1, 0, 2, 64)
    assert gradients["state"].count_nonzero() > 0
