"""A round of all that a process does with a kernel: forward, backward, packed, decoding, all functions."""

from __future__ import annotations

from types import ModuleType

import torch

from tests.helpers.measure import run
from tests.helpers.operators import HEAD_OPERATORS, OPERATORS, make_inputs, step

# A y of 36 KiB: one that is kept in each round shows within some dozens.
SIZES = dict(batch=2, tokens=24, heads=3, size=64)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def everything(kernel: ModuleType, seed: int) -> None:
    """Call every operator, in a dtype that goes with the seed, and check that all results are numbers."""
    dtype = DTYPES[seed % len(DTYPES)]
    for operator in OPERATORS.values():
        inputs = make_inputs(operator, dtype=dtype, seed=seed, **SIZES)
        _check(operator.name, run(kernel, operator, inputs))
        with torch.no_grad():
            y = step(kernel, operator, inputs, inputs["state"].clone())
        _check(f"{operator}_step_", {"y": y})
    for operator in HEAD_OPERATORS:
        inputs = make_inputs(operator, dtype=dtype, seed=seed, **{**SIZES, "batch": 1}, sequences=3)
        bounds = torch.tensor([0, 11, 11, SIZES["tokens"]], dtype=torch.int32)
        _check(f"packed {operator}", run(kernel, operator, inputs, cu_seqlens=bounds))
    _other_functions(kernel, seed)
    _refusals(kernel)


def _other_functions(kernel: ModuleType, seed: int) -> None:
    """Those with other people's arguments, and a layer."""
    r, k, v, w, u, state = make_inputs(OPERATORS["wkv6"], seed=seed, **SIZES).values()
    flat = [x.flatten(2) for x in (r, k, v, w)]
    _check("compat", dict(enumerate(kernel.rwkv6_cuda_linear_attention(*flat, u, state))))
    results = kernel.fla.chunk_rwkv6(r, k, v, -w.exp(), u, output_final_state=True)
    _check("fla", dict(enumerate(results)))
    _check("layer", dict(enumerate(kernel.layers.Wkv6()(r, k, v, w, u, state))))


def _refusals(kernel: ModuleType) -> None:
    """What is refused must not stay either."""
    try:
        kernel.wkv4(*torch.zeros(2, 1, 3, 8), torch.zeros(9), torch.zeros(8))
    except RuntimeError:
        return
    raise AssertionError("wkv4 took a w of the wrong shape")


def _check(name: str, results: dict) -> None:
    for key, value in results.items():
        if not value.isfinite().all():
            raise AssertionError(f"{name}: {key} is not finite")
