"""Operators in matrix form against float64: what their errors may be, and inputs that ask for them."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from unittest import mock

import torch
from torch import Tensor

from tests.helpers.measure import error, output_gradients
from tests.helpers.operators import HEAD_OPERATORS, Operator, call, make_inputs, options

# Of the final state, relative: its updates go through the tensor cores in the dtype of the inputs.
STATE_TOLERANCES = {torch.bfloat16: 2e-3, torch.float16: 3e-4}
# Of every gradient, relative, and of the initial state's. Backward's operands are bfloat16 for any inputs.
GRADIENT_TOLERANCES = {
    "wkv5": {torch.bfloat16: 3.5e-3, torch.float16: 3.5e-3},
    "wkv6": {torch.bfloat16: 3.5e-3, torch.float16: 3.5e-3},
    "wkv7": {torch.bfloat16: 4.5e-3, torch.float16: 4.5e-3},
}
STATE_GRADIENT_TOLERANCES = {
    "wkv5": {torch.bfloat16: 1.5e-3, torch.float16: 1.5e-3},
    "wkv6": {torch.bfloat16: 1.5e-3, torch.float16: 1.5e-3},
    "wkv7": GRADIENT_TOLERANCES["wkv7"],
}

# Keywords of `make_case` that take every way through the kernels.
CASES = {
    "one chunk": {"tokens": 16, "heads": 1},
    "37 tokens": {},
    "no state": {"batch": 2, "tokens": 33, "state": False},
    "one token": {"tokens": 1},
    "sigmoid": {"tokens": 131, "decay": "sigmoid"},
    "exp": {"tokens": 50, "decay": "exp"},
    "wide decays": {"tokens": 100, "wide": True},
    "float16": {"tokens": 40, "dtype": torch.float16},
    "w in float32": {"tokens": 70, "wide_dtype": torch.float32, "wide": True},
    "size 128": {"size": 128, "tokens": 40},
    "size 128, float16, w in float32": {
        "size": 128,
        "tokens": 33,
        "dtype": torch.float16,
        "wide_dtype": torch.float32,
    },
    "size 128, packed": {"size": 128, "lengths": [5, 0, 32, 130], "heads": 1},
    "segments": {"tokens": 450, "heads": 1},
    "packed": {"lengths": [5, 0, 32, 1, 16, 130], "heads": 1},
}

# Of those with a gradient, (operator, keywords).
GRADIENT_CASES = {
    f"{operator}, {name}": (operator, case) for operator in HEAD_OPERATORS for name, case in CASES.items()
}


def make_case(
    operator: Operator, lengths: list[int] | None = None, wide: bool = False, **sizes
) -> tuple[dict[str, Tensor], dict]:
    """Inputs and keywords. `lengths`: packed sequences. `wide`: log decays from -50 to -1e-4."""
    sizes = {"batch": 1, "tokens": 37, "heads": 2, "size": 64, "dtype": torch.bfloat16, **sizes}
    keywords = options(operator, "log" if wide else sizes.get("decay"))
    if lengths is not None:
        sizes |= {"tokens": sum(lengths), "sequences": len(lengths)}
        keywords["cu_seqlens"] = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    inputs = make_inputs(operator, **sizes)
    if wide:
        generator = torch.Generator().manual_seed(2)
        log_rate = -9.2 + 13.1 * torch.rand(inputs["w"].shape, generator=generator)
        inputs["w"] = -log_rate.exp().to(inputs["w"].dtype)
    return inputs, keywords


def small_device() -> AbstractContextManager:
    """Kernels are launched for as much shared memory as devices of capability 8.6, 8.9 and 12.0 have."""
    return mock.patch.dict(os.environ, {"FLASH_RWKV_SHARED_KIB": "100"})


def move(values: dict, device: torch.device | str) -> dict:
    return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in values.items()}


def run_chunks(
    kernel, operator: Operator, inputs: dict[str, Tensor], keywords: dict
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return call(kernel, operator, inputs, algorithm="chunk", **keywords)


def assert_chunks_accurate(
    kernel, operator: Operator, inputs: dict[str, Tensor], keywords: dict, results
) -> None:
    """y is off by no more than twice what rounding the exact one is, and the state by its tolerance."""
    y, state = results
    exact_y, exact_state = call(
        kernel.reference, operator, {name: x.double() for name, x in inputs.items()}, **keywords
    )
    assert y.dtype == inputs["r"].dtype
    assert state.dtype == torch.float32
    allowed = 2 * error(exact_y.to(y.dtype), exact_y)
    assert error(y, exact_y) <= allowed, f"y is off by {error(y, exact_y):.3g}, allowed {allowed:.3g}"
    allowed = STATE_TOLERANCES[y.dtype] * exact_state.norm().item()
    off = error(state, exact_state)
    assert off <= allowed, f"the final state is off by {off:.3g}, allowed {allowed:.3g}"


def chunk_gradients(
    kernel,
    operator: Operator,
    inputs: dict[str, Tensor],
    keywords: dict,
    scale: float = 1.0,
    of: tuple[int, ...] = (0, 1),
    drawn: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Of every input, for random gradients, times `scale`, of the results in `of` (y, the final state).

    Unless they are `drawn` already, the host draws them, which for large results takes it longer than
    anything else takes a GPU.
    """
    return _gradients(kernel, operator, inputs, {"algorithm": "chunk", **keywords}, scale, of, drawn)


def assert_gradients_accurate(
    kernel,
    operator: Operator,
    inputs: dict[str, Tensor],
    keywords: dict,
    gradients: dict[str, Tensor],
    scale: float = 1.0,
    of: tuple[int, ...] = (0, 1),
) -> None:
    inputs = {name: x.double() for name, x in inputs.items()}
    exact = _gradients(kernel.reference, operator, inputs, keywords, scale, of)
    dtype = gradients["r"].dtype
    for name, gradient in gradients.items():
        off = error(gradient, exact[name])
        tolerances = STATE_GRADIENT_TOLERANCES if name == "state" else GRADIENT_TOLERANCES
        allowed = tolerances[operator.name][dtype] * exact[name].norm().item()
        assert off <= allowed, f"the gradient of {name} is off by {off:.3g}, allowed {allowed:.3g}"


def _gradients(
    namespace,
    operator: Operator,
    inputs: dict[str, Tensor],
    keywords: dict,
    scale: float,
    of: tuple[int, ...],
    drawn: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    results = call(namespace, operator, leaves, **keywords)
    scaled = [scale * x for x in drawn or output_gradients(*results, seed=1)]
    gradients = torch.autograd.grad(
        [results[i] for i in of],
        list(leaves.values()),
        [scaled[i] for i in of],
        allow_unused=True,
        materialize_grads=True,
    )
    for gradient, leaf in zip(gradients, leaves.values(), strict=True):
        assert gradient.dtype == leaf.dtype
    return dict(zip(leaves, gradients, strict=True))
