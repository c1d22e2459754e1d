"""`python -m tests.gpu.small_calls [OPERATOR [DTYPE]]`: small odd shapes, with little of Torch.

A program for compute-sanitizer, which slows every kernel down, and Torch's start most of all: inputs are made
on the host and the ops called without autograd.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from tests.helpers.measure import output_gradients
from tests.helpers.operators import OPERATORS, Operator, make_inputs

ROOT = Path(__file__).resolve().parents[2]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HEAD_SIZES = (8, 24, 64, 128, 256)
CHUNK_SIZES = (64, 128)  # of the matrix form, on CUDA alone
LENGTHS = (19, 1, 0, 70)  # of packed sequences, and of a batch with their sum


def call_everything(
    kernel: ModuleType,
    device: str,
    operators: Iterable[str] = OPERATORS,
    dtypes: Iterable[str] = tuple(DTYPES),
) -> int:
    """The number of calls made; says where it is.

    Raises:
        RuntimeError: a result is not finite.
    """
    ops = sys.modules[f"{kernel.__name__}._ops"].ops
    calls, start = 0, time.monotonic()
    for name, dtype, size in itertools.product(operators, dtypes, HEAD_SIZES):
        operator = OPERATORS[name]
        # Decay forms in turn, the same whether or not other dtypes are called too.
        code = (list(DTYPES).index(dtype) + HEAD_SIZES.index(size)) % 3 if operator.has_heads else None
        for results in small_calls(ops, operator, DTYPES[dtype], size, code, device):
            calls += 1
            if not all(x.cpu().isfinite().all() for x in results):
                raise RuntimeError(f"{operator}, {dtype}, N = {size}, decay {code}: a result is not finite")
        print(f"{name} {dtype} N{size}: {calls} calls, {time.monotonic() - start:.0f} s", flush=True)
    return calls


def small_calls(
    ops, operator: Operator, dtype: torch.dtype, size: int, code: int | None, device: str
) -> Iterator[tuple[Tensor, ...]]:
    """Results of forward and backward, of a batch and of packed sequences, and of a step on a pool."""
    decay = None if code is None else ("log", "exp", "sigmoid")[code]
    wide = torch.float32 if size == 24 else dtype

    def inputs_of(**sizes) -> dict[str, Tensor]:
        return make_inputs(
            operator, heads=3, size=size, dtype=dtype, wide_dtype=wide, decay=decay, device=device, **sizes
        )

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32).to(device)

    tokens = sum(LENGTHS)
    bounds = ints([0, *itertools.accumulate(LENGTHS)])
    calls = [(inputs_of(batch=2, tokens=tokens // 2), None)]
    if operator.has_heads:
        calls.append((inputs_of(batch=1, tokens=tokens, sequences=len(LENGTHS)), bounds))
    for inputs, cu_seqlens in calls:
        tensors = [inputs[name] for name in operator.inputs]
        options = (cu_seqlens, code) if operator.has_heads else ()
        y, state, checkpoints = getattr(ops, f"{operator}_forward")(*tensors, inputs["state"], *options, True)
        yield y, state
        gradients = output_gradients(y, state, 1)
        yield getattr(ops, f"{operator}_backward")(*tensors, checkpoints, *gradients, *options)
        if operator.has_heads and has_chunks(device, dtype, size):
            chunk_forward = getattr(ops, f"{operator}_chunk_forward")
            y, state, checkpoints = chunk_forward(*tensors, inputs["state"], *options, True)
            yield y, state
            yield getattr(ops, f"{operator}_chunk_backward")(*tensors, checkpoints, *gradients, *options)

    inputs = inputs_of(batch=3, tokens=1)
    first = inputs[operator.first].shape
    pool = torch.zeros(5, *inputs["state"].shape[1:], dtype=list(DTYPES.values())[size // 8 % 3]).to(device)
    token = [x[:, 0] if x.shape == first else x for x in map(inputs.__getitem__, operator.inputs)]
    tail = () if code is None else (code,)
    yield getattr(ops, f"{operator}_step_")(*token, pool, ints([4, 0, 2]), *tail), pool


def has_chunks(device: str, dtype: torch.dtype, size: int) -> bool:
    return device == "cuda" and dtype != torch.float32 and size in CHUNK_SIZES


if __name__ == "__main__":
    from kernels import get_local_kernel

    chosen = [[argument] for argument in sys.argv[1:]]
    print(f"{call_everything(get_local_kernel(ROOT), 'cuda', *chosen)} calls, all finite")
