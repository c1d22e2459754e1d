"""Outputs and every gradient against the reference in float64: all dtypes, lengths, sizes and options.

Token by token; the matrix form has its own tests, `test_chunks` and `test_chunk_gradients`.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from tests.helpers.covering import covering_cases
from tests.helpers.measure import assert_accurate
from tests.helpers.operators import HEAD_OPERATORS, OPERATORS, Operator, make_inputs, recurrent


class Precision(NamedTuple):
    """Dtype of the inputs, and of those that may be wider."""

    dtype: torch.dtype
    wide_dtype: torch.dtype

    def __str__(self) -> str:
        names = [str(dtype).removeprefix("torch.") for dtype in self]
        return names[0] if names[0] == names[1] else "+".join(names)


FLOAT32 = Precision(torch.float32, torch.float32)
PRECISIONS = (
    FLOAT32,
    Precision(torch.bfloat16, torch.bfloat16),
    Precision(torch.float16, torch.float16),
    Precision(torch.float64, torch.float64),
    Precision(torch.bfloat16, torch.float32),
    Precision(torch.float16, torch.float32),
)
TOKENS = (0, 1, 2, 15, 16, 17, 63, 64, 65, 1000)
HEAD_SIZES = (8, 16, 24, 40, 64, 96, 128, 256)
BATCH_AND_HEADS = ((1, 1), (2, 3), (1, 5), (3, 1), (1, 7))
# Lengths of packed sequences: nothing, one token, ends on and around the blocks that kernels work in.
PACKS = ((1,), (0, 1, 2), (16, 0, 15, 1, 17), (63, 65, 1), (0, 0), (100, 0, 3, 32, 31, 33))


def _affordable(case: dict) -> bool:
    """The reference keeps the state of every token: no large states beside many tokens."""
    batch, heads = case["batch_and_heads"]
    return case["tokens"] * batch * heads * case["size"] ** 2 <= 1000 * 3 * 64**2


def _cases(operator: Operator, axes: dict, allowed=lambda case: True):
    for case in covering_cases({"decay": operator.decays, **axes}, allowed):
        cpu_only = [pytest.mark.cpu_only] if case["precision"].dtype == torch.float64 else []
        label = "-".join(str(value).replace(" ", "") for value in case.values())
        yield pytest.param(operator, case, id=f"{operator.name}-{label}", marks=cpu_only)


DENSE_AXES = {
    "precision": PRECISIONS,
    "tokens": TOKENS,
    "size": HEAD_SIZES,
    "batch_and_heads": BATCH_AND_HEADS,
    "state": (True, False),
}
PACKED_AXES = {"precision": PRECISIONS, "pack": PACKS, "size": HEAD_SIZES, "state": (True, False)}


@pytest.mark.parametrize(
    ("operator", "case"),
    [case for operator in OPERATORS.values() for case in _cases(operator, DENSE_AXES, _affordable)],
)
def test_batches(kernel, device, operator: Operator, case: dict) -> None:
    batch, heads = case["batch_and_heads"]
    inputs = make_inputs(
        operator,
        batch=batch,
        tokens=case["tokens"],
        heads=heads,
        size=case["size"],
        dtype=case["precision"].dtype,
        wide_dtype=case["precision"].wide_dtype,
        decay=case["decay"],
        state=case["state"],
        device=device,
    )
    assert_accurate(kernel, operator, inputs, **recurrent(operator, case["decay"]))


@pytest.mark.parametrize(
    ("operator", "case"), [case for operator in HEAD_OPERATORS for case in _cases(operator, PACKED_AXES)]
)
def test_packed_sequences(kernel, device, operator: Operator, case: dict) -> None:
    lengths = torch.tensor([0, *case["pack"]])
    inputs = make_inputs(
        operator,
        batch=1,
        tokens=int(lengths.sum()),
        heads=3,
        size=case["size"],
        dtype=case["precision"].dtype,
        wide_dtype=case["precision"].wide_dtype,
        decay=case["decay"],
        state=case["state"],
        sequences=len(case["pack"]),
        device=device,
    )
    cu_seqlens = lengths.cumsum(0).to(device, torch.int32)
    assert_accurate(kernel, operator, inputs, **recurrent(operator, case["decay"], cu_seqlens=cu_seqlens))


@pytest.mark.kernels_ci
@pytest.mark.parametrize("precision", PRECISIONS[:3], ids=str)
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_typical_model(kernel, device, operator: Operator, precision: Precision) -> None:
    inputs = make_inputs(operator, tokens=130, heads=3, size=64, dtype=precision.dtype, device=device)
    assert_accurate(kernel, operator, inputs, **recurrent(operator))


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_algorithms_compute_the_same(kernel, device, operator: Operator) -> None:
    inputs = make_inputs(operator, tokens=70, size=64, device=device)
    for algorithm in ("auto", "recurrent"):
        assert_accurate(kernel, operator, inputs, algorithm=algorithm)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_gradient_of_one_output_alone(kernel, device, operator: Operator) -> None:
    """Autograd hands over None for the output that nobody used."""
    from tests.helpers.measure import error
    from tests.helpers.operators import call

    inputs = make_inputs(operator, tokens=40, size=16, device=device)
    for output in (0, 1):
        leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        exact = {name: x.double().requires_grad_() for name, x in inputs.items()}
        for namespace, tensors in ((kernel, leaves), (kernel.reference, exact)):
            call(namespace, operator, tensors)[output].square().sum().backward()
        for name, leaf in leaves.items():
            expected = exact[name].grad
            if expected is None:  # r and u have no part in the state
                assert leaf.grad is None or not leaf.grad.any(), name
            else:
                assert error(leaf.grad, expected) <= 1e-5 * expected.norm() + 1e-9, name
