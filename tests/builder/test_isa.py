"""Which instruction belongs to which instruction set."""

from __future__ import annotations

import pytest

from builder.isa import _level


@pytest.mark.parametrize(
    ("instruction", "level"),
    [
        ("mulps  %xmm1,%xmm0", 0),
        ("cvtss2sd %xmm0,%xmm0", 0),
        ("verw   %ax", 0),
        ("kill", 0),
        ("mov    %rax,%rbx", 0),
        ("vmulps %xmm1,%xmm0,%xmm2", 1),
        ("vfmadd231ps %ymm1,%ymm0,%ymm2", 1),
        ("vcvtph2ps (%rax),%ymm15", 1),
        ("vzeroupper", 1),
        ("vmulps %zmm1,%zmm0,%zmm2", 2),
        ("vmovups (%rax),%ymm1{%k1}", 2),
        ("vmovaps %ymm16,%ymm0", 2),
        ("vmovaps %xmm31,%xmm0", 2),
        ("kmovw  %eax,%k1", 2),
        ("kortestb %k0,%k1", 2),
    ],
)
def test_level(instruction: str, level: int) -> None:
    assert _level(instruction) == level
