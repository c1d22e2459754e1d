"""What ninja is to do for a CUDA source where there is no nvcc."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from builder import ninja_syntax as ninja
from builder.capabilities import parse_capability
from builder.errors import BuilderError
from builder.toolchain import Cuda

HERE = Path(__file__).parent
# clang makes machine code of what is no device's, but takes the whole source for CUDA's.
HOST_PART = (
    "--cuda-host-only",
    "-x",
    "cuda",
    "-nocudalib",
    "-Wno-unknown-cuda-version",
    "-Wno-unknown-attributes",  # what only device code is told by
    f"-I{HERE / 'clang_include'}",
)
NOT_CLANGS = re.compile(r"-fno-gnu-unique|-frandom-seed=.*")
# Of nvcc's flags: what NVRTC does anyway, and what is not for device code.
NOT_NVRTCS = re.compile(r"-O[0-3]|--compress-mode=.*|-Xcompiler=.*")
NVRTCS = re.compile(r"-std=c\+\+\d\d|-D.*|--use_fast_math|-?-fmad=.*|--maxrregcount=.*|-lineinfo")


def rules(cuda: Cuda) -> list[str]:
    """The kinds of commands."""
    soname = f"so.{cuda.version.partition('.')[0]}"
    python = f"{ninja.word(sys.executable)} -I"
    device, fatbin, kernels = (ninja.word(HERE / name) for name in ("device.py", "fatbin.py", "kernels.py"))
    libraries = (cuda.root / "lib" / f"lib{name}.{soname}" for name in ("nvrtc", "nvfatbin"))
    clang, nvrtc, nvfatbin = map(ninja.word, (cuda.clang, *libraries))
    return [
        *ninja.rule(
            "nvrtc", f"{python} {device} --library {nvrtc} --out $out $flags", "compile $in for a device"
        ),
        *ninja.rule("fatbin", f"{python} {fatbin} --library {nvfatbin} --out $out $in", "pack $out"),
        *ninja.rule(
            "host_part",
            f"{clang} $flags -MD -MF $out.d -c $in -o $out && {python} {kernels} $out $cubins",
            "compile $in for the host",
            deps=True,
        ),
    ]


def compile_source(
    cuda: Cuda,
    source: str,
    target: str,
    capabilities: Sequence[str],
    includes: Sequence[str],
    headers: Sequence[str],
    cuda_flags: Sequence[str],
    host_flags: Sequence[str],
) -> list[str]:
    """The commands that make an object.

    Args:
        cuda: the toolkit.
        source, target: the source and its object.
        capabilities: what for, as build.toml writes it.
        includes: folders of the repository's own headers.
        headers: all of those: NVRTC does not say which it has read.
        cuda_flags: nvcc's.
        host_flags: a C++ compiler's.

    Raises:
        BuilderError: a flag of nvcc is not known to do the same here, or to do nothing.
    """
    lines, parts = [], []
    flags = [f"-I{folder}" for folder in (*includes, cuda.include)] + _nvrtc_flags(cuda_flags)
    needs = [*headers, *(str(path) for path in sorted((HERE / "include").iterdir())), str(HERE / "device.py")]
    for arch in _archs(capabilities):
        parts.append(f"{target}.{arch}")
        lines += ninja.build(
            "nvrtc", parts[-1], [source], needs, flags=["--arch", arch, source, "--", *flags]
        )
    packed = f"{target}.fatbin"
    lines += ninja.build("fatbin", packed, parts, [str(HERE / "fatbin.py")])
    include_packed = ["-Xclang", "-fcuda-include-gpubinary", "-Xclang", packed]
    own = [flag for flag in host_flags if not NOT_CLANGS.fullmatch(flag)]
    words = [f"--cuda-path={cuda.root}", *HOST_PART, *own, *include_packed]
    cubins = [part for part in parts if ".sm_" in part]
    needs = [packed, *cubins, str(HERE / "kernels.py")]
    return lines + ninja.build("host_part", target, [source], needs, flags=words, cubins=cubins)


def _archs(capabilities: Sequence[str]) -> list[str]:
    archs = []
    for capability in map(parse_capability, capabilities):
        archs.append(f"sm_{capability.number}")
        if capability.ptx:
            archs.append(f"compute_{capability.number}")
    return archs


def _nvrtc_flags(flags: Sequence[str]) -> list[str]:
    kept = [flag for flag in flags if not NOT_NVRTCS.fullmatch(flag)]
    for flag in kept:
        if not NVRTCS.fullmatch(flag):
            raise BuilderError(
                f"build.toml: the cuda-flag {flag} is nvcc's. Say in builder/nvrtc/edges.py what it is for "
                "NVRTC."
            )
    return kept
