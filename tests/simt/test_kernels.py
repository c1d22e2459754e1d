"""The CUDA kernels in the emulator, against the reference in float64 and in every order of threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.layouts import LAYOUTS
from tests.helpers.measure import TOLERANCES, assert_accurate, error, exact_and_plain, run, violations
from tests.helpers.operators import HEAD_OPERATORS, OPERATORS, call, make_inputs, options, slice_tokens, step
from tests.simt import emulated

pytestmark = pytest.mark.cpu_only

ORDERS = ("forward", "reverse", "1")
# Few heads and many: kernels choose the shape of their blocks by the multiprocessors that there are to fill.
PROCESSORS = (132, 1)
SIZES = (8, 24, 64, 128)
PRECISIONS = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16+float32": (torch.float16, torch.float32),
}


def assert_right(kernel, operator, inputs, processors, **keywords) -> None:
    """Accurate in one order of threads, and the same to the last bit in the others."""
    exact, plain = exact_and_plain(kernel.reference, operator, inputs, **keywords)
    first = None
    for order in ORDERS:
        with emulated.setting(order, processors):
            results = run(kernel, operator, inputs, **keywords)
        if first is None:
            first = results
            assert not (lines := violations(operator, inputs, results, exact, plain)), "\n" + "\n".join(lines)
        for name, value in results.items():
            assert torch.equal(value, first[name]), f"{name} depends on the order of threads: a race"


@pytest.mark.parametrize("processors", PROCESSORS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_accuracy(simt_kernel, operator, size, processors) -> None:
    inputs = make_inputs(operator, batch=1, tokens=37, heads=1, size=size)
    assert_right(simt_kernel, operator, inputs, processors)


@pytest.mark.parametrize("precision", list(PRECISIONS)[1:])
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_dtypes(simt_kernel, operator, precision) -> None:
    dtype, wide_dtype = PRECISIONS[precision]
    inputs = make_inputs(operator, tokens=37, size=24, dtype=dtype, wide_dtype=wide_dtype)
    assert_right(simt_kernel, operator, inputs, 132)


@pytest.mark.parametrize("decay", ["log", "exp", "sigmoid"])
@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_decays(simt_kernel, operator, decay) -> None:
    inputs = make_inputs(operator, batch=1, tokens=20, heads=2, size=16, decay=decay)
    assert_right(simt_kernel, operator, inputs, 132, **options(operator, decay))


@pytest.mark.parametrize("tokens", [0, 1, 15, 16, 65])
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_lengths(simt_kernel, operator, tokens) -> None:
    inputs = make_inputs(operator, batch=1, tokens=tokens, heads=1, size=8, state=False)
    assert_right(simt_kernel, operator, inputs, 132)


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_packed(simt_kernel, operator) -> None:
    lengths = [0, 17, 1, 0, 16, 3]
    cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    inputs = make_inputs(
        operator, batch=1, tokens=sum(lengths), heads=2, size=40, sequences=len(lengths), dtype=torch.bfloat16
    )
    assert_right(simt_kernel, operator, inputs, 132, cu_seqlens=cu_seqlens)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_wkv7_gradients_on_tensor_cores(simt_kernel, precision) -> None:
    """Where heads are many: decays from 1 down to 0, any lengths, heads less wide than the products."""
    dtype, wide_dtype = PRECISIONS[precision]
    lengths = [0, 37, 1, 16, 5]
    cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    inputs = make_inputs(
        OPERATORS["wkv7"],
        batch=1,
        tokens=sum(lengths),
        heads=2,
        size=48,
        sequences=len(lengths),
        dtype=dtype,
        wide_dtype=wide_dtype,
    )
    generator = torch.Generator().manual_seed(2)
    log_decays = -torch.exp(13 * torch.rand(inputs["w"].shape, generator=generator) - 9)
    inputs["w"] = log_decays.to(inputs["w"].dtype)
    assert_right(simt_kernel, OPERATORS["wkv7"], inputs, 1, cu_seqlens=cu_seqlens)


@pytest.mark.parametrize("lengths", [[300], [130, 0, 129, 1]], ids=str)
def test_wkv7_gradients_in_windows(simt_kernel, lengths) -> None:
    """Blocks take windows of tokens in turn, if a round of whole heads, three here, would be half empty.

    Sequences that end in different windows.
    """
    cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    inputs = make_inputs(
        OPERATORS["wkv7"],
        batch=1,
        tokens=sum(lengths),
        heads=4 // len(lengths),
        size=64,
        sequences=len(lengths),
        dtype=torch.bfloat16,
    )
    assert_right(simt_kernel, OPERATORS["wkv7"], inputs, 1, cu_seqlens=cu_seqlens)


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_layouts(simt_kernel, operator, layout) -> None:
    inputs = {n: layout(x) for n, x in make_inputs(operator, tokens=9, heads=2, size=24).items()}
    with emulated.setting("2"):
        assert_accurate(simt_kernel, operator, inputs)


def one_token(operator, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first token, without a dimension for tokens and without the state."""
    first = inputs[operator.first].shape
    return {n: x[:, 0].contiguous() if x.shape == first else x for n, x in inputs.items() if n != "state"}


@pytest.mark.parametrize(
    ("dtype", "pool_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_step(simt_kernel, operator, size, dtype, pool_dtype) -> None:
    """Updates the rows of its slots alone; a slot that there is not gives NaN. The same bits on any GPU."""
    inputs = make_inputs(operator, batch=3, tokens=1, heads=2, size=size, dtype=dtype)
    token = one_token(operator, inputs)
    pool = torch.full((6, *inputs["state"].shape[1:]), 0.25).to(pool_dtype)
    slots = torch.tensor([4, -1, 1], dtype=torch.int32)
    pool[slots[[0, 2]]] = inputs["state"][[0, 2]].to(pool_dtype)
    exact = {n: x.double() for n, x in inputs.items()} | {"state": pool[slots.long()].double()}
    exact_y, exact_state = call(simt_kernel.reference, operator, exact)

    first = None
    for order, processors in zip(ORDERS, (132, 1, 3), strict=True):
        after = pool.clone()
        with emulated.setting(order, processors):
            y = step(simt_kernel, operator, token, after, slots)
        if first is None:
            first = y, after
        torch.testing.assert_close(y, first[0], rtol=0, atol=0, equal_nan=True)
        assert torch.equal(after, first[1]), "the states depend on the order of threads: a race"
    y, after = first
    assert y[1].isnan().all()
    known = [0, 2]
    pairs = ((y[known], exact_y[known, 0]), (after[slots[known].long()], exact_state[known]))
    for result, expected in pairs:
        assert error(result, expected) <= TOLERANCES[result.dtype] * expected.norm().item()
    untouched = [0, 2, 3, 5]
    assert torch.equal(after[untouched], pool[untouched])


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_split_and_batch_change_no_bit(simt_kernel, operator) -> None:
    """Also where other shapes of blocks are chosen for few heads than for many."""
    inputs = make_inputs(operator, batch=2, tokens=21, heads=2, size=40)
    with emulated.setting(processors=1):
        y, state = call(simt_kernel, operator, inputs)
    with emulated.setting("reverse"):
        first_y, middle = call(simt_kernel, operator, slice_tokens(operator, inputs, 0, 5))
        rest = slice_tokens(operator, inputs, 5, 21) | {"state": middle}
        rest_y, last = call(simt_kernel, operator, rest)
    assert torch.equal(torch.cat([first_y, rest_y], dim=1), y)
    assert torch.equal(last, state)
