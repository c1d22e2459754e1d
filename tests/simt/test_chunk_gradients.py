"""Gradients of wkv7 in matrix form, in the emulator: accurate, and the same in every order of threads."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.chunks import GRADIENT_CASES, WKV7, assert_gradients_accurate, chunk_gradients, make_case
from tests.simt import emulated


# Few heads have a block for each checkpoint, many one for all.
@pytest.mark.parametrize("processors", [132, 1], ids=["few heads", "many heads"])
@pytest.mark.parametrize("case", GRADIENT_CASES.values(), ids=GRADIENT_CASES)
def test_accuracy(simt_kernel, case, processors) -> None:
    inputs, keywords = make_case(WKV7, **case)
    first = None
    for order in ("forward", "reverse", "1"):
        with emulated.setting(order, processors):
            gradients = chunk_gradients(simt_kernel, inputs, keywords)
        if first is None:
            first = gradients
            assert_gradients_accurate(simt_kernel, inputs, keywords, gradients)
        same = all(torch.equal(gradients[name], first[name]) for name in first)
        assert same, "the gradients depend on the order of threads: a race"


@pytest.mark.parametrize("exponent", [-40, -30, 20])
def test_scale(simt_kernel, exponent) -> None:
    """Nothing underflows or overflows on the way."""
    inputs, keywords = make_case(WKV7, tokens=100)
    gradients = chunk_gradients(simt_kernel, inputs, keywords, 2.0**exponent)
    assert_gradients_accurate(simt_kernel, inputs, keywords, gradients, 2.0**exponent)


def test_no_token(simt_kernel) -> None:
    inputs, keywords = make_case(WKV7, tokens=0)
    gradients = chunk_gradients(simt_kernel, inputs, keywords)
    assert gradients["r"].shape == (1, 0, 2, 64)
    assert gradients["state"].count_nonzero() > 0
