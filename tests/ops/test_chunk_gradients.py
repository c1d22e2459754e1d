"""Gradients of matrix forms on a GPU: accurate, deterministic, and refused where there are none."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.chunks import (
    GRADIENT_CASES,
    assert_gradients_accurate,
    chunk_gradients,
    make_case,
    move,
)
from tests.helpers.operators import HEAD_OPERATORS, OPERATORS, call

pytestmark = pytest.mark.cuda_only

REPEATS = 1000


# Few heads have a block for each checkpoint, many one for all.
@pytest.mark.parametrize("heads", [2, 200])
@pytest.mark.parametrize(("operator", "case"), GRADIENT_CASES.values(), ids=GRADIENT_CASES)
def test_accuracy(kernel, device, operator, case, heads) -> None:
    inputs, keywords = make_case(operator, **{**case, "heads": heads})
    gradients = chunk_gradients(kernel, operator, move(inputs, device), move(keywords, device))
    gradients = {name: x.cpu() for name, x in gradients.items()}
    assert_gradients_accurate(kernel, operator, inputs, keywords, gradients)


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@pytest.mark.parametrize("heads", [2, 300])
def test_repeats(kernel, device, operator, heads) -> None:
    inputs, keywords = make_case(operator, tokens=100, heads=heads)
    inputs = move(inputs, device)
    first = chunk_gradients(kernel, operator, inputs, keywords)
    for _ in range(REPEATS):
        again = chunk_gradients(kernel, operator, inputs, keywords)
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_other_head_size(kernel, device) -> None:
    inputs, keywords = make_case(OPERATORS["wkv7"], size=128)
    inputs = move(inputs, device)
    inputs["k"].requires_grad_()
    with pytest.raises(RuntimeError, match="algorithm 'chunk' has gradients for head size 64"):
        call(kernel, OPERATORS["wkv7"], inputs, algorithm="chunk", **keywords)
