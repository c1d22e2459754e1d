"""Packs machine code and PTX into what the CUDA runtime chooses from. A program for build.ninja."""

from __future__ import annotations

import argparse
import ctypes
import re
import sys
from pathlib import Path

NAME = re.compile(r"\.(sm|compute)_(\w+)$")
IDENTIFIER = b"kernels"  # anything, but the same in every build


class Fatbin:
    """The functions of libnvfatbin that this takes."""

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)
        self._library.nvFatbinGetErrorString.restype = ctypes.c_char_p
        self._handle = ctypes.c_void_p()
        options = (ctypes.c_char_p * 2)(b"-64", b"-compress-all")
        self._call("nvFatbinCreate", ctypes.byref(self._handle), options, len(options))

    def add(self, path: Path) -> None:
        """A file named `….sm_90` or `….compute_90`."""
        match = NAME.search(path.name)
        if match is None:
            sys.exit(f"{path} is not named ….sm_90 or ….compute_90")
        content, capability = path.read_bytes(), match[2].encode()
        size = ctypes.c_size_t(len(content))
        if match[1] == "sm":
            self._call("nvFatbinAddCubin", self._handle, content, size, capability, IDENTIFIER)
        else:
            self._call("nvFatbinAddPTX", self._handle, content, size, capability, IDENTIFIER, None)

    def content(self) -> bytes:
        """All that was added."""
        size = ctypes.c_size_t()
        self._call("nvFatbinSize", self._handle, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value)
        self._call("nvFatbinGet", self._handle, content)
        return content.raw

    def _call(self, function: str, *arguments: object) -> None:
        if failed := getattr(self._library, function)(*arguments):
            sys.exit(f"{function}: {self._library.nvFatbinGetErrorString(failed).decode()}")


def main() -> int:
    """Pack."""
    parser = argparse.ArgumentParser(prog="fatbin.py", description="Pack code for several capabilities.")
    parser.add_argument("--library", required=True, help="libnvfatbin.so")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("parts", nargs="+", type=Path, help="files named ….sm_90 or ….compute_90")
    options = parser.parse_args()
    fatbin = Fatbin(options.library)
    for part in options.parts:
        fatbin.add(part)
    options.out.write_bytes(fatbin.content())
    return 0


if __name__ == "__main__":
    sys.exit(main())
