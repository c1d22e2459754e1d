"""Gradients of matrix forms, in the emulator: accurate, and the same in every order of threads."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.chunks import GRADIENT_CASES, assert_gradients_accurate, chunk_gradients, make_case
from tests.helpers.operators import HEAD_OPERATORS
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


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@pytest.mark.parametrize("exponent", [-40, -30, 20])
def test_scale(simt_kernel, operator, exponent) -> None:
    """Nothing underflows or overflows on the way."""
    inputs, keywords = make_case(operator, tokens=100)
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


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@pytest.mark.parametrize("of", [0, 1], ids=["y", "state"])
def test_one_output(simt_kernel, operator, of) -> None:
    """The gradient of the other is absent."""
    inputs, keywords = make_case(operator, tokens=100)
    gradients = chunk_gradients(simt_kernel, operator, inputs, keywords, of=(of,))
    assert_gradients_accurate(simt_kernel, operator, inputs, keywords, gradients, of=(of,))


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_no_token(simt_kernel, operator) -> None:
    inputs, keywords = make_case(operator, tokens=0)
    gradients = chunk_gradients(simt_kernel, operator, inputs, keywords)
    assert gradients["r"].shape == (1, 0, 2, 64)
    assert gradients["state"].count_nonzero() > 0
