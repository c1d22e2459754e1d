"""The operators' tests on the aarch64 variant, as many as `make test` has time for.

`python -m tests.aarch64 tests/ops` runs all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("accuracy", "decode", "gradients", "memory")
RUNS = {
    "every kind": ["-m", "kernels_ci", *(f"tests/ops/test_{name}.py" for name in SHORT)],
    "extremes": ["-m", "kernels_ci", "tests/ops/test_extremes.py"],
    "odd lengths": ["-k", "batches and (-17- or -65-)", "tests/ops/test_accuracy.py"],
    "packed": ["-k", "packed and sigmoid and float16", "tests/ops/test_accuracy.py"],
    "slots": ["-k", "slots or float64_pool or guard_bands", "tests/ops/test_decode.py"],
}


def in_process(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("run", RUNS)
def test_the_operators_tests(emulated_path: Path, run: str) -> None:
    done = in_process(
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--kernel={emulated_path}", *RUNS[run]]
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


SCRIPT = """
import sys, torch
from pathlib import Path
from kernels import get_local_kernel
from tests.helpers.operators import OPERATORS, call, make_inputs
kernel = get_local_kernel(Path(sys.argv[1]))
print(kernel.cpu_isa())
for operator in OPERATORS.values():
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        inputs = make_inputs(operator, tokens=90, heads=1, size=64, batch=1)
        leaves = {name: x.requires_grad_() for name, x in inputs.items()}
        y, state = call(kernel, operator, leaves)
        (y.sum() + state.sum()).backward()
        results.append([y, state, *(x.grad for x in leaves.values())])
    assert all(map(torch.equal, *results)), operator
"""


def test_threads_compute_the_same(emulated_path: Path) -> None:
    done = in_process(["-c", SCRIPT, str(emulated_path)])
    assert done.stdout.split() == ["neon"], done.stderr


def test_an_instruction_set_of_other_processors(emulated_path: Path) -> None:
    """An exception crosses from the module to its caller."""
    done = in_process(["-c", SCRIPT, str(emulated_path)], FLASH_RWKV_CPU_ISA="avx2")
    assert done.returncode == 1
    assert "one of the instruction sets of this processor (neon), got 'avx2'" in done.stderr
