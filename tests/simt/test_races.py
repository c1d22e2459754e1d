"""No two warps of a block use the same shared memory without a barrier between them, unless both read."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.chunks import make_case, small_device
from tests.helpers.measure import run
from tests.helpers.operators import HEAD_OPERATORS, OPERATORS, make_inputs, recurrent
from tests.simt import emulated

pytestmark = pytest.mark.cpu_only

FEW, MANY = 132, 1  # multiprocessors: heads are few or many to them

# More chunks than warps that prepare them, so that each of their places is used again.
LONG = {"tokens": 260, "heads": 1}
CHUNKS = {
    "few heads": (LONG, FEW),
    "many heads": ({"tokens": 140, "heads": 2}, MANY),
    "packed, few heads": ({"lengths": [19, 1, 0, 150], "heads": 1}, FEW),
    "packed, many heads": ({"lengths": [19, 1, 0, 100], "heads": 2}, MANY),
    "float16": ({"tokens": 140, "heads": 1, "dtype": torch.float16}, FEW),
    "w in float32": ({"tokens": 140, "heads": 1, "wide_dtype": torch.float32}, MANY),
    "size 128, few heads": ({**LONG, "size": 128}, FEW),
    "size 128, many heads": ({"tokens": 140, "heads": 1, "size": 128}, MANY),
}


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@pytest.mark.parametrize(("case", "processors"), CHUNKS.values(), ids=CHUNKS)
def test_chunks(racing_kernel, operator, case, processors) -> None:
    inputs, keywords = make_case(operator, **case)
    with emulated.setting(processors=processors):
        run(racing_kernel, operator, inputs, algorithm="chunk", **keywords)


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@pytest.mark.parametrize("processors", [FEW, MANY])
def test_chunks_of_a_small_device(racing_kernel, operator, processors) -> None:
    inputs, keywords = make_case(operator, tokens=140, heads=1)
    with emulated.setting(processors=processors), small_device():
        run(racing_kernel, operator, inputs, algorithm="chunk", **keywords)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize(
    ("dtype", "size", "tokens"),
    [
        (torch.float32, 24, 40),
        (torch.float32, 64, 150),
        (torch.float32, 256, 10),
        (torch.bfloat16, 24, 40),
        (torch.bfloat16, 64, 150),
        (torch.bfloat16, 128, 40),
    ],
    ids=str,
)
@pytest.mark.parametrize("processors", [FEW, MANY])
def test_recurrent(racing_kernel, operator, dtype, size, tokens, processors) -> None:
    inputs = make_inputs(operator, batch=1, tokens=tokens, heads=2, size=size, dtype=dtype)
    with emulated.setting(processors=processors):
        run(racing_kernel, operator, inputs, **recurrent(operator))


@pytest.mark.parametrize("order", ["reverse", "1", "2"])
@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_other_orders(racing_kernel, operator, order) -> None:
    """What is found hardly depends on the order in which warps come; but what they find in memory may."""
    inputs, keywords = make_case(operator, **LONG)
    for algorithm in ("chunk", "recurrent"):
        with emulated.setting(order=order):
            run(racing_kernel, operator, inputs, algorithm=algorithm, **keywords)
