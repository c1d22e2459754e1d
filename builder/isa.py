"""Finds instructions that an older processor does not have outside the code chosen for newer ones.

A template or inline function from a shared header, compiled in a unit with -mavx512f, is a weak symbol. The
linker keeps one copy for the whole library; if it is that one, portable code dies of an illegal instruction
on a processor without AVX-512, and no test on a newer one notices. So what ships is looked at, instruction
by instruction.
"""

from __future__ import annotations

import re
from pathlib import Path

from builder.elf import instructions

# Every VEX and EVEX instruction begins with v and AVX-512's masks begin with k. These begin with v alone.
SYSTEM_INSTRUCTIONS = frozenset({"verr", "verw"})
MASK_INSTRUCTION = re.compile(
    r"k(add|andn?|mov|not|ortest|or|shift[lr]|test|unpck(bw|dq|wd)|xnor|xor)[bwdq]?"
)
AVX512_OPERAND = re.compile(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2[0-9]|3[01])\b")


def leaked_instructions(module: Path, namespace: str) -> dict[str, str]:
    """Functions using instructions their place does not allow, with one such instruction each.

    Args:
        module: an x86-64 shared object that kept its symbols.
        namespace: the C++ namespace above the instruction sets, e.g. `flash_rwkv::cpu`.
    """
    leaks: dict[str, str] = {}
    for function, instruction in instructions(module):
        if function in leaks:
            continue
        level = _level(instruction)
        allowed = _allowed(function, namespace)
        if level > allowed:
            leaks[function] = instruction
    return leaks


def _level(instruction: str) -> int:
    """0: baseline x86-64, 1: AVX and AVX2 with FMA and F16C, 2: AVX-512."""
    mnemonic = instruction.partition(" ")[0]
    if MASK_INSTRUCTION.fullmatch(mnemonic):
        return 2
    if not mnemonic.startswith("v") or mnemonic in SYSTEM_INSTRUCTIONS:
        return 0
    return 2 if AVX512_OPERAND.search(instruction) else 1


def _allowed(function: str, namespace: str) -> int:
    if f"{namespace}::avx512::" in function:
        return 2
    return 1 if f"{namespace}::avx2::" in function else 0
