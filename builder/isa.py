"""Finds instructions that an older processor does not have outside the code chosen for newer ones.

A template or inline function from a shared header, compiled in a unit with -mavx512f, is a weak symbol. The
linker keeps one copy for the whole library; if it is that one, portable code dies of an illegal instruction
on a processor without AVX-512, and no test on a newer one notices. So what ships is looked at, instruction
by instruction.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from builder.elf import instructions
from builder.machines import Machine


def leaked_instructions(module: Path, namespace: str, machine: Machine) -> dict[str, str]:
    """Functions using instructions their place does not allow, with one such instruction each.

    Args:
        module: a shared object that kept its symbols.
        namespace: the C++ namespace above the instruction sets, e.g. `flash_rwkv::cpu`.
        machine: the architecture of the module.
    """
    rules = RULES[machine.name]
    leaks: dict[str, str] = {}
    for function, instruction in instructions(module, machine):
        if function not in leaks and rules.level(instruction) > rules.allowed(function, namespace):
            leaks[function] = instruction
    return leaks


# Every VEX and EVEX instruction begins with v and AVX-512's masks begin with k. These begin with v alone.
SYSTEM_INSTRUCTIONS = frozenset({"verr", "verw"})
MASK_INSTRUCTION = re.compile(
    r"k(add|andn?|mov|not|ortest|or|shift[lr]|test|unpck(bw|dq|wd)|xnor|xor)[bwdq]?"
)
AVX512_OPERAND = re.compile(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2[0-9]|3[01])\b")


def x86_64_level(instruction: str) -> int:
    """0: baseline x86-64, 1: AVX and AVX2 with FMA and F16C, 2: AVX-512."""
    mnemonic = instruction.partition(" ")[0]
    if MASK_INSTRUCTION.fullmatch(mnemonic):
        return 2
    if not mnemonic.startswith("v") or mnemonic in SYSTEM_INSTRUCTIONS:
        return 0
    return 2 if AVX512_OPERAND.search(instruction) else 1


def _x86_64_allowed(function: str, namespace: str) -> int:
    if f"{namespace}::avx512::" in function:
        return 2
    return 1 if f"{namespace}::avx2::" in function else 0


# What came after Armv8.0: atomics and rounding products (8.1), dot products, matrix products and bfloat16,
# complex numbers, half-precision products; optional in 8.0 are CRC and cryptography. SVE has registers of its
# own.
NEWER_THAN_ARMV8 = re.compile(
    r"(ld|st)(add|clr|set|eor|[su]max|[su]min)(al?|l)?[bh]?|swp(al?|l)?[bh]?|casp?(al?|l)?[bh]?|ldapu?rs?[bhw]?"
    r"|sqrdml[as]h|(us|su|[su])dot|bf(dot|mmla|mlal[bt]|cvt(n2?)?)|(us|[su])mmla|fcmla|fcadd|fml[as]l2?|fjcvtzs"
    r"|frint(32|64)[xz]|crc32\w*|aes\w+|sha(1|256|512)\w+"
)
SVE_REGISTER = re.compile(r"\b(z\d+\.[bhsdq]|p\d+(\.[bhsdq]|/[zm]))")
HALF_OPERAND = re.compile(r"\bv\d+\.[48]h\b|\bh\d+\b")
HALF_CONVERSION = re.compile(r"fcvt(n|l)?2?")
# libgcc's atomics ask the processor before they take the instructions of 8.1.
OUTLINED_ATOMIC = re.compile(r"__aarch64_(cas|swp|ldadd|ldclr|ldeor|ldset)\d+_(relax|acq|rel|acq_rel|sync)")


def aarch64_level(instruction: str) -> int:
    """0: Armv8.0 with Advanced SIMD, which all have, 1: anything newer."""
    mnemonic, _, operands = instruction.partition("\t") if "\t" in instruction else instruction.partition(" ")
    operands = operands.partition("<")[0]
    if NEWER_THAN_ARMV8.fullmatch(mnemonic) or SVE_REGISTER.search(operands):
        return 1
    halves = mnemonic.startswith("f") and HALF_OPERAND.search(operands)
    return 1 if halves and not HALF_CONVERSION.fullmatch(mnemonic) else 0


def _aarch64_allowed(function: str, namespace: str) -> int:
    return 1 if OUTLINED_ATOMIC.fullmatch(function) else 0


@dataclass(frozen=True)
class Rules:
    """Of one architecture: how new an instruction is, and how new those of a function may be."""

    level: Callable[[str], int]
    allowed: Callable[[str, str], int]


RULES = {
    "x86_64": Rules(x86_64_level, _x86_64_allowed),
    "aarch64": Rules(aarch64_level, _aarch64_allowed),
}
