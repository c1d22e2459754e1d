"""The plain C++ loops of cpu_baseline/: compiled in this run by this machine's g++, called through ctypes."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parent
SOURCES = FOLDER / "cpu_baseline"
FLAGS = ["-std=c++20", "-O3", "-march=x86-64-v3", "-fopenmp-simd", "-fPIC", "-shared", "-pthread"]


class Shape(ctypes.Structure):
    """`Shape` of heads.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "tokens", "heads")]


@dataclass(frozen=True)
class Baseline:
    """One way of writing the loop.

    Attributes:
        name: loop order and where the decay comes from.
        plain: whether it is written as the formula is, keys innermost, and not turned round to run faster.
        run: computes into `y` and `state`.
        y, state: results of the last run, shaped as the operator's.
    """

    name: str
    plain: bool
    run: Callable[[], None]
    y: Tensor
    state: Tensor


def baselines(
    operator: str, inputs: dict[str, Tensor], given_decay: Tensor | None, threads: int
) -> list[Baseline]:
    """The loops of `operator` on float32 inputs: both loop orders, each with the decay given and computed.

    Args:
        operator: `"wkv4"` to `"wkv7"`.
        inputs: the operator's inputs by name, contiguous, head size 64.
        given_decay: what stands for w where the decay is given; None for wkv4, which has one way only.
        threads: how many to start.
    """
    library = _compile("wkv6" if operator == "wkv5" else operator)
    if operator == "wkv4":
        return [_wkv4(library, inputs, threads)]
    functions = {"plain": f"{library.stem}_forward", "transposed": f"{library.stem}_forward_transposed"}
    loops = []
    for order, function in functions.items():
        for given in (True, False):
            w = given_decay if given else inputs["w"]
            name = f"{order}, decay {'given' if given else 'computed'}"
            loops.append(_heads(library, function, name, operator, {**inputs, "w": w}, given, threads))
    return loops


def _heads(
    library: Path,
    function: str,
    name: str,
    operator: str,
    inputs: dict[str, Tensor],
    given: bool,
    threads: int,
) -> Baseline:
    batch, tokens, heads, size = inputs["r"].shape
    y, state = torch.empty_like(inputs["r"]), torch.empty(batch, heads, size, size)
    flags = [given] if operator == "wkv7" else [operator == "wkv5", given]
    shape = Shape(batch, tokens, heads)
    return _bind(library, function, name, shape, [*inputs.values(), y, state], flags, threads)


def _wkv4(library: Path, inputs: dict[str, Tensor], threads: int) -> Baseline:
    batch, tokens, channels = inputs["k"].shape
    y, state = torch.empty_like(inputs["k"]), torch.empty(batch, 3, channels)
    shape = Shape(batch, tokens, channels // 64)
    return _bind(library, "wkv4_forward", "plain", shape, [*inputs.values(), y, state], [], threads)


def _bind(
    library: Path,
    function: str,
    name: str,
    shape: Shape,
    tensors: list[Tensor],
    flags: list[bool],
    threads: int,
) -> Baseline:
    for tensor in tensors:
        if tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise ValueError(f"a baseline takes contiguous float32, got {tensor.dtype}, {tensor.stride()}")
    call = getattr(ctypes.CDLL(str(library)), function)
    call.restype = None

    def run() -> None:
        # The addresses are taken here, so that `run` keeps the tensors alive.
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
        call(shape, *pointers, *map(ctypes.c_bool, flags), ctypes.c_int(threads))

    return Baseline(name, name.startswith("plain"), run, *tensors[-2:])


@cache
def _compile(name: str) -> Path:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise FileNotFoundError(
            f"{compiler} is not on the path: the baseline needs a C++ compiler (CXX names one)"
        )
    library = FOLDER / ".compiled" / f"{name}.so"
    library.parent.mkdir(exist_ok=True)
    subprocess.run([compiler, *FLAGS, str(SOURCES / f"{name}.cpp"), "-o", str(library)], check=True)
    return library
