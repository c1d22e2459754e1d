"""The CPU kernels of every instruction set that this processor has, each in a process of its own.

`FLASH_RWKV_CPU_ISA` is read once, when the kernels are first used.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

# What decides the numbers. Layers, errors and compilation are the same for every instruction set.
NUMERICAL_TESTS = [
    f"tests/ops/test_{name}.py" for name in ("accuracy", "decode", "determinism", "extremes", "memory")
]

SCRIPT = """
import sys, torch
from pathlib import Path
from kernels import get_local_kernel
kernel = get_local_kernel(Path(sys.argv[1]))
k = torch.randn(1, 2, 8)
kernel.wkv4(k, k, -torch.rand(8), torch.rand(8))
print(kernel.cpu_isa())
"""

pytestmark = [pytest.mark.cpu_only, pytest.mark.compiled_only]


def instruction_sets() -> list[str]:
    """Those of this processor, the best last, going by what Torch says about it."""
    capability = torch.backends.cpu.get_cpu_capability()
    wider = {"AVX2": ["avx2"], "AVX512": ["avx2", "avx512"]}
    return ["portable", *wider.get(capability, [])]


def in_process(arguments: list[str], isa: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "FLASH_RWKV_CPU_ISA"}
    if isa is not None:
        environment["FLASH_RWKV_CPU_ISA"] = isa
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("isa", instruction_sets())
def test_numbers(kernel, kernel_path, isa) -> None:
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "kernels_ci", *NUMERICAL_TESTS]
    own_build = [] if kernel_path == ROOT else [f"--kernel={kernel_path}"]
    done = in_process([*arguments, *own_build], isa)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("isa", instruction_sets())
def test_choice(kernel, kernel_path, isa) -> None:
    done = in_process(["-c", SCRIPT, str(kernel_path)], isa)
    assert done.stdout.split() == [isa], done.stderr


def test_the_best_is_the_default(kernel, kernel_path) -> None:
    assert in_process(["-c", SCRIPT, str(kernel_path)], None).stdout.split() == instruction_sets()[-1:]
    assert in_process(["-c", SCRIPT, str(kernel_path)], "").stdout.split() == instruction_sets()[-1:]


@pytest.mark.parametrize("isa", ["neon", "AVX2", "sse"])
def test_unknown_instruction_set(kernel, kernel_path, isa) -> None:
    done = in_process(["-c", SCRIPT, str(kernel_path)], isa)
    assert done.returncode == 1, "an exception, not a crash"
    assert "FLASH_RWKV_CPU_ISA must be one of" in done.stderr
    assert f"got '{isa}'" in done.stderr
    assert "portable" in done.stderr
