"""CUDA's own syntax, in sources that do not use cuda/launch.h and cuda/ptx.cuh, put into C++.

Only what C++ cannot read is replaced: launches `<<<…>>>`, `extern __shared__` arrays, and the inline PTX in
`ASSEMBLY`. Lines stay where they are.
"""

from __future__ import annotations

import re

EXTERN_SHARED = re.compile(r"extern\s+__shared__\s+(?:(?:__align__|alignas)\(\w+\)\s+)?([\w:]+)\s+(\w+)\[\];")
ASM = re.compile(r"\basm\s*(?:volatile)?\s*\(")
OPERAND = re.compile(r'"[^"]*"\s*\((.*)\)', re.DOTALL)

# What calls the emulator for an instruction, given its operands.
ASSEMBLY = {
    "ex2.approx.ftz.f32": "{0} = flash_rwkv::cuda::ptx::ex2_approx_ftz_f32({1})",
    "cp.async.cg.shared.global": "simt::copy_later(simt::shared_pointer({0}), {1}, {2}, {3})",
    "cp.async.ca.shared.global": "simt::copy_later(simt::shared_pointer({0}), {1}, {2}, {3})",
    "cp.async.commit_group": "simt::close_group()",
    "cp.async.wait_group": "simt::wait_for_groups({0})",
    "cp.async.wait_all": "simt::wait_for_all()",
    "st.global.v2.b32": "flash_rwkv::cuda::ptx::st_global_b32({0}, uint2{1})",
    "st.global.v4.b32": "flash_rwkv::cuda::ptx::st_global_b32({0}, uint4{1})",
}


def to_cxx(source: str) -> str:
    """The source with all of that replaced.

    Raises:
        ValueError: an `asm` statement that is not known.
    """
    converted = EXTERN_SHARED.sub(
        r"\1* const \2 = static_cast<\1*>(simt::dynamic_shared_memory());", _assembly(_launches(source))
    )
    if converted == source:
        return source
    return f'#include "cuda/launch.h"\n#include "cuda/ptx.cuh"\n#line 1\n{converted}'


def _launches(source: str) -> str:
    """`kernel<<<blocks, threads, bytes, stream>>>(arguments)` to a call of simt::launch."""
    while (at := source.find("<<<")) >= 0:
        begin = _start_of_name(source, at)
        end = source.index(">>>", at)
        config = _split(source[at + 3 : end])
        config += ["0", "nullptr"][len(config) - 2 :]
        opening = source.index("(", end)
        rest = source[opening + 1 :]
        arguments = ", ".join([source[begin:at], *config]) + "\n" * source[at:opening].count("\n")
        separator = "" if rest.lstrip().startswith(")") else ", "
        source = f"{source[:begin]}simt::launch({arguments}{separator}{rest}"
    return source


def _start_of_name(source: str, end: int) -> int:
    """Where the name, possibly with template arguments, begins that ends before `end`."""
    depth = 0
    while end > 0 and (depth or source[end - 1] == ">" or re.match(r"[\w:]", source[end - 1])):
        depth += {">": 1, "<": -1}.get(source[end - 1], 0)
        end -= 1
    return end


def _split(text: str, separator: str = ",") -> list[str]:
    """Parts between separators that are outside of brackets and of quotes."""
    parts, depth, quoted, start = [], 0, False, 0
    for i, letter in enumerate(text):
        if letter == '"' and text[i - 1 : i] != "\\":
            quoted = not quoted
        elif not quoted and letter in "([{":
            depth += 1
        elif not quoted and letter in ")]}":
            depth -= 1
        elif letter == separator and not quoted and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


def _assembly(source: str) -> str:
    while match := ASM.search(source):
        end = _closing(source, match.end())
        statement = source[match.end() : end]
        lines = "\n" * statement.count("\n")
        source = f"{source[: match.start()]}{_call(statement)}{lines}{source[end + 1 :]}"
    return source


def _closing(source: str, start: int) -> int:
    """The bracket that closes the one before `start`."""
    depth, quoted = 1, False
    for i in range(start, len(source)):
        if source[i] == '"' and source[i - 1] != "\\":
            quoted = not quoted
        elif not quoted:
            depth += {"(": 1, ")": -1}.get(source[i], 0)
            if depth == 0:
                return i
    raise ValueError("an asm statement without an end")


def _call(statement: str) -> str:
    template, *operands = _split(statement, ":")
    text = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', template)).replace("\\n", " ").strip()
    values = [OPERAND.fullmatch(x)[1] for part in operands for x in _split(part) if OPERAND.fullmatch(x)]
    name, _, rest = text.rstrip(";").partition(" ")
    if name not in ASSEMBLY or ";" in rest:
        raise ValueError(f"unknown inline PTX, to be moved to cuda/ptx.cuh: {text}")
    words = [word.strip("[]") for word in _split(rest)]
    return ASSEMBLY[name].format(
        *(re.sub(r"%(\d+)", lambda found: f"({values[int(found[1])]})", word) for word in words)
    )
