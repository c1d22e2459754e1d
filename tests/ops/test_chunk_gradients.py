"""Gradients of wkv7 in matrix form on a GPU: accurate, deterministic, and refused where there are none."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.chunks import (
    GRADIENT_CASES,
    WKV7,
    assert_gradients_accurate,
    chunk_gradients,
    make_case,
    move,
)
from tests.helpers.operators import OPERATORS, call

pytestmark = pytest.mark.cuda_only

REPEATS = 1000


# Few heads have a block for each checkpoint, many one for all.
@pytest.mark.parametrize("heads", [2, 200])
@pytest.mark.parametrize("case", GRADIENT_CASES.values(), ids=GRADIENT_CASES)
def test_accuracy(kernel, device, case, heads) -> None:
    inputs, keywords = make_case(WKV7, **{**case, "heads": heads})
    gradients = chunk_gradients(kernel, move(inputs, device), move(keywords, device))
    gradients = {name: x.cpu() for name, x in gradients.items()}
    assert_gradients_accurate(kernel, inputs, keywords, gradients)


@pytest.mark.parametrize("heads", [2, 300])
def test_repeats(kernel, device, heads) -> None:
    inputs, keywords = make_case(WKV7, tokens=100, heads=heads)
    inputs = move(inputs, device)
    first = chunk_gradients(kernel, inputs, keywords)
    for _ in range(REPEATS):
        again = chunk_gradients(kernel, inputs, keywords)
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_other_head_size(kernel, device) -> None:
    inputs, keywords = make_case(WKV7, size=128)
    inputs = move(inputs, device)
    inputs["k"].requires_grad_()
    with pytest.raises(RuntimeError, match="algorithm 'chunk' has gradients for head size 64"):
        call(kernel, WKV7, inputs, algorithm="chunk", **keywords)


@pytest.mark.parametrize("name", ["wkv5", "wkv6"])
def test_no_gradient_yet(kernel, device, name) -> None:
    inputs, keywords = make_case(OPERATORS[name])
    inputs = move(inputs, device)
    inputs["k"].requires_grad_()
    with pytest.raises(ValueError, match="algorithm 'chunk' has no gradient yet"):
        call(kernel, OPERATORS[name], inputs, algorithm="chunk", **keywords)
