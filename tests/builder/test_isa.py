"""Which instruction belongs to which instruction set."""

from __future__ import annotations

import pytest

from builder.isa import aarch64_level, x86_64_level


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
def test_x86_64(instruction: str, level: int) -> None:
    assert x86_64_level(instruction) == level


@pytest.mark.parametrize(
    ("instruction", "level"),
    [
        ("fmla\tv0.4s, v1.4s, v2.4s", 0),
        ("fcvt\ts0, h1", 0),
        ("fcvtl\tv0.4s, v1.4h", 0),
        ("fcvtn2\tv0.8h, v1.4s", 0),
        ("add\tv0.8h, v1.8h, v2.8h", 0),
        ("ldaxr\tw0, [x1]", 0),
        ("bl\t10 <void z1.s<int>()>", 0),
        ("paciasp", 0),
        ("ldaddal\tw0, w1, [x2]", 1),
        ("casp\tx0, x1, x2, x3, [x4]", 1),
        ("stset\tw0, [x1]", 1),
        ("ldapr\tw0, [x1]", 1),
        ("sdot\tv0.4s, v1.16b, v2.16b", 1),
        ("bfcvtn\tv0.4h, v1.4s", 1),
        ("fmla\tv0.8h, v1.8h, v2.8h", 1),
        ("fadd\th0, h1, h2", 1),
        ("ld1w\t{z0.s}, p0/z, [x0]", 1),
        ("whilelo\tp0.s, xzr, x1", 1),
        ("crc32cw\tw0, w1, w2", 1),
    ],
)
def test_aarch64(instruction: str, level: int) -> None:
    assert aarch64_level(instruction) == level
