"""pytest with the aarch64 variant under qemu: `python -m tests.aarch64 tests/ops -k wkv7`."""

from __future__ import annotations

import os
import sys

from tests.aarch64.emulated import missing, put_together

# Gigabytes between two rows would all go through a pipe.
LARGE = ["--deselect=tests/ops/test_memory.py::test_offsets_beyond_32_bits"]
LARGE += ["--deselect=tests/ops/test_memory.py::test_pool_rows_beyond_32_bits"]

if reason := missing():
    sys.exit(reason)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.execv(
    sys.executable, [sys.executable, "-m", "pytest", f"--kernel={put_together()}", *LARGE, *sys.argv[1:]]
)
