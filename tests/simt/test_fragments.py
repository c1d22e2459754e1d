"""mma, ldmatrix and stmatrix: fragments by the tables of the PTX ISA, against plain products of matrices."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

from tests.simt.test_emulator import pointer

pytestmark = pytest.mark.cpu_only

LANES = range(32)
KINDS = {"bfloat16": 0, "float16": 1, "tf32": 2}


def position_a(kind: str, lane: int, i: int) -> tuple[int, int]:
    """Row and column of element i of A in a lane (PTX ISA, "Matrix fragments for mma.m16n8k16" and k8)."""
    group, thread = lane >> 2, lane % 4
    if kind == "tf32":
        return (group if i in (0, 2) else group + 8), (thread if i < 2 else thread + 4)
    row = group if i < 2 or 4 <= i < 6 else group + 8
    return row, thread * 2 + (i & 1) + (0 if i < 4 else 8)


def position_b(kind: str, lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    if kind == "tf32":
        return (thread if i == 0 else thread + 4), group
    return thread * 2 + (i & 1) + (0 if i < 2 else 8), group


def position_c(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    return (group if i < 2 else group + 8), thread * 2 + (i & 1)


def registers(kind: str, matrix: torch.Tensor, position, elements: int) -> np.ndarray:
    """[32, registers] as uint32; elements of 16 bits go in pairs, the first into the lower half."""
    values = torch.stack(
        [torch.stack([matrix[position(kind, lane, i)] for i in range(elements)]) for lane in LANES]
    )
    if kind == "tf32":
        return values.numpy().view(np.uint32)
    return values.view(torch.int16).numpy().view(np.uint32)


@pytest.mark.parametrize("kind", KINDS)
def test_mma(library, kind) -> None:
    generator = torch.Generator().manual_seed(3)
    depth = 8 if kind == "tf32" else 16
    dtype = torch.float32 if kind == "tf32" else getattr(torch, kind)
    a, b = (torch.randn(shape, generator=generator).to(dtype) for shape in ((16, depth), (depth, 8)))
    c = torch.randn(16, 8, generator=generator)
    exact = a.double() @ b.double() + c.double()
    if kind == "tf32":  # of which the lower 13 bits are not read
        a, b = ((x.view(torch.int32) & ~0x1FFF).view(torch.float32) for x in (a, b))
        exact = a.double() @ b.double() + c.double()
        a = (a.view(torch.int32) | 0x1ABC).view(torch.float32)
    given_a = registers(kind, a, position_a, 4 if kind == "tf32" else 8)
    given_b = registers(kind, b, position_b, 2 if kind == "tf32" else 4)
    given_c = np.array([[c[position_c(lane, i)].item() for i in range(4)] for lane in LANES], np.float32)
    result = np.zeros((32, 4), np.float32)
    assert not library.run_mma(KINDS[kind], *map(pointer, (given_a, given_b, given_c, result)))
    for lane in LANES:
        for i in range(4):
            assert result[lane, i] == np.float32(exact[position_c(lane, i)].item())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(library, count, transposed) -> None:
    matrices = np.arange(4 * 64, dtype=np.uint16).reshape(4, 8, 8)
    x = np.zeros((32, count), np.uint32)
    assert not library.run_ldmatrix(count, ctypes.c_bool(transposed), pointer(matrices), pointer(x))
    for lane in LANES:
        for i in range(count):
            matrix = matrices[i].T if transposed else matrices[i]
            first, second = matrix[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
            assert x[lane, i] == int(second) << 16 | int(first)


@pytest.mark.parametrize("transposed", [False, True])
def test_stmatrix(library, transposed) -> None:
    x = np.arange(2 * 128, dtype=np.uint16).view(np.uint32).reshape(32, 4)
    matrices = np.zeros((4, 8, 8), np.uint16)
    assert not library.run_stmatrix(ctypes.c_bool(transposed), pointer(x), pointer(matrices))
    for lane in LANES:
        for i in range(4):
            matrix = matrices[i].T if transposed else matrices[i]
            first, second = matrix[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
            assert x[lane, i] == int(second) << 16 | int(first)


def test_product(library) -> None:
    generator = torch.Generator().manual_seed(4)
    a, b = (torch.randn(shape, generator=generator).bfloat16() for shape in ((16, 16), (16, 8)))
    product = np.zeros((16, 8), np.float32)
    words = (x.view(torch.int16).numpy() for x in (a, b))
    assert not library.run_product(*map(pointer, words), pointer(product))
    np.testing.assert_array_equal(product, (a.double() @ b.double()).float().numpy())


def test_tf32(library) -> None:
    values = [
        1.0,
        -1.0,
        1 + 2**-11,
        -1 - 2**-11,
        1 + 2**-12,
        1 + 3 * 2**-11,
        3.4028234e38,
        np.inf,
        -np.inf,
        0.0,
    ]
    expected = [1.0, -1.0, 1 + 2**-10, -1 - 2**-10, 1.0, 1 + 2**-9, np.inf, np.inf, -np.inf, 0.0]
    x, rounded = np.zeros(32, np.float32), np.zeros(32, np.float32)
    x[: len(values)] = values
    assert not library.run_tf32(pointer(x), pointer(rounded))
    np.testing.assert_array_equal(rounded[: len(expected)], np.array(expected, np.float32))
