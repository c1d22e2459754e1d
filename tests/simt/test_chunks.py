"""Operators in matrix form, in the emulator: accurate, and the same in every order of threads."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from torch import Tensor

from tests.helpers.chunks import CASES, assert_chunks_accurate, make_case, run_chunks, small_device
from tests.helpers.measure import error
from tests.helpers.operators import DECAYS, HEAD_OPERATORS, slice_tokens
from tests.simt import emulated

pytestmark = pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)

# Few, some and many heads: that share a head's rows between four blocks, two, or none.
PROCESSORS = {"four blocks a head": 132, "two": 5, "one": 1}


@pytest.mark.parametrize("processors", PROCESSORS.values(), ids=PROCESSORS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_accuracy(simt_kernel, operator, case, processors) -> None:
    inputs, keywords = make_case(operator, **case)
    first = None
    for order in ("forward", "reverse", "1"):
        with emulated.setting(order, processors):
            results = run_chunks(simt_kernel, operator, inputs, keywords)
        if first is None:
            first = results
            assert_chunks_accurate(simt_kernel, operator, inputs, keywords, results)
        assert all(map(torch.equal, results, first)), "the results depend on the order of threads: a race"


def test_small_device(simt_kernel, operator) -> None:
    """Fewer warps prepare chunks where a block has less shared memory."""
    for size in (64, 128):
        inputs, keywords = make_case(operator, tokens=100, size=size, wide_dtype=torch.float32)
        with emulated.setting(processors=1):
            expected = run_chunks(simt_kernel, operator, inputs, keywords)
            with small_device():
                results = run_chunks(simt_kernel, operator, inputs, keywords)
        assert all(map(torch.equal, results, expected))


def test_no_token(simt_kernel, operator) -> None:
    inputs, keywords = make_case(operator, tokens=0)
    y, state = run_chunks(simt_kernel, operator, inputs, keywords)
    assert y.shape == (1, 0, 2, 64)
    assert torch.equal(state, inputs["state"])


@pytest.mark.parametrize("lengths", [None, [5, 0, 64, 70, 129]], ids=["batch", "packed"])
def test_checkpoints(simt_kernel, operator, lengths) -> None:
    """Before every 64th token of a sequence, where backward of a checkpoint of 64 tokens looks for it."""
    inputs, keywords = make_case(operator, lengths, tokens=150, heads=2, decay="exp")
    cu_seqlens = keywords.get("cu_seqlens")
    arguments = [inputs[name] for name in (*operator.inputs, "state")]
    ops = sys.modules[f"{simt_kernel.__name__}._ops"].ops
    forward = getattr(ops, f"{operator}_chunk_forward")
    *results, saved = forward(*arguments, cu_seqlens, DECAYS.index("exp"), True)
    assert all(map(torch.equal, results, run_chunks(simt_kernel, operator, inputs, keywords)))

    block = 0
    bounds = [0, 150] if lengths is None else cu_seqlens.tolist()
    for s, (begin, end) in enumerate(itertools.pairwise(bounds)):
        block = block if lengths is None else begin // 64 + s
        for first in range(begin, end, 64):
            before = slice_tokens(operator, inputs, begin, first) | {"state": inputs["state"][s : s + 1]}
            _, state = run_chunks(simt_kernel, operator, before, {"decay": "exp"})
            assert error(unpacked(saved[block]), state[0].to(saved.dtype)) == 0
            block += 1


def unpacked(checkpoints: Tensor) -> Tensor:
    """[H, N, N] as saved: blocks of 16 · 16 elements as the lanes of a warp have them."""
    heads, size = checkpoints.shape[:2]
    blocks = (heads, size // 16, size // 16)
    # Lanes (g, t); left and right half of the columns, which in fp32 lie apart; rows g and g + 8; pairs.
    if checkpoints.dtype == torch.float32:
        parts = checkpoints.view(*blocks, 2, 8, 4, 2, 2).permute(0, 1, 6, 4, 2, 3, 5, 7)
    else:
        parts = checkpoints.view(*blocks, 8, 4, 2, 2, 2).permute(0, 1, 6, 3, 2, 5, 4, 7)
    return parts.reshape(heads, size, size)


def test_segments(simt_kernel, operator) -> None:
    """Where heads are few and tokens come in segments, only rounding changes, in checkpoints too."""
    inputs, _ = make_case(operator, tokens=450, heads=1, decay="exp")
    arguments = [inputs[name] for name in (*operator.inputs, "state")]
    ops = sys.modules[f"{simt_kernel.__name__}._ops"].ops
    results = {}
    for processors in PROCESSORS.values():
        with emulated.setting("forward", processors):
            forward = getattr(ops, f"{operator}_chunk_forward")
            results[processors] = forward(*arguments, None, DECAYS.index("exp"), True)
    y, state, saved = results.pop(1)
    for others in results.values():
        assert error(others[0], y) <= 1e-3 * y.double().norm().item()
        assert error(others[1], state) <= 1e-5 * state.norm().item()
        assert error(others[2], saved) <= 1e-5 * saved.norm().item()
