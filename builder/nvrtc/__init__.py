"""Compiles CUDA sources where there is no nvcc: CUDA's compiler is also a library, NVRTC.

`device.py` makes machine code of a source, one capability at a time; `fatbin.py` packs those together; clang
compiles the host's part of the source around that; `kernels.py` sees that both parts have the same kernels.
Each is a program that ninja runs, and imports nothing of this package; `edges.py` says so to ninja.
"""
