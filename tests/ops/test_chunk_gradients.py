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
    run_chunks,
    small_device,
)
from tests.helpers.measure import output_gradients
from tests.helpers.operators import HEAD_OPERATORS, OPERATORS

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


# Longer than a checkpoint's tokens, and with chunks missing at the end.
@pytest.mark.parametrize("heads", [2, 200])
@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_small_device(kernel, device, operator, dtype, heads) -> None:
    inputs, keywords = make_case(operator, tokens=170, dtype=dtype, heads=heads)
    with small_device():
        gradients = chunk_gradients(kernel, operator, move(inputs, device), move(keywords, device))
    gradients = {name: x.cpu() for name, x in gradients.items()}
    assert_gradients_accurate(kernel, operator, inputs, keywords, gradients)


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@pytest.mark.parametrize(("heads", "size"), [(2, 64), (300, 64), (2, 128), (300, 128)])
def test_repeats(kernel, device, operator, heads, size) -> None:
    inputs, keywords = make_case(operator, tokens=100, heads=heads, size=size)
    inputs = move(inputs, device)
    drawn = output_gradients(*run_chunks(kernel, operator, inputs, keywords), seed=1)
    first = chunk_gradients(kernel, operator, inputs, keywords, drawn=drawn)
    for _ in range(REPEATS):
        again = chunk_gradients(kernel, operator, inputs, keywords, drawn=drawn)
        assert all(torch.equal(again[name], first[name]) for name in first)


@pytest.mark.parametrize("name", ["wkv6", "wkv7"])
def test_no_room(kernel, device, name) -> None:
    inputs, keywords = make_case(OPERATORS[name], size=128)
    with (
        small_device(),
        pytest.raises(RuntimeError, match="algorithm 'chunk' has gradients for head size 64 and"),
    ):
        chunk_gradients(kernel, OPERATORS[name], move(inputs, device), keywords)
