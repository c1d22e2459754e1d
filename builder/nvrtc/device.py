"""Machine code or PTX of one CUDA source for one capability, made by NVRTC. A program for build.ninja.

NVRTC knows no host functions. Here all functions that say nothing are the device's. Those that no kernel
calls are dropped, but not before they have been read: so a launch, which is in such a function, has the
kernels compiled that it names. What the host's functions call is declared in `include/`.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from pathlib import Path

INCLUDE = Path(__file__).parent / "include"
HOST_FUNCTIONS = ("-default-device", f"-include={INCLUDE / 'prelude.h'}", f"-I{INCLUDE}")


class Nvrtc:
    """The functions of libnvrtc that this takes."""

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def compile(self, source: Path, options: list[str], kind: str) -> tuple[bytes | None, str]:
        """What it makes (`CUBIN` or `PTX`), None when there are errors, and its messages."""
        program = ctypes.c_void_p()
        text, name = source.read_bytes(), str(source).encode()
        self._call("nvrtcCreateProgram", ctypes.byref(program), text, name, 0, None, None)
        words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = self._library.nvrtcCompileProgram(program, len(options), words)
        log = self._bytes(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
        made = None if failed else self._bytes(program, kind)
        if failed and not log:
            log = self._library.nvrtcGetErrorString(failed).decode()
        self._call("nvrtcDestroyProgram", ctypes.byref(program))
        return made, log

    def _bytes(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, content)
        return content.raw

    def _call(self, function: str, *arguments: object) -> None:
        if failed := getattr(self._library, function)(*arguments):
            sys.exit(f"{function}: {self._library.nvrtcGetErrorString(failed).decode()}")


def main() -> int:
    """Compile; 1 if the source has errors."""
    parser = argparse.ArgumentParser(
        prog="device.py", description="Compile a CUDA source with NVRTC, whose flags follow --."
    )
    parser.add_argument("--library", required=True, help="libnvrtc.so")
    parser.add_argument("--arch", required=True, help="sm_90 for machine code, compute_90 for PTX")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("source", type=Path)
    # argparse would drop the --, or not, as its version is.
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, flags = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    kind = "PTX" if options.arch.startswith("compute_") else "CUBIN"
    flags = [f"--gpu-architecture={options.arch}", *HOST_FUNCTIONS, *flags]
    made, log = Nvrtc(options.library).compile(options.source, flags, kind)
    if log:
        print(log, file=sys.stderr)
    if made is None:
        return 1
    options.out.write_bytes(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
