"""wkv7 in matrix form, in the emulator: accurate, and the same in every order of threads."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch

from tests.helpers.chunks import CASES, WKV7, assert_chunks_accurate, make_case, run_chunks
from tests.helpers.measure import error
from tests.simt import emulated

# Few, some and many heads: that share a head's rows between four blocks, two, or none.
PROCESSORS = {"four blocks a head": 132, "two": 5, "one": 1}


@pytest.mark.parametrize("processors", PROCESSORS.values(), ids=PROCESSORS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_accuracy(simt_kernel, case, processors) -> None:
    inputs, keywords = make_case(**case)
    first = None
    for order in ("forward", "reverse", "1"):
        with emulated.setting(order, processors):
            results = run_chunks(simt_kernel, inputs, keywords)
        if first is None:
            first = results
            assert_chunks_accurate(simt_kernel, inputs, keywords, results)
        assert all(map(torch.equal, results, first)), "the results depend on the order of threads: a race"


def test_no_token(simt_kernel) -> None:
    inputs, keywords = make_case(tokens=0)
    y, state = run_chunks(simt_kernel, inputs, keywords)
    assert y.shape == (1, 0, 2, 64)
    assert torch.equal(state, inputs["state"])


@pytest.mark.parametrize("lengths", [None, [5, 0, 64, 70, 129]], ids=["batch", "packed"])
def test_checkpoints(simt_kernel, lengths) -> None:
    """Before every 64th token of a sequence, where backward of a checkpoint of 64 tokens looks for it."""
    inputs, keywords = make_case(lengths, tokens=150, heads=2)
    cu_seqlens = keywords.get("cu_seqlens")
    arguments = [inputs[name] for name in (*WKV7.inputs, "state")]
    ops = sys.modules[f"{simt_kernel.__name__}._ops"].ops
    *results, saved = ops.wkv7_chunk_forward(*arguments, cu_seqlens, 0, True)
    assert all(map(torch.equal, results, run_chunks(simt_kernel, inputs, keywords)))

    block = 0
    bounds = [0, 150] if lengths is None else cu_seqlens.tolist()
    for s, (begin, end) in enumerate(itertools.pairwise(bounds)):
        block = block if lengths is None else begin // 64 + s
        for first in range(begin, end, 64):
            before = {n: inputs[n][:, begin:first] for n in WKV7.inputs} | {
                "state": inputs["state"][s : s + 1]
            }
            _, state = run_chunks(simt_kernel, before, {})
            assert error(saved[block], state[0]) == 0
            block += 1
