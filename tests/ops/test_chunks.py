"""Operators in matrix form on a GPU: accurate, deterministic, and refused where it cannot be."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.chunks import CASES, assert_chunks_accurate, make_case, move, run_chunks
from tests.helpers.operators import HEAD_OPERATORS, call

pytestmark = [pytest.mark.cuda_only, pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)]

REPEATS = 1000


# Few heads share a multiprocessor's worth of warps each, many have a block each.
@pytest.mark.parametrize("heads", [2, 40, 200])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_accuracy(kernel, device, operator, case, heads) -> None:
    inputs, keywords = make_case(operator, **{**case, "heads": heads})
    results = run_chunks(kernel, operator, move(inputs, device), move(keywords, device))
    assert_chunks_accurate(kernel, operator, inputs, keywords, [x.cpu() for x in results])


@pytest.mark.parametrize("heads", [2, 300])
def test_repeats(kernel, device, operator, heads) -> None:
    inputs, keywords = make_case(operator, tokens=100, heads=heads)
    inputs = move(inputs, device)
    first = run_chunks(kernel, operator, inputs, keywords)
    for _ in range(REPEATS):
        assert all(map(torch.equal, run_chunks(kernel, operator, inputs, keywords), first))


@pytest.mark.parametrize("gradients", [False, True], ids=["no gradients", "gradients"])
@pytest.mark.parametrize(
    ("change", "chunks"),
    [({}, True), ({"tokens": 31}, False), ({"dtype": torch.float32}, False), ({"size": 40}, False)],
    ids=["bfloat16", "31 tokens", "float32", "size 40"],
)
def test_auto(kernel, device, operator, change, chunks, gradients) -> None:
    """Without a word about the algorithm 16-bit inputs go to the tensor cores, where those can take them."""
    inputs, keywords = make_case(operator, **{"tokens": 40, **change})
    inputs = move(inputs, device)
    inputs["v"].requires_grad_(gradients)
    expected = "chunk" if chunks else "recurrent"
    results = call(kernel, operator, inputs, **keywords)
    assert all(map(torch.equal, results, call(kernel, operator, inputs, algorithm=expected, **keywords)))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"dtype": torch.float32}, ("bfloat16 and float16", "float32")),
        ({"size": 40}, ("head sizes 64 and 128", "40")),
    ],
    ids=["float32", "size 40"],
)
def test_refused(kernel, device, operator, change, expected) -> None:
    inputs, keywords = make_case(operator, **change)
    with pytest.raises(RuntimeError, match=f"{operator}: algorithm 'chunk' takes") as refusal:
        run_chunks(kernel, operator, move(inputs, device), keywords)
    assert all(part in str(refusal.value) for part in expected)
